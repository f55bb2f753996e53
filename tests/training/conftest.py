"""Tiny training runs, shared by the tests of this folder: made through the command line, once per session."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import prune_rl
from prune_rl.cli import main

# 32 updates, a checkpoint after every second one; pruning from the fourth to the twentieth. 4 · 32 steps per update.
TINY = (
    "train CartPole-v1 --hidden 16 16 --num-envs 4 --num-steps 32 --steps 4000 --checkpoints 16 --episodes 3"
    " --prune.critic --prune.sparsity 0.8 --no-control"
).split()
ARGUMENTS = {
    "jax": [*TINY, "--seeds", "3"],
    "gymnasium": [*TINY, "--backend", "gymnasium"],
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its folder, the command's arguments, what it printed."""

    path: Path
    arguments: list[str]
    output: str


def run_here(arguments: list[str], folder: Path) -> str:
    """`prune-rl` in this process, in `folder`; returns its standard output."""
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        assert main(arguments) == 0
    return output.getvalue()


@pytest.fixture(scope="session")
def train_here() -> Callable[[list[str], Path], Trained]:
    """Runs `prune-rl train …` in this process, in the given folder, which then has one run more."""

    def train(arguments: list[str], folder: Path) -> Trained:
        runs = folder / "runs"
        before = set(runs.iterdir()) if runs.exists() else set()
        output = run_here(arguments, folder)
        (path,) = set(runs.iterdir()) - before
        return Trained(path, arguments, output)

    return train


@pytest.fixture(scope="session")
def jax_run(
    train_here: Callable[[list[str], Path], Trained], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Three seeds on the device environment, never interrupted."""
    return train_here(ARGUMENTS["jax"], tmp_path_factory.mktemp("jax"))


@pytest.fixture(scope="session")
def host_run(
    train_here: Callable[[list[str], Path], Trained], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """One seed on Gymnasium's environments, never interrupted."""
    return train_here(ARGUMENTS["gymnasium"], tmp_path_factory.mktemp("gymnasium"))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    """Starts `python -m prune_rl.cli …` in a folder, its output in that folder's file "output".

    The processes share compiled programs with each other, not with the uninterrupted runs: those compile their own.
    """
    environment = os.environ | {
        "PYTHONPATH": str(Path(prune_rl.__file__).parents[1]),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def process(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
        with (folder / "output").open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "prune_rl.cli", *arguments],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    return process


@pytest.fixture(scope="session")
def train_again() -> Callable[[Trained], str]:
    """Gives a run's command again, in this process; returns what it prints."""
    return lambda trained: run_here(trained.arguments, trained.path.parents[1])
