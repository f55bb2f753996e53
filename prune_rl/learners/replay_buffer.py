"""The replay buffer: flashbax's ring of transitions, on the device and inside the train state."""

from __future__ import annotations

import dataclasses
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
from flax import struct

from prune_rl.learners.rollout import Rollout
from prune_rl.learners.running_statistics import NormalizationConfig, RunningStatistics, normalize
from prune_rl.spaces import Discrete, Spec

Replay = Any  # flashbax's state: arrays [1, capacity, …] and two counters


@struct.dataclass
class Transitions:
    """A batch [B, …] of what happened, or one transition without the leading axis; fields as in ``Rollout``."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_obs: jax.Array


def create(capacity: int, spec: Spec) -> Replay:
    """An empty buffer for ``capacity`` transitions; Box actions are float32[size], Discrete ones int32[]."""
    size = spec.observation_size
    action = spec.action
    template = Transitions(
        obs=jnp.zeros(size, jnp.float32),
        action=jnp.zeros((), jnp.int32)
        if isinstance(action, Discrete)
        else jnp.zeros(action.size, jnp.float32),
        reward=jnp.zeros((), jnp.float32),
        terminated=jnp.zeros((), bool),
        next_obs=jnp.zeros(size, jnp.float32),
    )
    return _buffer(capacity, 1).init(template)


def add(replay: Replay, rollout: Rollout, action: jax.Array) -> Replay:
    """The buffer with a rollout [T, N, …] added, over the oldest transitions where it is full.

    ``action`` [T, N, …] takes the place of the rollout's. A truncated transition is kept like any other: its
    ``next_obs`` is the true final observation, from which its target is bootstrapped.
    """
    kept = Transitions(rollout.obs, action, rollout.reward, rollout.terminated, rollout.next_obs)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)
    with jax.numpy_rank_promotion("allow"):  # flashbax relies on it
        return _buffer(capacity_of(replay), 1).add(replay, jax.tree.map(lambda x: x[None], rows))


def sample(replay: Replay, key: jax.Array, batch_size: int) -> Transitions:
    """``batch_size`` transitions [B, …], uniformly and with replacement from all that are held."""
    with jax.numpy_rank_promotion("allow"):
        drawn = _buffer(capacity_of(replay), batch_size).sample(replay, key).experience
    transitions: Transitions = jax.tree.map(lambda x: jnp.squeeze(x, 1), drawn)
    return transitions


def sample_normalized(
    replay: Replay, key: jax.Array, batch_size: int, stats: RunningStatistics, config: NormalizationConfig
) -> Transitions:
    """``sample``, with the observations as the networks see them."""
    batch = sample(replay, key, batch_size)
    obs, next_obs = (normalize(stats, x, config) for x in (batch.obs, batch.next_obs))
    return dataclasses.replace(batch, obs=obs, next_obs=next_obs)


def enlarged(replay: Replay, capacity: int) -> Replay:
    """The buffer with room for more transitions; what it holds stays. It must not have begun to replace old ones."""
    more = capacity - capacity_of(replay)
    if more <= 0:
        return replay
    experience = jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)]), replay.experience
    )
    # The place after the last one was the first one.
    index = jnp.where(replay.is_full, capacity_of(replay), replay.current_index).astype(
        replay.current_index.dtype
    )
    full = jnp.zeros_like(replay.is_full)
    return replay.replace(experience=experience, current_index=index, is_full=full)


def capacity_of(replay: Replay) -> int:
    """Transitions that the buffer has room for."""
    capacity: int = replay.experience.reward.shape[-1]
    return capacity


def _buffer(capacity: int, batch_size: int) -> Any:
    # Not its item buffer, which refuses batches larger than the buffer.
    return flashbax.make_trajectory_buffer(
        add_batch_size=1,
        sample_batch_size=batch_size,
        sample_sequence_length=1,
        period=1,
        min_length_time_axis=1,
        max_length_time_axis=capacity,
    )
