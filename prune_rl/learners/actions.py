"""Action spaces as arrays of the train state: bounds, which of the two kinds it is, and the noise of a rollout."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from prune_rl.learners.distributions import Categorical, Gaussian
from prune_rl.spaces import Discrete, Spec

# Bounds further apart than twice this are no bounds.
NO_BOUND = 1e6


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


def gaussian_range(spec: Spec) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Where a Gaussian policy that starts with mean 0 and standard deviation 1 lies within the bounds.

    Returns the centre and the scale of each component, float32[size]: the environment's action is ``centre + scale ·
    action``. A component with two finite bounds gets their middle and half of their distance, so that they are one
    standard deviation away, as −1 and 1 are anyway. It keeps 0 and 1 where the bounds are symmetric about 0 and 0.5 to
    2 away from it, or so wide about 0 (more than 10⁶) that they say nothing. With one finite bound that excludes 0, the
    centre lies 1 inside of it. None where all components keep 0 and 1, and for Discrete actions.
    """
    action = spec.action
    if isinstance(action, Discrete):
        return None
    low, high = np.array([action.low, action.high], np.float64)
    centre, scale = _centre_and_scale(low, high, np)
    if not np.any(centre) and np.all(scale == 1.0):
        return None
    return centre.astype(np.float32), scale.astype(np.float32)


def gaussian_bounds(bounds: jax.Array) -> jax.Array:
    """The bounds of the action space, from ``action_bounds``, before ``gaussian_range``: float32[2, size]."""
    low, high = bounds
    centre, scale = _centre_and_scale(low, high, jnp)
    return jnp.stack([(bound - centre) / scale for bound in (low, high)])


def _centre_and_scale(low: Any, high: Any, xp: Any) -> tuple[Any, Any]:
    half = 0.5 * high - 0.5 * low
    kept = (
        (low <= 0.0) & (high >= 0.0) & ((half > NO_BOUND) | ((low == -high) & (half >= 0.5) & (half <= 2.0)))
    )
    two = ~kept & xp.isfinite(half)
    middle = 0.5 * xp.where(two, low, 0.0) + 0.5 * xp.where(two, high, 0.0)
    one = xp.where(low > 0.0, low + 1.0, xp.where(high < 0.0, high - 1.0, 0.0))
    centre = xp.where(kept, 0.0, xp.where(two, middle, one))
    return centre, xp.where(two & (half > 0.0), half, 1.0)


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
