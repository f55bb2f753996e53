"""What every learner is given, transitions of a batch of environments, and the returns of the episodes in them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from prune_rl.learners.running_statistics import linear_recurrence


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
class Returns:
    """Returns of the episodes in a rollout.

    ``discounted`` float32[T, N]: Σ γ^k r of the episode up to each step; ``episode`` float32[2, N]: discounted and
    undiscounted return of the episodes that go on after the rollout; ``mean`` float32[]: mean undiscounted return of
    those that finished in it, ``episodes`` int32[] of them (NaN and 0 if none did); ``running`` float32[]: its running
    mean over rollouts, NaN before the first finished episode.
    """

    discounted: jax.Array
    episode: jax.Array
    mean: jax.Array
    episodes: jax.Array
    running: jax.Array


def track_returns(rollout: Rollout, episode: jax.Array, running: jax.Array, gamma: float) -> Returns:
    """Carry the returns of episodes through a rollout; ``episode`` and ``running`` are those of the last one."""
    finished = rollout.terminated | rollout.truncated
    cut = rollout.with_cut()
    ends = cut.terminated | cut.truncated
    # Both returns, discounted and not, of the episodes under way; an end cuts what follows it.
    started = jnp.concatenate([jnp.ones_like(ends[:1]), ~ends[:-1]]).astype(jnp.float32)
    decay = jnp.stack([gamma * started, started], axis=1)
    rewards = jnp.stack([rollout.reward, rollout.reward], axis=1)
    rewards = rewards.at[0].add(decay[0] * episode)
    discounted, undiscounted = jnp.moveaxis(linear_recurrence(decay.at[0].set(0.0), rewards), 1, 0)
    last = jnp.stack([discounted[-1], undiscounted[-1]]) * ~ends[-1][None]
    episodes = jnp.sum(finished)
    mean = jnp.sum(jnp.where(finished, undiscounted, 0.0)) / episodes
    smoothed = jnp.where(jnp.isnan(running), mean, 0.9 * running + 0.1 * mean)
    return Returns(discounted, last, mean, episodes, jnp.where(episodes > 0, smoothed, running))
