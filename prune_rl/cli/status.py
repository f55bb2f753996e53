"""The command `prune-rl status`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg


@dataclasses.dataclass(frozen=True)
class Status:
    """Show how the jobs of a grid are: done, running, queued, waiting, stopped or failed, and the time left.

    It reads files of the grid's folder, so that it works while the grid runs and after, whatever engine runs it. Jobs
    that are stopped were interrupted or killed, and go on when prune-rl launch is given again.
    """

    spec: Annotated[Positional[Path], arg(metavar="SPEC")]
    """TOML file of the grid."""
    output: Path | None = None
    """Folder of the grid, if it was launched with --output."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    options = tyro.cli(Status, prog="prune-rl status", args=arguments)
    from prune_rl.launch.grid import read_grid
    from prune_rl.launch.spec import folder_of, read_spec
    from prune_rl.launch.states import states_of
    from prune_rl.launch.status import problems, status_table, summary_line

    spec = read_spec(options.spec)
    grid = read_grid(folder_of(options.spec, spec, options.output), f"give `prune-rl launch {options.spec}`")
    queued: set[str] = set()
    if any((grid.folder(job).submission() or {}).get("cluster") == "slurm" for job in grid.jobs):
        from prune_rl.launch.slurm import queued_jobs

        queued = queued_jobs(grid)
    states = states_of(grid, queued)
    lines = [status_table(states), "", summary_line(states), *problems(states)]
    if grid.results.exists():
        lines.append(f"results {grid.path / 'results.md'}")
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    return 0
