"""What every engine offers to the launcher, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from prune_rl.launch.grid import Grid, Job
from prune_rl.launch.spec import EngineOptions


class Engine(Protocol):
    """Starts processes and waits for them. What became of a job is read from its folder."""

    @property
    def capacity(self) -> int | None:
        """Jobs at a time; None if the engine has a queue of its own, which takes all at once."""

    @property
    def in_background(self) -> bool:
        """Whether jobs go on when the launcher ends, so that it need not wait."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs, or put them into the queue. Raises ``ValueError`` with a sentence where that cannot work."""

    def active(self) -> set[str]:
        """The names of jobs that this engine has and that have not ended."""

    def stop(self) -> None:
        """End all jobs that would not go on without the launcher, and wait for that; ``KeyboardInterrupt`` is held off.

        Their training goes on from its last checkpoint when it is started again.
        """

    def close(self) -> None:
        """Free what the engine holds. Jobs have ended, or run in the background."""


def make_engine(options: EngineOptions, grid: Grid, say: Callable[[str], None]) -> Engine:
    """The engine ``options.kind``; raises ``ValueError`` if its package is missing or its options cannot work.

    Args:
        options: the table [engine].
        grid: whose jobs it runs.
        say: takes a sentence about where jobs run.
    """
    if options.kind == "slurm":
        from prune_rl.launch.slurm import SlurmEngine

        return SlurmEngine(options, grid, say)
    if options.kind == "ray":
        from prune_rl.launch.ray_cluster import RayEngine

        return RayEngine(options, grid, say)
    from prune_rl.launch.local import LocalEngine

    return LocalEngine(options, grid, say)
