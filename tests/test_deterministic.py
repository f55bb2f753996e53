"""The option --deterministic, in processes of its own: XLA reads its flags once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prune_rl.cli import main
from prune_rl.cli.deterministic import make_deterministic

FLAG = "--xla_gpu_deterministic_ops=true"


def test_xla_has_the_flag_before_jax_is_in_use(tmp_path: Path) -> None:
    """With the real start of the command, up to what it refuses once JAX is in use."""
    code = (
        "import os, sys, jax, json\n"
        "from prune_rl.cli import main\n"
        "status = main(['train', 'CartPole-v1', '--deterministic', '--shard-envs', '--num-envs', '3'])\n"
        "print(json.dumps([status, os.environ['XLA_FLAGS'], len(jax.devices())]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    assert "num_envs = 3" in done.stderr
    status, flags, devices = json.loads(done.stdout.splitlines()[-1])
    assert status == 2
    assert flags.split()[-1] == FLAG
    assert devices == 2, "the flags of before are still there"


def test_it_is_refused_where_it_comes_too_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jax

    jax.devices()
    assert main(["train", "CartPole-v1", "--deterministic"]) == 2
    error = capsys.readouterr().err
    assert "JAX is in use" in error
    assert f"XLA_FLAGS={FLAG}" in error
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {FLAG}")
    make_deterministic()  # it is there already
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    with pytest.raises(ValueError, match="contradicts --xla_gpu_deterministic_ops=false in XLA_FLAGS"):
        make_deterministic()
