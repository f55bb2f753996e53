"""Which modules a run directory may have imported: its configuration names the one that its environment comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prune_rl.runs.directory import RunDirectoryError


@dataclasses.dataclass(frozen=True)
class Trust:
    """Whether the module that a run's environment comes from may be imported.

    Attributes:
        given: whatever module it is.
        env: the environment that is expected, which may be imported if the run names the same.
    """

    given: bool = False
    env: str | None = None

    def check(self, run: Path, env: str) -> None:
        """Raise ``RunDirectoryError`` if the run names another environment than expected, or a module without trust."""
        if self.env is not None and self.env != env:
            raise RunDirectoryError(f"{run} was trained in {env!r}, not in {self.env!r}")
        module = env.rpartition(":")[0]
        if module and not self.given and self.env is None:
            raise RunDirectoryError(
                f"{run} names the environment {env!r}, for which the Python module {module!r} would be imported and "
                f"run: give --trust if you trust the run, or --env {env} if you know the environment"
            )
