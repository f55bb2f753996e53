"""Lines of the log: what one update measured, or several of them in one line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# What each of these is a mean over; other floats are means over the update's gradient steps.
COUNTS = {"return": "episodes", "running_return": "total_episodes"}


def without_placeholders(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics [..., S] of a learner's update with NaN where it returns 0 for want of a value.

    A learner computes no NaN, so that ``JAX_DEBUG_NANS`` can be used: a mean over no episode, or over no gradient step
    as in SAC's warm-up, is 0 there, and the count beside it says so.
    """
    steps = metrics.get("gradient_steps")

    def known(name: str, value: Any) -> Any:
        array = np.asarray(value)
        count = metrics.get(COUNTS[name]) if name in COUNTS else steps
        if (
            name.startswith(("prune", "distillation"))
            or count is None
            or not np.issubdtype(array.dtype, np.floating)
        ):
            return value
        return np.where(np.asarray(count) > 0, array, np.nan).astype(array.dtype)

    return {
        name: value if isinstance(value, Mapping) else known(name, value) for name, value in metrics.items()
    }


def record(metrics: Mapping[str, Any], update: int, start: float) -> dict[str, Any]:
    """One line of the log from one update's metrics [S]; every scalar is a list over seeds."""
    prune = metrics.get("prune", {})
    result: dict[str, Any] = {"iteration": update, "wall_time": round(time.monotonic() - start, 3)}
    result |= {name: value.tolist() for name, value in metrics.items() if name != "prune"}
    if prune:
        for key, name in (
            ("widths", "width"),
            ("threshold", "threshold"),
            ("removed_importance", "removed_importance"),
            ("nan_scores", "nan_scores"),
        ):
            result[key] = {group: report[name].tolist() for group, report in prune.items()}
    return result


def joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics [S] of consecutive updates as those of one, which they are where there is one only.

    The return is the mean over all episodes, losses and the like are means over the updates that had a value (SAC's
    warm-up has none), and of what describes a state the last one counts.
    """
    if len(rows) == 1:
        return dict(rows[0])
    stacked: dict[str, Any] = jax.tree.map(lambda *x: np.stack(x), *with_equal_names(rows))
    result: dict[str, Any] = {name: _mean(value) for name, value in stacked.items() if name != "prune"}
    if "episodes" in stacked:
        result["episodes"] = stacked["episodes"].sum(0)
        result["return"] = _mean(stacked["return"], stacked["episodes"])
    for name in ("running_return", "total_episodes", "prune_progress"):
        if name in stacked:
            result[name] = stacked[name][-1]
    if "gradient_steps" in stacked:
        result["gradient_steps"] = stacked["gradient_steps"].sum(0)
    if "prune" in stacked:
        over = {"width": _last, "threshold": _max, "removed_importance": _sum, "nan_scores": _max}
        result["prune"] = {
            group: {name: over[name](value) for name, value in report.items()}
            for group, report in stacked["prune"].items()
        }
    return result


def with_equal_names(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with 0 for what only others have: a part of the loss that starts while training goes on.

    Of each row all values have the same leading axis, which may differ from that of another row.
    """
    names = {name: row[name] for row in rows for name in row}

    def zeros(row: Mapping[str, Any]) -> dict[str, Any]:
        length = len(jax.tree.leaves(row)[0])
        missing = {name: value for name, value in names.items() if name not in row}
        filled: dict[str, Any] = jax.tree.map(lambda x: np.zeros((length, *x.shape[1:]), x.dtype), missing)
        return filled

    return [{**row, **zeros(row)} for row in rows]


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over axis 0 of what is not NaN, NaN where there is nothing; in float64, then the dtype of ``values``."""
    known = ~np.isnan(values)
    weight = known * (np.ones_like(values) if weights is None else weights).astype(np.float64)
    total = weight.sum(0)
    mean = np.sum(np.where(known, values, 0.0) * weight, axis=0) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, mean, np.nan).astype(values.dtype)


def _last(values: np.ndarray) -> np.ndarray:
    last: np.ndarray = values[-1]
    return last


def _max(values: np.ndarray) -> np.ndarray:
    highest: np.ndarray = values.max(0)
    return highest


def _sum(values: np.ndarray) -> np.ndarray:
    total: np.ndarray = values.sum(0)
    return total
