"""The comparison with onnx2c, with a program in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.device.onnx2c import Options, check_actions, object_bytes, rows, translated
from prune_rl.export.c.source import c_source
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box

pytest.importorskip("onnx", reason="the package onnx is not installed: pip install 'prune_rl[onnx]'")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc: install gcc")

POLICY = Policy(
    ((np.array([[0.5], [0.25]]), np.array([0.125])),),
    "tanh",
    Box((-9.0,), (9.0,), (1,)),
    np.zeros(2, np.float32),
    np.ones(2, np.float32),
)


def program(folder: Path, code: str) -> Path:
    path = folder / "onnx2c"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{code}\nEND\n")
    path.chmod(0o755)
    return path


def code(bias: float) -> str:
    return (
        "void policy_entry(const float obs[1][2], float actions[1][1]) "
        f"{{ actions[0][0] = 0.5f * obs[0][0] + 0.25f * obs[0][1] + {bias}f; }}"
    )


def test_both_are_timed_and_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.device.onnx2c.missing", lambda: ["qemu"])
    options = Options(onnx2c=program(tmp_path, code(0.125)), repeats=1, seconds=0.001)
    ours, theirs, runtime = rows(POLICY, options)
    assert (ours[0], theirs[0], ours[2]) == ("our own C", "onnx2c", "1.00 (1.00–1.00)")
    assert ours[4:] == theirs[4:] == ["", "", ""]
    assert float(runtime[1]) > float(ours[1])
    assert object_bytes(translated(POLICY, options.onnx2c)) < object_bytes(c_source(POLICY))


def test_another_action_is_found(tmp_path: Path) -> None:
    theirs = translated(POLICY, program(tmp_path, code(0.126)))
    with pytest.raises(ValueError, match=r"actions of onnx2c differ from NumPy's by up to 0\.00"):
        check_actions(POLICY, c_source(POLICY), theirs, np.ones((3, 2), np.float32))


def test_the_message_of_a_program_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "onnx2c"
    path.write_text("#!/bin/sh\necho Unimplemented: node operation >&2\nexit 6\n")
    path.chmod(0o755)
    with pytest.raises(ValueError, match="Unimplemented: node operation"):
        translated(POLICY, path)
