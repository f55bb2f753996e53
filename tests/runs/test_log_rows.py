"""Lines of the log: one update as it is, several of them as one."""

from __future__ import annotations

import copy
import time
from typing import Any

import jax
import numpy as np
import pytest

from prune_rl.runs.log_rows import joined, record, without_placeholders

NAN = np.nan
F = np.float32


def report(width: list[int], threshold: list[float], removed: list[float], nans: list[int]) -> dict[str, Any]:
    return {
        "width": np.array(width, np.int32),
        "threshold": np.array(threshold, F),
        "removed_importance": np.array(removed, F),
        "nan_scores": np.array(nans, np.int32),
    }


# Three updates of two seeds, the first of them a warm-up without losses.
ROWS: list[dict[str, Any]] = [
    {
        "return": np.array([10.0, NAN], F),
        "episodes": np.array([1, 0], np.int32),
        "critic_loss": np.array([NAN, NAN], F),
        "running_return": np.array([10.0, NAN], F),
        "prune": {"actor/layer_0": report([8, 8], [0.0, 0.0], [0.0, 0.0], [0, 0])},
    },
    {
        "return": np.array([20.0, NAN], F),
        "episodes": np.array([3, 0], np.int32),
        "critic_loss": np.array([1.0, NAN], F),
        "running_return": np.array([18.0, NAN], F),
        "prune": {"actor/layer_0": report([6, 8], [0.5, 0.0], [0.25, 0.0], [2, 0])},
    },
    {
        "return": np.array([NAN, 5.0], F),
        "episodes": np.array([0, 2], np.int32),
        "critic_loss": np.array([3.0, 7.0], F),
        "running_return": np.array([18.0, 5.0], F),
        "prune": {"actor/layer_0": report([5, 8], [0.25, 0.0], [0.125, 0.0], [1, 0])},
    },
]


def as_computed(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a learner computes it: 0 where there is no value, and the counts beside it that say so."""
    counts = {
        "gradient_steps": np.where(np.isnan(row["critic_loss"]), 0, 3).astype(np.int32),
        "total_episodes": np.where(np.isnan(row["running_return"]), 0, 5).astype(np.int32),
        "prune_progress": np.array([0.0, 0.5], F),
    }
    return {name: value if name == "prune" else np.nan_to_num(value) for name, value in row.items()} | counts


@pytest.mark.parametrize("row", ROWS)
def test_zeros_that_stand_for_no_value_become_nan(row: dict[str, Any]) -> None:
    computed = as_computed(row)
    found = without_placeholders(computed)
    assert_same({name: found[name] for name in row}, row)
    for name in ("gradient_steps", "total_episodes", "prune_progress"):
        np.testing.assert_array_equal(found[name], computed[name])


def test_counts_and_progress_of_several_updates() -> None:
    found = joined([without_placeholders(as_computed(row)) for row in ROWS])
    np.testing.assert_array_equal(found["gradient_steps"], [6, 3])
    np.testing.assert_array_equal(found["total_episodes"], [5, 5])
    np.testing.assert_array_equal(found["prune_progress"], [0.0, 0.5])


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[name])
        else:
            np.testing.assert_array_equal(value, right[name])


def test_several_updates_as_one() -> None:
    assert_same(
        joined(ROWS),
        {
            "return": np.array([17.5, 5.0], F),  # over episodes, not over updates
            "episodes": np.array([4, 2], np.int32),
            "critic_loss": np.array([2.0, 7.0], F),
            "running_return": np.array([18.0, 5.0], F),
            "prune": {"actor/layer_0": report([5, 8], [0.5, 0.0], [0.375, 0.0], [2, 0])},
        },
    )


@pytest.mark.parametrize("row", ROWS)
def test_one_update_is_itself(row: dict[str, Any]) -> None:
    assert_same(joined([row]), row)


@pytest.mark.parametrize("split", [1, 2])
def test_returns_and_pruning_can_be_joined_in_portions(split: int) -> None:
    whole, portions = joined(ROWS), joined([joined(ROWS[:split]), joined(ROWS[split:])])
    for name in ("return", "episodes", "running_return"):
        np.testing.assert_array_equal(portions[name], whole[name])
    assert_same(portions["prune"], whole["prune"])


def test_where_nothing_has_a_value_there_is_none() -> None:
    """And NumPy does not warn of it; its warnings are errors here."""
    rows = [{**ROWS[0], "return": np.array([NAN, NAN], F), "episodes": np.array([0, 0], np.int32)}] * 2
    found = joined(rows)
    assert np.isnan(found["return"]).all()
    assert np.isnan(found["critic_loss"]).all()
    assert found["episodes"].tolist() == [0, 0]


def test_the_rows_are_left_as_they_were() -> None:
    rows = copy.deepcopy(ROWS)
    jax.tree.map(lambda x: x.fill(99), joined(rows))
    jax.tree.map(np.testing.assert_array_equal, rows, ROWS)


def test_means_are_taken_in_float64_and_keep_their_type() -> None:
    rows = [{"loss": np.array([x], F)} for x in (2.0**24, 1.0, 1.0)]
    found = joined(rows)["loss"]
    assert found.dtype == F
    assert found.tolist() == [(2.0**24 + 2) / 3]


def test_a_line_has_a_list_over_seeds_for_every_scalar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 12.5)
    line = record(joined(ROWS), 12, start=10.0)
    assert line.pop("wall_time") == 2.5
    assert line == {
        "iteration": 12,
        "return": [17.5, 5.0],
        "episodes": [4, 2],
        "critic_loss": [2.0, 7.0],
        "running_return": [18.0, 5.0],
        "widths": {"actor/layer_0": [5, 8]},
        "threshold": {"actor/layer_0": [0.5, 0.0]},
        "removed_importance": {"actor/layer_0": [0.375, 0.0]},
        "nan_scores": {"actor/layer_0": [2, 0]},
    }


def test_without_pruning_a_line_has_no_widths() -> None:
    row = {name: value for name, value in ROWS[1].items() if name != "prune"}
    assert_same(joined([row, row]), {**row, "episodes": np.array([6, 0], np.int32)})
    assert set(record(row, 1, 0.0)) == {"iteration", "wall_time", *row}
