"""Run directories as training leaves them, written through the same interfaces, with random numbers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import write_json
from prune_rl.runs.directory import RunDirectory
from prune_rl.runs.logging import MetricsLog

STEPS = 100_000


def policy(widths: list[int], returns: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A measured policy of 4 inputs, two hidden layers and 2 outputs, its sizes computed from its widths."""
    shape, wide = [4, *widths, 2], [4, 256, 256, 2]
    weights = sum((a + 1) * b for a, b in itertools.pairwise(shape))
    total = sum((a + 1) * b for a, b in itertools.pairwise(wide))
    return {
        "returns": [float(value) for value in returns],
        "lengths": [int(value) for value in returns],
        "widths": widths,
        "neurons": {"kept": sum(widths), "total": 512},
        "weights": {"kept": weights, "total": total},
        "macs": sum(a * b for a, b in itertools.pairwise(shape)),
        "bytes": 4 * weights,
        "latency_us": 6.25,
    }


def make_run(
    path: Path,
    seeds: int,
    *,
    first: int = 0,
    method: str = "dynamic",
    control: bool = True,
    episodes: int = 100,
    pace: Sequence[float] | None = (),
    **prune: Any,
) -> Path:
    """One run directory.

    Args:
      path: where.
      seeds: how many.
      first: the first of them.
      method: "dynamic" or "dense".
      control: with a dense control measured beside it.
      episodes: of the evaluation.
      pace: per seed, how fast the pruning schedule advances, 1 as configured (the default); None: the log does not
        record its progress.
      prune: options of pruning.
    """
    rng = np.random.default_rng(first)
    options = {
        "sparsity": 0.975,
        "begin": 0.1,
        "end": 0.6,
        "min_width": 2,
        "scope": "layer",
    } | prune
    config = {
        "env": "CartPole-v1",
        "algo": "ppo",
        "method": method,
        "seed": first,
        "seeds": seeds,
        "evaluation_seed": 1_000_000,
        "episodes": episodes,
        "learner": {
            "total_timesteps": STEPS,
            "hidden": [256, 256],
            "prune": None if method == "dense" else options,
        },
        "command": f"prune-rl train CartPole-v1 --seeds {seeds} --no-control",
    }
    RunDirectory.open(path, config).close()
    log = MetricsLog(path / "metrics.jsonl")
    level = np.full(seeds, 20.0)
    for step in range(1000, STEPS + 1, 1000):
        progress = max((step / STEPS - 0.1) / 0.5, 0)
        share = 0.975 * (1 - (1 - min(progress, 1)) ** 3)
        level = level + 0.06 * (490 - 100 * (0.3 < progress < 0.9) - level) + rng.normal(0, 9, seeds)
        record: dict[str, Any] = {
            "return": level if step > 3000 else [math.nan] * seeds,
            "running_return": level,
        }
        if method != "dense":
            kept = np.ceil(256 * (1 - share))
            record["widths"] = {
                "actor/layer_0": np.full(seeds, kept),
                "actor/layer_1": np.minimum(256, kept + np.arange(seeds)),
            }
            if pace is not None:
                record["prune_progress"] = np.clip(progress * np.array(pace or [1.0] * seeds), 0, 1)
        log.write(step, record)
    log.close()
    entries = []
    for seed in range(first, first + seeds):
        dense = np.minimum(500, rng.normal(495, 9, episodes).round())
        small = np.minimum(500, dense - rng.integers(0, 12, episodes))
        policies = {
            "masked": policy([256, 256], small),
            "compact": policy([7, 7 + seed - first], small),
            "dense": policy([256, 256], dense),
        }
        if method == "dense":
            policies = {"dense": policies["dense"]}
        elif not control:
            del policies["dense"]
        entries.append({"seed": seed, "policies": policies})
    write_json(path / "evaluation.json", {"env_id": "CartPole-v1", "episodes": episodes, "seeds": entries})
    return path


def set_returns(run: Path, value: float) -> None:
    """Gives every policy of a run the same return in every episode."""
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for entry in evaluation["seeds"]:
        for policy in entry["policies"].values():
            policy["returns"] = [value] * evaluation["episodes"]
    write_json(path, evaluation)


def cells(text: str, *start: str) -> list[str]:
    """The cells of the one Markdown row whose first cells are `start`."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row
