"""Backward elimination against least squares in NumPy, one fit for every set of neurons that is tried."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.pruning.brain_surgeon import surgeon_importance
from prune_rl.pruning.elimination import elimination_importance
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.ranking import update_masks
from tests.pruning.test_brain_surgeon import (
    GROUPS,
    TINY,
    WIDTHS,
    hidden_of,
    make_params,
    outgoing,
    residual,
)

Array = np.ndarray[Any, Any]
scores_of = jax.jit(partial(elimination_importance, GROUPS, ridge=TINY))


def eliminated(activity: Array, weights: Array, kept: list[int]) -> list[tuple[int, float]]:
    """(neuron, squared error after it and all before it went), each the one whose loss costs least."""
    steps = []
    while kept:
        error, j = min((residual(activity, weights, [k for k in kept if k != j]), j) for j in kept)
        steps.append((j, error))
        kept = [k for k in kept if k != j]
    return steps


@pytest.mark.parametrize("gone", [(), (1, 4)])
@pytest.mark.parametrize("name", WIDTHS)
def test_partial_sums_are_the_relative_error_of_the_best_refit(name: str, gone: tuple[int, ...]) -> None:
    params = make_params()
    hidden = hidden_of(params)
    masks = init_masks(GROUPS)
    masks[name] = masks[name].at[jnp.asarray(gone, int)].set(False)
    scores = np.asarray(scores_of(params, activations=hidden, masks=masks)[name], np.float64)
    activity, kept = np.asarray(hidden[name], np.float64), [j for j in range(WIDTHS[name]) if j not in gone]
    steps = eliminated(activity[:, kept], outgoing(params, name)[kept], list(range(len(kept))))
    whole, highest, sums, last = steps[-1][1], 0.0, 0.0, 0.0
    for j, error in steps:
        highest, last = max(highest, error - last), error
        sums += highest
        assert scores[kept[j]] == pytest.approx(highest / sum_of_increments(steps), rel=2e-3), (j, error)
    assert sums >= whole * (1 - 1e-9)
    assert scores.sum() == pytest.approx(1.0, rel=1e-5)
    assert not scores[list(gone)].any()


def sum_of_increments(steps: list[tuple[int, float]]) -> float:
    """Of errors added by each step, none counted as less than one before it."""
    increments = np.diff([0.0, *(error for _, error in steps)])
    return float(np.maximum.accumulate(increments).sum())


def test_of_two_neurons_that_stand_in_for_each_other_one_is_worth_what_both_are() -> None:
    """Where scores of single neurons see two that cost nothing, and would remove both."""
    params = make_params()
    first = {leaf: value.at[..., 1].set(value[..., 0]) for leaf, value in params["first"].items()}
    params = {**params, "first": first}
    hidden, masks = hidden_of(params), init_masks(GROUPS)
    alone = surgeon_importance(GROUPS, params, activations=hidden, masks=masks, ridge=TINY)["first"]
    together = scores_of(params, activations=hidden, masks=masks)["first"]
    assert np.all(np.asarray(alone[:2]) < 1e-3 * np.asarray(alone[2:]).min())
    assert together[0] < 1e-3, "the first of the two goes for nothing"
    assert together[1] > 0.1 * together[2:].min(), "the second does not"


def test_a_threshold_on_the_share_bounds_the_error_after_the_refit() -> None:
    params = make_params(3)
    hidden, masks = hidden_of(params), init_masks(GROUPS)
    scores = scores_of(params, activations=hidden, masks=masks)
    seen = set()
    for threshold in (0.0, 0.01, 0.05, 0.2, 0.5, 1.0):
        new = update_masks(masks, scores, 1.0, energy=jnp.float32(threshold), min_width=0)
        for name in WIDTHS:
            activity, weights = np.asarray(hidden[name], np.float64), outgoing(params, name)
            kept = np.flatnonzero(new[name]).tolist()
            error = residual(activity, weights, kept) / residual(activity, weights, [])
            assert error <= threshold + 1e-4, (name, threshold, error)
            seen.add(len(kept))
    assert {0} < seen, "and the threshold decides how many go"


def test_neurons_that_feed_nothing_cost_nothing() -> None:
    params = make_params()
    params["mean"]["kernel"] = jnp.zeros_like(params["mean"]["kernel"])
    params["value"]["kernel"] = jnp.zeros_like(params["value"]["kernel"])
    scores = scores_of(params, activations=hidden_of(params), masks=init_masks(GROUPS))
    assert not np.asarray(scores["second"]).any()
    assert np.isfinite(np.asarray(scores["first"])).all()


def test_it_needs_activations() -> None:
    with pytest.raises(ValueError, match="'elimination' needs activations"):
        elimination_importance(GROUPS, make_params())
