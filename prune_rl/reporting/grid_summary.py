"""results.md and results.json of a grid: what each method reached in each environment, over its seeds.

results.json is an object {"cells": [cell, …], "missing": [job, …]} that depends on the runs alone, not on where or when
they were made:

    cell: {"env": str, "algo": str, "method": str, "seeds": {seed: seed's result}, "missing": {seed: why no policy},
           "mean": float, "mean_interval": [low, high] or null, "neurons": float, "bytes": float,
           "difference": {"mean": float, "interval": [low, high] or null, "unit": "seeds" or "episodes"} or null}
    seed's result: {"return": float, "neurons": int, "bytes": int, "widths": [int], "dense": float (if there is one)}
    job: the name of a job that is not done

A cell none of whose seeds has a policy has neither mean, neurons, bytes nor difference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.reporting.compare_runs import aggregate
from prune_rl.reporting.statistics import Interval, difference_to_dense, mean, t_interval
from prune_rl.reporting.tables import number, signed, span, table
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.runs.faults_file import read_faults

Cell = tuple[str, str, str]
Result = Mapping[str, Any]


def write_results(
    folder: str | os.PathLike[str], cells: Mapping[Cell, Sequence[Path]], missing: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Write the two files into ``folder``; returns the cells of results.json.

    Args:
        folder: of the grid.
        cells: {(environment, learner, method): run directories}, in the order of the table.
        missing: names of jobs that are not done.

    Raises:
        ValueError: one of the runs is no run directory, or a file in it is damaged.
    """
    path = Path(folder)
    results = [_result(cell, runs) for cell, runs in cells.items()]
    write_json(path / "results.json", {"cells": results, "missing": sorted(missing)})
    write_bytes(path / "results.md", _page(results, cells, missing).encode())
    return results


def results_table(results: Sequence[Result]) -> str:
    """Environment × method: return with interval, difference to the dense control, neurons and bytes."""
    heads = ["environment", "learner", "method", "seeds", "mean return", "95% t interval", "minus dense"]
    heads += ["neurons left", "bytes"]
    return table(heads, [_row(result) for result in results], text_columns=3)


def _result(cell: Cell, runs: Sequence[Path]) -> dict[str, Any]:
    env, algo, method = cell
    entries = sorted(
        (
            entry
            for run in runs
            if (run / "evaluation.json").exists()
            for entry in read_evaluation(run)["seeds"]
        ),
        key=lambda entry: int(entry["seed"]),
    )
    missing = {str(seed): reason for run in runs for seed, reason in read_faults(run).items()}
    seeds: dict[str, Any] = {}
    for entry in entries:
        policy = own_policy(entry)
        if policy is None:
            continue
        each = {
            "return": mean(policy["returns"]),
            "neurons": policy["neurons"]["kept"],
            "bytes": policy["bytes"],
            "widths": list(policy["widths"]),
        }
        if method != "dense" and "dense" in entry["policies"]:
            each["dense"] = mean(entry["policies"]["dense"]["returns"])
        seeds[str(entry["seed"])] = each
    result: dict[str, Any] = {"env": env, "algo": algo, "method": method, "seeds": seeds, "missing": missing}
    if seeds:
        returns = np.array([each["return"] for each in seeds.values()], np.float64)
        result |= {"mean": float(np.mean(returns)), "mean_interval": t_interval(returns)}
        result |= {key: mean([each[key] for each in seeds.values()]) for key in ("neurons", "bytes")}
        found = None if method == "dense" else difference_to_dense(entries, "compact")
        result["difference"] = (
            None if found is None else {"mean": found.mean, "interval": found.interval, "unit": found.unit}
        )
    return result


def _page(results: Sequence[Result], cells: Mapping[Cell, Sequence[Path]], missing: Sequence[str]) -> str:
    done = [run for runs in cells.values() for run in runs if (run / "evaluation.json").exists()]
    parts = ["# Results of the grid", results_table(results), _NOTE]
    for result in results:
        parts += [
            f"**{result['env']} {result['algo']} {result['method']}, seed {seed}, has no policy**: {reason}."
            for seed, reason in result["missing"].items()
        ]
    if missing:
        parts.append(f"**Not done, and left out**: {', '.join(sorted(missing))}.")
    if any(result["seeds"] for result in results):
        parts.append(aggregate(done).rstrip("\n"))
    return "\n\n".join(parts) + "\n"


_NOTE = (
    "Of each seed the mean return over its evaluation episodes counts. Intervals over seeds are Student's t; there is "
    "none for one seed, or where all seeds are equal. *minus dense* is the paired difference to the dense control of "
    "the same seeds and episodes; of a single seed its interval is a bootstrap over episodes. Neurons and bytes are "
    "those of the policy file, means over seeds with their range."
)


def _row(result: Result) -> list[str]:
    seeds = list(result["seeds"].values())
    head = [result["env"], result["algo"], result["method"]]
    head.append(
        f"{len(seeds)} of {len(seeds) + len(result['missing'])}" if result["missing"] else str(len(seeds))
    )
    if not seeds:
        return [*head, *["-"] * 5]
    difference = result["difference"]
    return [
        *head,
        f"{result['mean']:.1f}",
        _interval_text(result["mean_interval"]),
        "-" if difference is None else _difference_text(difference),
        *(_mean_text([each[key] for each in seeds]) for key in ("neurons", "bytes")),
    ]


def _interval_text(interval: Interval | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def _difference_text(difference: Mapping[str, Any]) -> str:
    interval = difference["interval"]
    return signed(difference["mean"]) + (f" [{', '.join(map(signed, interval))}]" if interval else "")


def _mean_text(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(round(mean(values), 1))} ({span(low, high)})"
