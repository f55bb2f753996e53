"""The command `prune-rl choose`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional, arg


@dataclasses.dataclass(frozen=True)
class Choose:
    """Make another of the policies that a run kept while it narrowed the one in its folder policy/, and evaluate it.

    Give one of the four conditions. frontier.png in the run's folder shows what there is to choose from.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run directory."""
    neurons: int | None = None
    """The best policy with at most so many hidden neurons."""
    bytes: int | None = None
    """The best policy of at most so many bytes."""
    least_return: Annotated[float | None, arg(name="return")] = None
    """The smallest policy that returns at least so much."""
    tolerance: float | None = None
    """The smallest policy that loses at most this share of the dense control's return, or of the run's best return
    where there is no control."""
    trust: bool = False
    """Import the Python module of an environment module:Name-v0 that the run names."""
    env: str | None = None
    """The environment that the run must name; a module in it is trusted."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    options = tyro.cli(Choose, prog="prune-rl choose", args=arguments)
    from prune_rl.reporting.frontier_choice import Wish
    from prune_rl.training.run_evaluation import choose_run
    from prune_rl.training.trust import Trust

    wish = Wish(options.tolerance, options.neurons, options.bytes, options.least_return)
    choose_run(options.run, wish, console, Trust(options.trust, options.env))
    return 0
