"""Grids of tiny runs."""

from __future__ import annotations

import textwrap
from pathlib import Path

from prune_rl.launch.grid import Job

# A run of some seconds. With 8·8 neurons most of them are imports and compilation.
OPTIONS = """
[options]
steps = 8192
hidden = [8, 8]
num_envs = 4
num_steps = 64
update_epochs = 1
episodes = 2
checkpoints = 8
frontier = 0
"""
BOTH = '[grid]\nenv = "CartPole-v1"\nmethod = ["dynamic", "dense"]\n' + OPTIONS
DENSE = '[grid]\nenv = "CartPole-v1"\nmethod = "dense"\n' + OPTIONS
# submitit's local executor.
SUBMITIT = '\n[engine]\nkind = "slurm"\n[engine.slurm]\ncluster = "local"\n'


def write_spec(text: str, name: str = "grid.toml") -> Path:
    """A grid's file in the working directory."""
    path = Path(name)
    path.write_text(textwrap.dedent(text))
    return path


def job(
    env: str = "CartPole-v1",
    method: str = "dense",
    seed: int = 0,
    control: str | None = None,
    steps: int = 1000,
) -> Job:
    """A job that no test runs."""
    name = f"{env}-ppo-{method}-seed{seed}"
    return Job(name, env, "ppo", method, seed, 1, steps, control, (env, "--seed", str(seed)))
