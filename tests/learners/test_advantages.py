"""GAE against a plain loop over time, with terminations and truncations anywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prune_rl.learners.advantages import generalized_advantages

Array = np.ndarray
compute = jax.jit(generalized_advantages)


def reference(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lam: float,
) -> Array:
    steps, envs = rewards.shape
    advantages = np.zeros((steps, envs))
    for n in range(envs):
        following = 0.0
        for t in reversed(range(steps)):
            bootstrap = 0.0 if terminated[t, n] else gamma * float(next_values[t, n])
            delta = float(rewards[t, n]) + bootstrap - float(values[t, n])
            ended = bool(terminated[t, n]) or bool(truncated[t, n])
            following = delta if ended else delta + gamma * lam * following
            advantages[t, n] = following
    return advantages


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([1, 2, 13]),
    ends=st.floats(0.0, 1.0),
    gamma=st.floats(0.0, 1.0),
    lam=st.floats(0.0, 1.0),
)
@example(seed=0, steps=13, ends=0.0, gamma=1.0, lam=1.0)
@example(seed=1, steps=13, ends=0.3, gamma=0.99, lam=0.95)
def test_equals_a_loop(seed: int, steps: int, ends: float, gamma: float, lam: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(scale=3.0, size=(3, steps, 3)).astype(np.float32)
    terminated, truncated = rng.random((2, steps, 3)) < ends / 2
    got = compute(rewards, values, next_values, terminated, truncated, gamma, lam)
    assert got.dtype == jnp.float32
    expected = reference(rewards, values, next_values, terminated, truncated, gamma, lam)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def constant_rollout(terminated: bool, truncated: bool) -> Array:
    """Advantages of two steps of reward 1 with values 0 and next values 10; the first step ends as told."""
    ones = np.ones((2, 1), np.float32)
    ends = np.array([[True], [False]])
    return np.asarray(compute(ones, 0 * ones, 10 * ones, ends & terminated, ends & truncated, 0.5, 1.0))[:, 0]


@pytest.mark.parametrize(
    ("terminated", "truncated", "first"),
    [
        (False, False, 6.0 + 0.5 * 6.0),
        (True, False, 1.0),  # no bootstrap, no trace
        (False, True, 6.0),  # bootstrap, no trace
        (True, True, 1.0),  # a termination in the last step of a time limit
    ],
)
def test_each_kind_of_end(terminated: bool, truncated: bool, first: float) -> None:
    np.testing.assert_allclose(constant_rollout(terminated, truncated), [first, 6.0], rtol=1e-6)


def test_lambda_one_is_the_discounted_return_minus_the_value() -> None:
    rng = np.random.default_rng(3)
    rewards, values = rng.normal(size=(2, 9, 2)).astype(np.float32)
    last = rng.normal(size=(1, 2)).astype(np.float32)
    never = np.zeros((9, 2), bool)
    got = compute(rewards, values, np.concatenate([values[1:], last]), never, never, 0.9, 1.0)
    returns = [
        sum(0.9 ** (i - t) * rewards[i] for i in range(t, 9)) + 0.9 ** (9 - t) * last[0] for t in range(9)
    ]
    np.testing.assert_allclose(got, np.stack(returns) - values, rtol=1e-4, atol=1e-5)
