"""The command in a process where JAX makes 64-bit numbers by default."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.training.conftest import TIMEOUT

SHORT = shlex.split(
    "train CartPole-v1 --hidden 8 --num-envs 4 --num-steps 16 --steps 1024 --episodes 1 --frontier 0"
    " --prune.critic --prune.sparsity 0.5 --no-control"
)


def test_a_run_with_64_bit_types_ends_well(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    status = start(SHORT, tmp_path, JAX_ENABLE_X64="1").wait(TIMEOUT)
    assert status == 0, (tmp_path / "output").read_text(encoding="utf-8")
