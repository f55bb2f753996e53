"""Generalised advantage estimation with time limits kept apart from terminations."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from prune_rl.learners.running_statistics import linear_recurrence


def generalized_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """``A_t = Σ_l (γλ)^l δ_{t+l}``, ``δ_t = r_t + γ V(next_obs_t) − V(obs_t)`` (Schulman et al. 2016, equation 16).

    All arrays [T, N], time first; ``terminated`` and ``truncated`` are boolean. ``next_values`` are those of the true
    successor, the final observation at the end of an episode. Termination sets V(next_obs) to 0; a time limit keeps it;
    both cut the trace. Returns float32[T, N].
    """
    chex.assert_rank(rewards, 2)
    chex.assert_equal_shape([rewards, values, next_values, terminated, truncated])
    deltas = rewards + gamma * next_values * (1.0 - terminated) - values
    continues = 1.0 - jnp.asarray(terminated | truncated, jnp.float32)
    return linear_recurrence(gamma * gae_lambda * continues, deltas, reverse=True)
