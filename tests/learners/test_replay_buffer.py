"""The replay buffer: what it keeps, in which order it forgets, and that sampling is uniform over what it holds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prune_rl.learners import replay_buffer as replay
from prune_rl.learners.rollout import Rollout
from prune_rl.spaces import Box, Discrete, Spec
from tests.compilation import quick_jit

STEPS, ENVS = 4, 3
ROWS = STEPS * ENVS
BOX = Spec(observation_size=2, action=Box((-1.0,) * 2, (1.0,) * 2, (2,)))
DISCRETE = Spec(observation_size=2, action=Discrete(5))
add = quick_jit(replay.add)
sample = quick_jit(replay.sample, static_argnums=2)


def numbered(first: int, spec: Spec = BOX, *, cut: bool = False) -> Rollout:
    """A rollout whose rows are numbered from ``first``: every field of a row follows from its number."""
    number = first + np.arange(ROWS).reshape(STEPS, ENVS)
    value = jnp.asarray(number, jnp.float32)
    pair = jnp.stack([value, -value], -1)
    return Rollout(
        obs=pair,
        action=pair * 0.5 if isinstance(spec.action, Box) else jnp.asarray(number % 5, jnp.int32),
        reward=value,
        terminated=jnp.asarray(number % 3 == 0),
        truncated=jnp.asarray(number % 2 == 0),
        next_obs=pair + 0.25,
        cut=jnp.asarray(cut),
    )


def filled(capacity: int, rollouts: int, spec: Spec = BOX) -> replay.Replay:
    buffer = replay.create(capacity, spec)
    for i in range(rollouts):
        rollout = numbered(1 + i * ROWS, spec)
        buffer = add(buffer, rollout, rollout.action)
    return buffer


def numbers(batch: replay.Transitions) -> np.ndarray:
    return np.asarray(batch.reward).astype(int)


@pytest.mark.parametrize(
    ("rollouts", "oldest"), [(1, 1), (2, 1), (3, 1), (4, 1 + ROWS), (5, 1 + 2 * ROWS), (7, 1 + 4 * ROWS)]
)
def test_it_holds_the_newest_transitions_and_never_an_unfilled_row(rollouts: int, oldest: int) -> None:
    buffer = filled(3 * ROWS, rollouts)
    drawn = numbers(sample(buffer, jax.random.key(rollouts), 3000))
    assert set(drawn) == set(range(oldest, 1 + rollouts * ROWS))


@pytest.mark.parametrize("rollouts", [1, 2, 5])
def test_sampling_is_uniform_over_what_is_held(rollouts: int) -> None:
    buffer = filled(3 * ROWS, rollouts)
    drawn = numbers(sample(buffer, jax.random.key(0), 20_000))
    held = min(rollouts, 3) * ROWS
    counts = np.bincount(drawn - drawn.min(), minlength=held)
    assert len(counts) == held
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # Neighbours in a batch are drawn independently.
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("spec", [BOX, DISCRETE], ids=["box", "discrete"])
def test_the_parts_of_a_transition_stay_together(spec: Spec) -> None:
    batch = sample(filled(2 * ROWS, 3, spec), jax.random.key(1), 500)
    value = np.asarray(batch.reward)
    pair = np.stack([value, -value], -1)
    np.testing.assert_array_equal(batch.obs, pair)
    np.testing.assert_array_equal(batch.next_obs, pair + 0.25)
    np.testing.assert_array_equal(batch.terminated, value.astype(int) % 3 == 0)
    if spec is BOX:
        np.testing.assert_array_equal(batch.action, 0.5 * pair)
    else:
        np.testing.assert_array_equal(batch.action, value.astype(int) % 5)
    dtypes = {field.name: getattr(batch, field.name).dtype for field in dataclasses.fields(batch)}
    assert dtypes == {
        "obs": jnp.float32,
        "action": jnp.float32 if spec is BOX else jnp.int32,
        "reward": jnp.float32,
        "terminated": jnp.bool,
        "next_obs": jnp.float32,
    }


def test_the_given_action_takes_the_place_of_the_rollouts() -> None:
    rollout = numbered(1)
    buffer = add(replay.create(ROWS, BOX), rollout, -rollout.action)
    batch = sample(buffer, jax.random.key(0), 50)
    np.testing.assert_array_equal(batch.action[:, 0], -0.5 * batch.reward)


def test_truncated_and_cut_transitions_are_kept_as_not_terminated() -> None:
    rollout = numbered(1, cut=True)
    drawn = sample(add(replay.create(ROWS, BOX), rollout, rollout.action), jax.random.key(2), 500)
    assert set(numbers(drawn)) == set(range(1, 1 + ROWS)), "the last rows are those of the cut"
    truncated_only = (numbers(drawn) % 2 == 0) & (numbers(drawn) % 3 != 0)
    assert truncated_only.any()
    assert not np.any(drawn.terminated[truncated_only])


def test_a_batch_may_be_larger_than_what_is_held() -> None:
    batch = sample(filled(ROWS, 1), jax.random.key(3), 50 * ROWS)
    assert batch.reward.shape == (50 * ROWS,)
    assert set(numbers(batch)) == set(range(1, 1 + ROWS))


def test_samples_follow_from_the_key() -> None:
    buffer = filled(2 * ROWS, 2)
    first, again, other = (sample(buffer, jax.random.key(i), 64) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.reward, other.reward)


def test_the_capacity_is_read_back() -> None:
    assert replay.capacity_of(replay.create(5 * ROWS, DISCRETE)) == 5 * ROWS


def test_many_buffers_at_once_are_each_a_buffer_of_their_own() -> None:
    # Jitted as in the learner; under vmap each seed has its own contents and its own counters.
    rollouts = [[numbered(1 + 1000 * seed + i * ROWS) for i in range(3)] for seed in range(2)]
    single = [replay.create(2 * ROWS, BOX) for _ in range(2)]
    many = jax.tree.map(lambda *x: jnp.stack(x), *single)
    for i in range(3):
        single = [add(buffer, rollouts[s][i], rollouts[s][i].action) for s, buffer in enumerate(single)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(rollouts[s][i] for s in range(2)))
        many = quick_jit(jax.vmap(replay.add))(many, stacked, stacked.action)
    keys = jnp.stack([jax.random.key(7), jax.random.key(8)])
    batches = quick_jit(jax.vmap(lambda buffer, key: replay.sample(buffer, key, 40)))(many, keys)
    for s, buffer in enumerate(single):
        expected = sample(buffer, keys[s], 40)
        jax.tree.map(lambda got, want, s=s: np.testing.assert_array_equal(got[s], want), batches, expected)
        assert numbers(expected).min() > 1000 * s + ROWS
        assert numbers(expected).max() <= 1000 * s + 3 * ROWS
