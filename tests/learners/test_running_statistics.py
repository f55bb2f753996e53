"""Running statistics against NumPy's mean and variance, the recurrence against a loop."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_rl.learners.running_statistics import RunningStatistics, linear_recurrence

update = jax.jit(RunningStatistics.update)
recurrence = jax.jit(linear_recurrence, static_argnames="reverse")


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.sampled_from([1, 2, 7, 32]), min_size=1, max_size=6),
    offset=st.floats(-100.0, 100.0),
    scale=st.floats(0.1, 100.0),
)
def test_equals_mean_and_variance_of_everything_seen(
    seed: int, rows: list[int], offset: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    statistics, seen = RunningStatistics.create((3,)), np.zeros((0, 3), np.float32)
    for n in rows:
        batch = rng.normal(offset * rng.normal(), scale, size=(n, 3)).astype(np.float32)
        statistics, seen = update(statistics, batch), np.concatenate([seen, batch])
        # After every batch, the first included: nothing of the initial 0 and 1 is left in them.
        size = np.abs(seen).max()
        np.testing.assert_allclose(statistics.mean, seen.mean(0, np.float64), rtol=1e-4, atol=1e-5 * size)
        np.testing.assert_allclose(statistics.var, seen.var(0, np.float64), rtol=1e-3, atol=1e-5 * size**2)
        assert statistics.count == len(seen)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))


def test_scalars() -> None:
    batch = np.array([1.0, 2.0, 6.0], np.float32)
    statistics = update(RunningStatistics.create(()), batch)
    assert (statistics.mean.shape, statistics.var.shape) == ((), ())
    np.testing.assert_allclose([statistics.mean, statistics.var], [3.0, batch.var()], rtol=1e-6)
    np.testing.assert_allclose(statistics.normalize(batch, 10.0), (batch - 3.0) / batch.std(), rtol=1e-5)


def test_the_count_goes_on_where_float32_gets_coarse() -> None:
    statistics = dataclasses.replace(RunningStatistics.create((1,)), count=jnp.float32(2**26))
    statistics = update(statistics, np.ones((512, 1), np.float32))
    assert float(statistics.count) == 2**26 + 512
    assert float(statistics.mean[0]) == pytest.approx(512 / (2**26 + 512))


def test_fresh_statistics_change_nothing() -> None:
    x = jnp.linspace(-9.0, 9.0, 8).reshape(4, 2)
    np.testing.assert_allclose(RunningStatistics.create((2,)).normalize(x, 10.0), x, rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (5,), (4, 3)])
def test_normalizes_any_leading_axes_and_clips(lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=2), np.array([0.04, 9.0])
    statistics = RunningStatistics(*(jnp.asarray(a, jnp.float32) for a in (mean, var, 7.0)))
    x = rng.normal(scale=4.0, size=(*lead, 2)).astype(np.float32)
    expected = np.clip((x - mean) / np.sqrt(var), -1.5, 1.5)
    got = statistics.normalize(jnp.asarray(x), 1.5)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert got.shape == x.shape


def test_a_constant_input_becomes_zero_not_nan() -> None:
    x = np.full((6, 1), 0.3, np.float32)
    statistics = update(RunningStatistics.create((1,)), x)
    np.testing.assert_allclose(statistics.normalize(jnp.asarray(x), 10.0), 0.0, atol=1e-2)


@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from([1, 2, 11]), reverse=st.booleans())
def test_the_recurrence_equals_a_loop(seed: int, steps: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 2, 3)).astype(np.float32)
    # Exact zeros are what cuts an episode from the next.
    decay = (rng.uniform(-1.0, 1.0, x.shape) * (rng.random(x.shape) < 0.7)).astype(np.float32)
    expected, y = np.zeros(x.shape), np.zeros(x.shape[1:])
    for t in reversed(range(steps)) if reverse else range(steps):
        expected[t] = y = decay[t] * y + x[t]
    np.testing.assert_allclose(recurrence(decay, x, reverse=reverse), expected, rtol=1e-4, atol=1e-5)
