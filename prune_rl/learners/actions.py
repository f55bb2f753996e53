"""Action spaces as arrays of the train state: bounds, which of the two kinds it is, and the noise of a rollout."""

from __future__ import annotations

import math

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
    ranges = [_range(low, high) for low, high in zip(action.low, action.high, strict=True)]
    if all(each == (0.0, 1.0) for each in ranges):
        return None
    centre, scale = np.array(ranges, np.float32).T
    return centre, scale


def _range(low: float, high: float) -> tuple[float, float]:
    half = 0.5 * high - 0.5 * low
    if low <= 0.0 <= high and (half > NO_BOUND or (low == -high and 0.5 <= half <= 2.0)):
        return 0.0, 1.0
    if math.isfinite(half):
        return 0.5 * low + 0.5 * high, half or 1.0
    return (low + 1.0 if low > 0.0 else high - 1.0 if high < 0.0 else 0.0), 1.0


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
