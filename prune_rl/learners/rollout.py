"""What every learner is given, transitions of a batch of environments, and the returns of the episodes in them."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from prune_rl.learners.running_statistics import linear_recurrence
from prune_rl.pruning.gate import NO_PERFORMANCE

Metrics = dict[str, Any]  # {name: scalar}; "prune" is a mapping by neuron group


@struct.dataclass
class Rollout:
    """Transitions [T, N, …] of N environments, time first.

    ``obs`` and ``next_obs`` float32[T, N, D] as the environment gives them, not normalised; ``next_obs`` is the true
    successor (the final observation at the end of an episode). ``action`` int32[T, N] or float32[T, N, size];
    ``reward`` float32[T, N]; ``terminated``, ``truncated`` bool[T, N]. ``cut`` bool[]: the trainer reset the
    environments after the last step, so that episodes under way there are truncated, but do not count as finished.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: jax.Array
    cut: jax.Array

    def with_cut(self) -> Rollout:
        """The same with a cut seen as what it is for the learner, a truncation of the last step."""
        last = self.truncated[-1] | self.cut
        return self.replace(truncated=self.truncated.at[-1].set(last))  # type: ignore[attr-defined,no-any-return]


@struct.dataclass
class EpisodeReturns:
    """Returns of training episodes, as a train state carries them from one rollout to the next.

    ``under_way`` float32[2, N]: discounted and undiscounted return of each environment's present episode; ``running``
    float32[]: running mean over rollouts of the undiscounted return of finished episodes, 0 before the first;
    ``finished`` int32[]: episodes that have finished. ``fresh`` bool[N]: whether the episode under way began after the
    last change of the masks; ``fresh_return``, ``fresh_episodes`` float32[]: mean return and number of such episodes
    that finished in the last rollout.
    """

    under_way: jax.Array
    running: jax.Array
    finished: jax.Array
    fresh: jax.Array
    fresh_return: jax.Array
    fresh_episodes: jax.Array

    @staticmethod
    def create(num_envs: int) -> EpisodeReturns:
        """No episode has begun."""
        zero = functools.partial(jnp.zeros, (), jnp.float32)  # no two leaves of a state are the same array
        under_way, finished = jnp.zeros((2, num_envs), jnp.float32), jnp.zeros((), jnp.int32)
        return EpisodeReturns(under_way, zero(), finished, jnp.ones(num_envs, bool), zero(), zero())

    @property
    def performance(self) -> jax.Array:
        """The running return for the gate, float32[]; −inf before the first finished episode."""
        return jnp.where(self.finished > 0, self.running, NO_PERFORMANCE)


def track_returns(
    returns: EpisodeReturns, rollout: Rollout, gamma: float
) -> tuple[EpisodeReturns, jax.Array, Metrics]:
    """Carry the returns of episodes through a rollout.

    Returns them; float32[T, N], the discounted return Σ γ^k r of the episode up to each step; and the metrics "return"
    (mean undiscounted return of the episodes that finished in the rollout), "episodes" (how many), "running_return",
    and "total_episodes" (how many so far). A mean over no episode is 0.
    """
    chex.assert_equal_shape([rollout.reward, rollout.terminated, rollout.truncated])
    finished = rollout.terminated | rollout.truncated
    cut = rollout.with_cut()
    ends = cut.terminated | cut.truncated
    # Both returns, discounted and not, of the episodes under way; an end cuts what follows it.
    started = jnp.concatenate([jnp.ones_like(ends[:1]), ~ends[:-1]]).astype(jnp.float32)
    decay = jnp.stack([gamma * started, started], axis=1)
    rewards = jnp.stack([rollout.reward, rollout.reward], axis=1)
    rewards = rewards.at[0].add(decay[0] * returns.under_way)
    discounted, undiscounted = jnp.moveaxis(linear_recurrence(decay.at[0].set(0.0), rewards), 1, 0)
    last = jnp.stack([discounted[-1], undiscounted[-1]]) * ~ends[-1][None]
    episodes = jnp.sum(finished, dtype=jnp.int32)
    mean = jnp.sum(jnp.where(finished, undiscounted, 0.0)) / jnp.maximum(episodes, 1)
    smoothed = jnp.where(returns.finished > 0, 0.9 * returns.running + 0.1 * mean, mean)
    running = jnp.where(episodes > 0, smoothed, returns.running)
    total = returns.finished + episodes
    metrics = {"return": mean, "episodes": episodes, "running_return": running, "total_episodes": total}
    # The first end in an environment is that of an episode which may have begun before the masks changed.
    began_here = jnp.cumsum(ends, axis=0) > 1
    counts = finished & (began_here | returns.fresh[None])
    fresh_episodes = jnp.sum(counts).astype(jnp.float32)
    fresh_return = jnp.sum(jnp.where(counts, undiscounted, 0.0)) / jnp.maximum(fresh_episodes, 1.0)
    fresh = returns.fresh | jnp.any(ends, axis=0)
    after = EpisodeReturns(last, running, total, fresh, fresh_return, fresh_episodes)
    return after, discounted, metrics
