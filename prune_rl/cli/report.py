"""The command `prune-rl report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional, arg


@dataclasses.dataclass(frozen=True)
class Report:
    """One table over several runs: returns, what was removed, and paired differences between methods."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Run directories."""
    output: Path | None = None
    """Write the Markdown here too."""
    picture: Path | None = None
    """Draw return against hidden neurons into this PNG: the frontiers of the runs, and the policies of those that have
    none."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    options = tyro.cli(Report, prog="prune-rl report", args=arguments)
    from prune_rl.atomic_files import write_bytes
    from prune_rl.reporting.compare_runs import aggregate

    text = aggregate(list(options.runs))
    console.print(text, markup=False, soft_wrap=True)
    if options.output is not None:
        write_bytes(options.output, text.encode())
    if options.picture is not None:
        from prune_rl.reporting.compare_frontiers import compare_frontiers

        write_bytes(options.picture, compare_frontiers(list(options.runs)))
    return 0
