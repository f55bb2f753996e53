"""One picture of the frontiers of several runs, with the policies of runs that have none beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prune_rl.reporting.frontier_plot import Series, draw_series, frontier_series
from prune_rl.reporting.pruning_schedule import is_pruned
from prune_rl.reporting.statistics import mean
from prune_rl.runs.config_file import read_config
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.runs.frontier import FRONTIER_FILE, read_frontier


def compare_frontiers(runs: Sequence[str | os.PathLike[str]]) -> bytes:
    """A PNG of return against hidden neurons over several runs.

    A run that kept policies while it narrowed shows them, on the episodes that select; any other one the policies that
    were chosen, on those of its evaluation. A dense run is drawn as a level.

    Raises:
        ValueError: no run is given, one of them is not a run directory or lacks its evaluation, they are of several
            environments, or none of them has a policy but the dense one.
    """
    series: list[Series] = []
    dense: list[float] = []
    environments: dict[str, None] = {}
    for path in map(Path, runs):
        config = read_config(path)
        environments[str(config.get("env", "?"))] = None
        label = f"{str(config.get('algo', '?')).upper()} {config.get('method', '?')}"
        if is_pruned(config) and (path / FRONTIER_FILE).exists():
            series.append(frontier_series(f"{label} ({path.name})", read_frontier(path)))
            continue
        own = [policy for policy in map(own_policy, read_evaluation(path)["seeds"]) if policy is not None]
        if config.get("method") == "dense":
            dense += [mean(policy["returns"]) for policy in own]
        else:
            lines = [[{"neurons": policy["neurons"]["kept"], "returns": policy["returns"]}] for policy in own]
            series.append(Series(f"{label} ({path.name})", lines))
    if len(environments) != 1:
        raise ValueError(
            f"one picture shows one environment, got {', '.join(environments) or 'no run'}: give runs of the same one"
        )
    return draw_series(
        f"{next(iter(environments))}: return against size", series, mean(dense) if dense else None
    )
