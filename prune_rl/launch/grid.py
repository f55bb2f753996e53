"""The folder of a grid.

grid.json               its jobs, as they were launched last
results.md, .json       what finished jobs reached
runs/NAME/              a run directory per job, and those of dense controls
jobs/NAME/              what its process leaves, see ``job_folder``

Paths are relative to that folder.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from cattrs.errors import BaseValidationError

from prune_rl.atomic_files import write_json
from prune_rl.launch.job_folder import JobFolder
from prune_rl.runs.json_text import read_object
from prune_rl.runs.strict_tables import first_error, strict_converter


@dataclasses.dataclass(frozen=True)
class Job:
    """One `prune-rl train` command.

    Attributes:
        name: of its folders.
        env, algo, method, seed, seeds: what it trains.
        steps: environment steps per seed.
        control: the name of the dense control's run directory; None if it has none, or is dense.
        arguments: the words after `prune-rl train`.
    """

    name: str
    env: str
    algo: str
    method: str
    seed: int
    seeds: int
    steps: int
    control: str | None
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command, as it would be typed."""
        return shlex.join(["prune-rl", "train", *self.arguments])

    @property
    def title(self) -> str:
        """What it trains, for messages."""
        seeds = f"seed {self.seed}" if self.seeds == 1 else f"seeds {self.seed}–{self.seed + self.seeds - 1}"
        return f"{self.env} {self.algo} {self.method}, {seeds}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid's folder and its jobs."""

    path: Path
    jobs: tuple[Job, ...]

    @property
    def results(self) -> Path:
        """The numbers of the results table."""
        return self.path / "results.json"

    def run(self, job: Job) -> Path:
        """The job's run directory."""
        return runs_of(self.path) / job.name

    def control(self, job: Job) -> Path | None:
        """The run directory of the job's dense control, if it has one."""
        return None if job.control is None else runs_of(self.path) / job.control

    def folder(self, job: Job) -> JobFolder:
        """What the job's process leaves."""
        return JobFolder(self.path / "jobs" / job.name)

    def write(self, directory: Path) -> None:
        """Write grid.json, and what each job's process needs; ``directory`` is where its command is to be given."""
        for job in self.jobs:
            self.folder(job).write_command(job.arguments, directory, self.run(job))
        jobs = [dataclasses.asdict(job) for job in self.jobs]
        write_json(self.path / "grid.json", {"jobs": json.loads(json.dumps(jobs))})


def runs_of(path: Path) -> Path:
    """The folder of the run directories in that of a grid."""
    return path / "runs"


def read_grid(path: Path, remedy: str) -> Grid:
    """The grid whose folder is ``path``; raises ``ValueError``, ending in ``remedy``, if nothing was launched there."""
    file = path / "grid.json"
    try:
        jobs: Any = strict_converter().structure(read_object(file)["jobs"], tuple[Job, ...])
    except FileNotFoundError:
        raise ValueError(f"nothing was launched in {path} yet: {remedy}") from None
    except BaseValidationError as error:
        raise ValueError(f"{file} is damaged ({first_error(error)}): {remedy}") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}): {remedy}") from error
    return Grid(path, tuple(jobs))
