"""Tiny training runs, shared by the tests of this folder: made by real `prune-rl` processes, once per session."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import prune_rl
from prune_rl.cli import main

TIMEOUT = 240.0
# 32 updates of 4 · 32 steps, a checkpoint after every second one; pruning from the fourth to the twentieth.
TINY = shlex.split(
    "train CartPole-v1 --hidden 16 16 --num-envs 4 --num-steps 32 --steps 4000 --checkpoints 16 --episodes 3"
    " --frontier 6 --selection-episodes 2 --no-skip"
    " --prune.critic --prune.tolerance None --prune.sparsity 0.8 --prune.begin 0.1 --prune.end 0.6 --no-control"
)
# The same number of updates, of 2 · 16 steps, the first two without learning; arrays of 16, then 8 neurons, those of
# the actor before those of the critic.
TINY_SAC = shlex.split(
    "train Pendulum-v1 --backend gymnasium --algo sac --hidden 16 16 --num-envs 2 --num-steps 16 --utd-ratio 0.25"
    " --batch-size 16 --learning-starts 64 --steps 1024 --checkpoints 16 --host-resets 16 --episodes 2"
    " --frontier 3 --selection-episodes 1"
    " --prune.critic --prune.critic-sparsity 0.5 --prune.tolerance None --prune.sparsity 0.625 --prune.begin 0.1"
    " --prune.end 0.6 --prune.shrink always --no-control"
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: the folder it was started in, its own folder, the command's arguments, what it printed."""

    root: Path
    path: Path
    arguments: list[str]
    output: str

    def again(self, *arguments: str) -> str:
        """Gives the command again, in this process, with further arguments; returns its standard output."""
        output = io.StringIO()
        with contextlib.chdir(self.root), contextlib.redirect_stdout(output):
            assert main([*self.arguments, *arguments]) == 0
        return output.getvalue()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[bytes]]:
    """`start(arguments, folder)` starts `python -m prune_rl.cli …` there, its output in the file "output".

    Further keywords are variables of its environment.

    Programs are compiled once per session; with a name as `cache`, once for each name.
    """
    caches = tmp_path_factory.mktemp("compiled")
    environment = os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])}

    def process(
        arguments: list[str], folder: Path, cache: str | None = None, **more: str
    ) -> subprocess.Popen[bytes]:
        own = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(caches / cache)}
        with (folder / "output").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "prune_rl.cli", *arguments],
                cwd=folder,
                env=environment | own | more,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    return process


@pytest.fixture(scope="session")
def train(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[[list[str], Path], Trained]:
    """`train(arguments, folder)` trains in another process to the end."""

    def to_end(arguments: list[str], folder: Path) -> Trained:
        status = start(arguments, folder).wait(TIMEOUT)
        output = (folder / "output").read_text(encoding="utf-8")
        assert status == 0, output
        (path,) = (folder / "runs").iterdir()
        return Trained(folder, path, arguments, output)

    return to_end


@pytest.fixture(scope="session")
def jax_run(train: Callable[[list[str], Path], Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three seeds on the device environment, never interrupted."""
    return train([*TINY, "--seeds", "3"], tmp_path_factory.mktemp("jax"))


@pytest.fixture(scope="session")
def host_run(
    train: Callable[[list[str], Path], Trained], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """One seed on Gymnasium's environments, which are reset at every second update, never interrupted."""
    arguments = [*TINY, "--backend", "gymnasium", "--host-resets", "16"]
    return train(arguments, tmp_path_factory.mktemp("gymnasium"))


@pytest.fixture(scope="session")
def sac_run(train: Callable[[list[str], Path], Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """SAC, one seed on Gymnasium's environments with continuous actions, never interrupted."""
    return train(TINY_SAC, tmp_path_factory.mktemp("sac"))
