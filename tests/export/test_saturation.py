"""Weights and observations so large that float32 overflows, and observations with NaN."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.export.actions import Spread
from prune_rl.export.activations import ACTIVATIONS
from prune_rl.export.network import network_outputs
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete

HUGE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BOX = Box((-1.0, -np.inf), (1.0, np.inf), (2,))


def policy_of(values: Any, activation: str, action: Any, normalised: bool, skip: bool, widths: Any) -> Policy:
    """A policy of 2 inputs whose weights are these values, over and over."""
    numbers = itertools.cycle(values)

    def take(*shape: int) -> Any:
        return np.array([next(numbers) for _ in range(int(np.prod(shape)))], np.float32).reshape(shape)

    sizes = (2, *widths, 2)
    layers = tuple((take(a, b), take(b)) for a, b in itertools.pairwise(sizes))
    statistics: Any = {}
    if normalised:
        statistics = {"obs_mean": take(2), "obs_std": np.abs(take(2)) + np.float32(1e-30), "obs_clip": np.inf}
    spread = Spread(take(2), take(sizes[-2], 2)) if isinstance(action, Box) else None
    return Policy(layers, activation, action, **statistics, skip=take(2, 2) if skip else None, spread=spread)


@settings(max_examples=300)
@given(
    values=st.lists(HUGE, min_size=1, max_size=7),
    activation=st.sampled_from(list(ACTIVATIONS)),
    action=st.sampled_from([Discrete(2, 3), BOX]),
    normalised=st.booleans(),
    skip=st.booleans(),
    widths=st.sampled_from([(), (3,), (3, 2, 3)]),
    obs=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2),
)
def test_no_finite_weights_make_an_action_nan(
    values: Any, activation: str, action: Any, normalised: bool, skip: bool, widths: Any, obs: Any
) -> None:
    policy = policy_of(values, activation, action, normalised, skip, widths)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        outputs, acted = policy.outputs(obs), policy(obs)
        drawn = policy.sample(obs, np.random.default_rng(0))
    assert np.isfinite(outputs).all()
    assert np.isfinite(acted).all()
    assert np.isfinite(drawn).all()
    batch = policy.outputs(np.array([obs, [0.0, 0.0], obs], np.float32))
    np.testing.assert_array_equal(batch[0], outputs)
    np.testing.assert_array_equal(batch[1], policy.outputs([0.0, 0.0]))


def test_values_saturate_where_float32_ends() -> None:
    """Two contributions that would be inf - inf: the sum that there is without overflow decides."""
    kernel = np.array([[3e38, 0.0], [0.0, 3e38]], np.float32)
    head = np.array([[2.0, 0.0], [-1.0, 1.0]], np.float32)
    policy = Policy(
        ((kernel, np.zeros(2, np.float32)), (head, np.zeros(2, np.float32))),
        "relu",
        Box((-9.0,) * 2, (9.0,) * 2, (2,)),
    )
    with np.errstate(all="ignore"):
        assert not np.isfinite(network_outputs(policy, np.array([5.0, 5.0], np.float32), policy._clip)).all()
    # 2 · max - max, and max: both beyond the upper bound.
    np.testing.assert_array_equal(policy([5.0, 5.0]), [9.0, 9.0])
    limit = np.finfo(np.float32).max
    np.testing.assert_allclose(policy.outputs([5.0, 5.0]), [limit, limit], rtol=1e-6)
    # The rows that float32 can compute have its bits.
    np.testing.assert_array_equal(
        policy.outputs([[5.0, 5.0], [1e-30, 2e-30]])[1],
        network_outputs(policy, np.array([1e-30, 2e-30], np.float32), policy._clip),
    )


def test_infinite_observations_act_like_very_large_ones() -> None:
    policy = policy_of([0.5, -0.25, 1.5], "relu", BOX, False, False, (3,))
    for sign in (1.0, -1.0):
        large = float(np.finfo(np.float32).max) * sign
        np.testing.assert_array_equal(policy([sign * np.inf, 0.0]), policy([large, 0.0]))


@pytest.mark.parametrize("action", [Discrete(2), BOX])
@pytest.mark.parametrize("widths", [(), (3,), (0,), (3, 0, 2)])
@pytest.mark.parametrize("normalised", [False, True])
def test_an_observation_with_nan_is_an_error(action: Any, widths: Any, normalised: bool) -> None:
    policy = policy_of([0.5, -0.25, 1.5], "tanh", action, normalised, False, widths)
    cases: Any = ([0.0, np.nan], [[0.0, 1.0], [0.0, np.nan]])
    for obs in cases:
        for act in (policy, policy.outputs, policy.sample):
            with pytest.raises(
                ValueError, match="component 1 of the observation is NaN, on which this policy cannot"
            ):
                act(obs)
