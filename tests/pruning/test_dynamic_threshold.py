"""The dynamic threshold against the same equations over whole lists in NumPy, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.pruning.dynamic_threshold import (
    MARGIN,
    VARIANCE_DECAY,
    DynamicThreshold,
    ThresholdState,
    init_threshold,
    new_trial,
    observe,
    raised,
    taken_back,
    verdict,
)

RULES = DynamicThreshold(tolerance=0.1, trial=4.0, patience=3.0)
MASKS = {"a": jnp.ones(3, bool)}
PARAMS = {"a": jnp.arange(3.0)}
Returns = Sequence[tuple[float, float]]  # (mean, weight)


def start(rules: DynamicThreshold = RULES) -> ThresholdState:
    return init_threshold(rules, MASKS, PARAMS)


@functools.partial(jax.jit, static_argnums=0)
def seen(rules: DynamicThreshold, state: ThresholdState, values: jax.Array) -> ThresholdState:
    """The state after all of the (mean, weight) [n, 2]."""
    return jax.lax.scan(lambda s, x: (observe(rules, s, x[0], x[1]), None), state, values)[0]


def watch(state: ThresholdState, returns: Returns, rules: DynamicThreshold = RULES) -> ThresholdState:
    return seen(rules, state, jnp.asarray(returns, jnp.float32))


def oracle(returns: Returns, rules: DynamicThreshold) -> dict[str, float]:
    """Mean, effective number and variance of a trial, with sums over the whole list."""
    known = [(x, w) for x, w in returns if math.isfinite(x) and w > 0]
    x, w = np.array(known, np.float64).T
    after = np.concatenate([np.cumsum(w[::-1])[::-1][1:], [0.0]])  # weight that came after each
    weights = w * (1 - 0.5 / rules.trial) ** after
    variance = 0.0
    for i in range(1, len(x)):
        before = weights[:i] / weights[:i].sum()  # forgetting is the same for all that came before
        n = 1.0 / np.sum(before**2 / w[:i])
        sample = (x[i] - np.sum(before * x[:i])) ** 2 / (1 / w[i] + 1 / n)
        keep = 0.0 if i == 1 else VARIANCE_DECAY ** w[i]
        variance = keep * variance + (1 - keep) * sample
    share = weights / weights.sum()
    return {
        "mean": float(np.sum(share * x)),
        "n": float(1 / np.sum(share**2 / w)),
        "variance": float(variance),
    }


@pytest.mark.parametrize("seed", range(4))
def test_statistics_of_a_trial(seed: int) -> None:
    rng = np.random.default_rng(seed)
    returns: Returns = [(float(rng.normal(50, 9)), float(rng.integers(0, 5))) for _ in range(25)]
    returns = [*returns[:5], (math.nan, 2.0), *returns[5:], (-math.inf, 1.0)]
    state, expected = watch(start(), returns), oracle(returns, RULES)
    assert float(state.mean) == pytest.approx(expected["mean"], rel=1e-5)
    assert float(state.weight) ** 2 / float(state.squares) == pytest.approx(expected["n"], rel=1e-4)
    assert float(state.variance) == pytest.approx(expected["variance"], rel=1e-3)
    assert float(state.waited) == sum(w for x, w in returns if math.isfinite(x))
    after, _ = verdict(RULES, state)
    bound = expected["mean"] - MARGIN * math.sqrt(expected["variance"] / expected["n"])
    assert float(after.reference) == pytest.approx(bound, rel=1e-4)


def test_the_variance_is_that_of_one_episode_however_many_a_mean_is_over() -> None:
    rng, estimates = np.random.default_rng(0), []
    for size in (1, 4, 25):
        means = [(float(rng.normal(0, 10, size).mean()), float(size)) for _ in range(2000)]
        estimates.append(math.sqrt(np.mean([float(watch(start(), means[i : i + 100]).variance)
                                            for i in range(0, 2000, 100)])))  # fmt: skip
    assert estimates == pytest.approx([10, 10, 10], rel=0.15)


def ends(state: ThresholdState, rules: DynamicThreshold = RULES) -> tuple[bool, bool]:
    _, (holds, fails, _) = verdict(rules, state)
    return bool(holds), bool(fails)


def with_reference(value: float) -> ThresholdState:
    return start()._replace(reference=jnp.float32(value), on_trial=jnp.ones((), bool))


def test_a_trial_goes_on_until_enough_episodes_are_known() -> None:
    noisy = with_reference(100.0)._replace(variance=jnp.float32(20.0**2), noise=jnp.float32(20.0**2))
    assert ends(watch(noisy, [(100.0, 3.0)])) == (False, False)
    assert ends(watch(noisy, [(100.0, 3.0), (100.0, 1.0)])) == (True, False)
    assert ends(watch(with_reference(100.0), [(math.nan, 50.0)])) == (False, False)


@pytest.mark.parametrize(("deviation", "holds"), [(0.0, True), (4.9, True), (5.1, False)])
def test_a_quarter_of_a_trial_is_enough_where_noise_is_below_the_tolerance(
    deviation: float, holds: bool
) -> None:
    # Of one episode: two standard errors are 10, a tenth of the return.
    state = with_reference(100.0)._replace(variance=jnp.float32(deviation**2))
    assert ends(watch(state, [(100.0, 0.9)])) == (False, False)
    assert ends(watch(state, [(100.0, 1.0)])) == (holds, False)
    first = start()._replace(variance=jnp.float32(deviation**2))
    assert ends(watch(first, [(100.0, 3.9)])) == (False, False), "nobody knows the noise yet"


@pytest.mark.parametrize(("best", "holds", "falls"), [(100.0, 91.0, 89.0), (-100.0, -109.0, -111.0)])
def test_the_return_holds_within_the_tolerance_and_fails_when_patience_ends(
    best: float, holds: float, falls: float
) -> None:
    assert ends(watch(with_reference(best), [(holds, 4.0)])) == (True, False)
    assert ends(watch(with_reference(best), [(falls, 4.0)])) == (False, False)
    assert ends(watch(with_reference(best), [(falls, 4.0)] * 3)) == (False, True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 10.0, 1e6])
def test_a_return_within_the_noise_of_a_good_policy_holds(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    returns: Returns = [(float(rng.normal(60, 20)), float(rng.integers(1, 4))) for _ in range(12)]
    expected = oracle(returns, RULES)
    margin = MARGIN * math.sqrt(min(expected["variance"], noise**2) / expected["n"])
    lowest = float(
        (expected["mean"] + margin) / (1 - RULES.tolerance)
    )  # of the references that it would miss

    def after(reference: float) -> tuple[bool, bool]:
        return ends(watch(with_reference(reference)._replace(noise=jnp.float32(noise**2)), returns))

    assert after(lowest - 0.1) == (True, False)
    assert after(lowest + 0.1) == (False, True)


def test_the_noise_is_that_of_the_trial_which_set_the_reference() -> None:
    first, _ = verdict(RULES, watch(start(), [(90.0, 1.0), (110.0, 1.0)] * 8))
    assert float(first.noise) == pytest.approx(float(first.variance))
    worse, _ = verdict(RULES, watch(new_trial(first, True), [(0.0, 1.0), (100.0, 1.0)] * 8))
    assert float(worse.variance) > 2 * float(first.variance)
    assert (float(worse.reference), float(worse.noise)) == (float(first.reference), float(first.noise))


def test_it_waits_for_a_return_that_recovers() -> None:
    state = watch(with_reference(100.0), [(40.0, 4.0)])
    assert ends(state) == (False, False)
    assert ends(watch(state, [(100.0, 1.0)] * 40)) == (True, False), "what fell at first is forgotten"


def test_a_reference_is_what_noise_cannot_explain() -> None:
    steady, _ = verdict(RULES, watch(start(), [(100.0, 1.0)] * 8))
    noisy, _ = verdict(RULES, watch(start(), [(60.0, 1.0), (140.0, 1.0)] * 4))
    assert float(steady.reference) == pytest.approx(100.0)
    assert float(noisy.reference) < 85.0


@pytest.mark.parametrize(("returns", "rises"), [(100.0, False), (101.0, False), (112.0, True), (80.0, False)])
def test_a_return_above_the_reference_by_more_than_the_tolerance_still_rises(
    returns: float, rises: bool
) -> None:
    state = watch(with_reference(100.0), [(returns, 4.0)])
    after, ends = verdict(RULES, state)
    assert bool(ends.rises) == rises
    higher = raised(after, MASKS, PARAMS, ends.rises)
    assert float(higher.threshold) == pytest.approx(0.001 if rises else 0.002)


def test_the_first_reference_is_no_rise() -> None:
    _, ends = verdict(RULES, watch(start(), [(100.0, 4.0)]))
    assert (bool(ends.holds), bool(ends.rises)) == (True, False)


def test_the_threshold_rises_while_the_return_holds_up_to_all_there_is() -> None:
    state, seen = start(), []
    for _ in range(12):
        state = raised(state, MASKS, PARAMS)
        seen.append(float(state.threshold))
    assert seen == pytest.approx([min(0.001 * 2**i, 1.0) for i in range(1, 13)])


def test_a_removal_taken_back_lowers_the_threshold_and_how_fast_it_rises() -> None:
    state = start()._replace(
        threshold=jnp.float32(0.4), on_trial=jnp.ones((), bool), reference=jnp.float32(100.0)
    )
    after = taken_back(RULES, state, False)
    assert float(after.threshold) == pytest.approx(0.1)
    assert float(after.growth) == pytest.approx(math.sqrt(2))
    assert (float(after.reference), int(after.taken_back)) == (100.0, 1)


@pytest.mark.parametrize(("untouched", "measured", "lower"), [
    (True, 50.0, 50.0), (True, 95.0, 95.0), (False, 50.0, 90.0), (False, 95.0, 95.0),
])  # fmt: skip
def test_where_nothing_was_removed_the_reference_gives_way(
    untouched: bool, measured: float, lower: float
) -> None:
    state = watch(start()._replace(reference=jnp.float32(100.0)), [(measured, 4.0)] * 3)
    after = taken_back(RULES, state, untouched)
    assert float(after.reference) == pytest.approx(lower)
    assert (float(after.threshold), float(after.growth)) == pytest.approx((0.001, 2.0))
    assert int(after.taken_back) == 0


def test_the_reference_gives_way_no_further_than_noise_explains() -> None:
    returns: Returns = [(40.0, 4.0), (60.0, 4.0)] * 3
    after = taken_back(RULES, watch(start()._replace(reference=jnp.float32(100.0)), returns), True)
    expected = oracle(returns, RULES)
    bound = expected["mean"] - MARGIN * math.sqrt(expected["variance"] / expected["n"])
    assert float(after.reference) == pytest.approx(bound, rel=1e-4)


def test_a_new_trial_knows_nothing_of_the_one_before() -> None:
    state = new_trial(watch(start(), [(5.0, 4.0), (9.0, 4.0)]), True)
    assert (float(state.mean), float(state.weight), float(state.waited)) == (0.0, 0.0, 0.0)
    assert float(state.variance) > 0, "but the noise of an episode stays known"
    assert bool(state.on_trial)


def test_nothing_in_a_state_is_nan() -> None:
    states: list[Any] = [start(), watch(start(), [(math.nan, 1.0), (3.0, 0.0), (3.0, 2.0), (4.0, 1.0)])]
    for state in states:
        for leaf in jax.tree.leaves((state, verdict(RULES, state), taken_back(RULES, state, False))):
            assert not np.isnan(np.asarray(leaf)).any()


def test_a_tolerance_below_zero_is_refused() -> None:
    for tolerance in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance must be a finite number >= 0"):
            dataclasses.replace(RULES, tolerance=tolerance).check()
