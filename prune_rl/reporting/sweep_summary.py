"""sweep.md, sweep.json and sweep.png of a sweep: what each of its runs reached, over its seeds.

sweep.json is an object {"runs": [run, …]}:

    run: {"name": str, "seeds": {seed: seed's result}, "missing": {seed: why it has no policy},
          "mean": float, "mean_interval": [low, high] or null, "iqm": float, "iqm_interval": [low, high] or null}
    seed's result: {"return": float, "neurons": int, "dense": float (where there is a dense control)}

A run none of whose seeds has a policy has neither mean nor iqm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.reporting.statistics import (
    Interval,
    interquartile_interval,
    interquartile_mean,
    mean,
    t_interval,
)
from prune_rl.reporting.sweep_plot import draw_sweep
from prune_rl.reporting.tables import span, table
from prune_rl.runs.config_file import read_config
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.runs.faults_file import read_faults

Result = Mapping[str, Any]


def write_sweep(home: str | os.PathLike[str], runs: Sequence[tuple[str, Path]]) -> Path:
    """Writes the three files into the folder `home`; returns the path of sweep.md.

    Args:
      home: the folder of the sweep.
      runs: name and run directory of each.

    Raises:
      ValueError: one of the runs is no run directory, or a file in it is damaged.
    """
    path = Path(home)
    config = read_config(runs[0][1])
    results = [_result(name, run) for name, run in runs]
    title = f"{config['env']}, {config['algo'].upper()}, {config['method']}: {len(runs)} run" + (
        "s" * (len(runs) > 1)
    )
    write_json(path / "sweep.json", {"runs": results})
    parts = [f"# {title}", _table(results), _note(config)]
    if any(result["seeds"] for result in results):
        write_bytes(path / "sweep.png", draw_sweep(title, results))
        parts.append("![return of each run](sweep.png)")
    parts += ["## Each seed", _seeds_table(results)]
    for result in results:
        parts += [
            f"**{result['name']}, seed {seed}, has no policy**: {sentence}."
            for seed, sentence in result["missing"].items()
        ]
    write_bytes(path / "sweep.md", ("\n\n".join(parts) + "\n").encode())
    return path / "sweep.md"


def _result(name: str, run: Path) -> dict[str, Any]:
    config, missing = read_config(run), {str(seed): text for seed, text in read_faults(run).items()}
    seeds: dict[str, Any] = {}
    for entry in read_evaluation(run)["seeds"] if (run / "evaluation.json").exists() else []:
        policy = own_policy(entry)
        if policy is not None:
            each = {"return": mean(policy["returns"]), "neurons": policy["neurons"]["kept"]}
            if config["method"] != "dense" and "dense" in entry["policies"]:
                each["dense"] = mean(entry["policies"]["dense"]["returns"])
            seeds[str(entry["seed"])] = each
    result: dict[str, Any] = {"name": name, "seeds": seeds, "missing": missing}
    if seeds:
        returns = np.array([each["return"] for each in seeds.values()], np.float64)
        result |= {"mean": float(np.mean(returns)), "mean_interval": t_interval(returns)}
        result |= {"iqm": interquartile_mean(returns), "iqm_interval": interquartile_interval([returns])}
    return result


def _table(results: Sequence[Result]) -> str:
    with_dense = any("dense" in each for result in results for each in result["seeds"].values())
    heads = ["run", "seeds", "mean return", "95% t interval", "IQM", "95% bootstrap interval"]
    heads += ["hidden neurons left", *["dense control"] * with_dense]
    rows = []
    for result in results:
        seeds = result["seeds"].values()
        number = f"{len(seeds)} of {len(seeds) + len(result['missing'])}"
        if not seeds:
            rows.append([result["name"], number, *["-"] * (len(heads) - 2)])
            continue
        neurons = [each["neurons"] for each in seeds]
        cells = [f"{result['mean']:.1f}", _interval(result["mean_interval"])]
        cells += [f"{result['iqm']:.1f}", _interval(result["iqm_interval"])]
        cells.append(f"{mean(neurons):.1f} ({span(min(neurons), max(neurons))})")
        dense = [each["dense"] for each in seeds if "dense" in each]
        cells += [f"{mean(dense):.1f}" if dense else "-"] * with_dense
        rows.append([result["name"], number, *cells])
    return table(heads, rows)


def _note(config: Mapping[str, Any]) -> str:
    return (
        f"Of each seed the mean return over {config['episodes']} episodes counts. IQM is the interquartile mean over "
        "seeds, the mean of the middle half of them, with a bootstrap over the seeds of each run by itself (Agarwal et "
        "al. 2021); of fewer than four seeds it is their mean. A seed without a policy is left out."
    )


def _seeds_table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        each = [
            f"{seed}: {one['return']:.1f} ({one['neurons']})"
            for seed, one in sorted(result["seeds"].items(), key=lambda item: int(item[0]))
        ]
        rows.append([result["name"], ", ".join(each) or "-"])
    return table(["run", "seed: return (hidden neurons left)"], rows, text_columns=2)


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
