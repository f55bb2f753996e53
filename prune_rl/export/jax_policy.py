"""A compact policy as a pure function of JAX. Not imported by the rest of this package, which needs NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.export.actions import exact_bounds
from prune_rl.export.lowering import LIMIT, Affine, Lowered, lower
from prune_rl.spaces import Discrete

if TYPE_CHECKING:
    from prune_rl.export.policy import Policy

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


def as_jax(policy: Policy) -> Callable[[jax.Array], jax.Array]:
    """See `Policy.as_jax`. The arrays become constants of what is compiled."""
    lowered = lower(policy)
    activate = ACTIVATIONS[policy.activation]
    size, shape = policy.observation_size, policy.observation_shape

    def act(obs: jax.Array) -> jax.Array:
        x = _flat(jnp.asarray(obs, jnp.float32), size, shape)
        if lowered.limit == LIMIT:
            x = jnp.clip(x, -LIMIT, LIMIT)
        if lowered.mean is not None and lowered.std is not None:
            mean, std = (jnp.broadcast_to(value, x.shape) for value in (lowered.mean, lowered.std))
            x = jnp.clip((x - mean) / std, -lowered.limit, lowered.limit)
        inputs = x
        for layer in lowered.layers[:-1]:
            x = activate(_affine(x, inputs, layer))
        return _action(_affine(x, inputs, lowered.layers[-1]), lowered)

    return act


def _affine(x: jax.Array, inputs: jax.Array, layer: Affine) -> jax.Array:
    y = x @ layer.kernel
    y = y + jnp.broadcast_to(layer.bias, y.shape)
    if layer.skip is not None:
        y = y + inputs @ layer.skip
    if layer.exponent:
        scale = np.float32(2.0**layer.exponent)
        y = scale * jnp.clip(y, -np.float32(LIMIT) / scale, np.float32(LIMIT) / scale)
    return y


def _flat(x: jax.Array, size: int, shape: tuple[int, ...] | None) -> jax.Array:
    """As `Policy` reads an observation: [..., D]."""
    if shape is not None and x.ndim >= len(shape) and x.shape[x.ndim - len(shape) :] == shape:
        return x.reshape(*x.shape[: x.ndim - len(shape)], size)
    if x.ndim and x.shape[-1] == size:
        return x
    if x.size == size:
        return x.reshape(size)
    raise ValueError(f"this policy takes observations of {size} elements, got one of shape {x.shape}")


def _action(outputs: jax.Array, policy: Lowered) -> jax.Array:
    action = policy.action
    if isinstance(action, Discrete):
        return jnp.argmax(outputs, -1) + action.start
    low, high = jnp.broadcast_to(policy.low, outputs.shape), jnp.broadcast_to(policy.high, outputs.shape)
    if policy.squash:
        centre, half = (jnp.broadcast_to(x, outputs.shape) for x in (policy.centre, policy.half))
        outputs = centre + half * jnp.tanh(outputs)
    bounded = jnp.clip(outputs, low, high)
    kind = np.dtype(action.dtype)
    dtype = jax.dtypes.canonicalize_dtype(kind)
    if kind.kind in "iub":
        bounded = jnp.rint(bounded)
        if jax.dtypes.canonicalize_dtype(np.float64) == np.float64:  # the 64-bit mode is on
            least, most = (jnp.broadcast_to(x, outputs.shape) for x in exact_bounds(action))
            bounded = jnp.clip(bounded.astype(jnp.float64), least, most)
    return bounded.astype(dtype).reshape(*outputs.shape[:-1], *action.shape)
