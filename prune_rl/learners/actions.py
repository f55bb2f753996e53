"""Action spaces as arrays of the train state: bounds, which of the two kinds it is, and the noise of a rollout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.learners.distributions import Categorical, Gaussian
from prune_rl.spaces import Discrete, Spec


def action_bounds(spec: Spec) -> jax.Array:
    """Least and greatest value of each component, float32[2, size]; size 0 for Discrete actions."""
    action = spec.action
    if isinstance(action, Discrete):
        return jnp.zeros((2, 0), jnp.float32)
    return jnp.array([action.low, action.high], jnp.float32)


def is_discrete(bounds: jax.Array) -> bool:
    """Whether the actions with these bounds, from ``action_bounds``, are Discrete. Static under ``jit``."""
    return bounds.shape[-1] == 0


def action_noise(key: jax.Array, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    """Noise for a learner's ``act``, drawn for many steps at once: float32[*shape, num_outputs]."""
    kind = Categorical if isinstance(spec.action, Discrete) else Gaussian
    return kind.sample_noise(key, (*shape, spec.action.num_outputs))


def from_unit(action: jax.Array, bounds: jax.Array) -> jax.Array:
    """Box actions […, size] in [−1, 1], scaled to the environment's ``bounds`` float32[2, size], which must be
    finite.
    """
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in bounds)
    # Clipped, since rounding can put a saturated action beyond its bound.
    return jnp.clip(low + 0.5 * (action + 1.0) * (high - low), low, high)


def to_unit(action: jax.Array, bounds: jax.Array) -> jax.Array:
    """The inverse of ``from_unit``; Discrete actions are returned as they are."""
    if is_discrete(bounds):
        return action
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in bounds)
    # A component whose bounds are equal has nothing to choose.
    width = jnp.where(high > low, high - low, 1.0)
    return 2.0 * (action - low) / width - 1.0
