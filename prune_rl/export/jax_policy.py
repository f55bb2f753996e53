"""A compact policy as a pure function of JAX. Not imported by the rest of this package, which needs NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.export.description import DTYPES
from prune_rl.spaces import Box, Discrete

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
    activate = ACTIVATIONS[policy.activation]
    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in policy.layers]
    size, shape = policy.observation_size, policy.observation_shape
    to_action = _post_processing(policy.action, policy.squash)

    def act(obs: jax.Array) -> jax.Array:
        x = _flat(jnp.asarray(obs, jnp.float32), size, shape)
        if policy.obs_mean is not None and policy.obs_std is not None:
            mean, std = (jnp.broadcast_to(value, x.shape) for value in (policy.obs_mean, policy.obs_std))
            x = jnp.clip((x - mean) / std, -policy.obs_clip, policy.obs_clip)
        inputs = x
        for kernel, bias in layers[:-1]:
            x = x @ kernel
            x = activate(x + jnp.broadcast_to(bias, x.shape))
        kernel, bias = layers[-1]
        outputs = x @ kernel
        outputs = outputs + jnp.broadcast_to(bias, outputs.shape)
        if policy.skip is not None:
            outputs = outputs + inputs @ policy.skip
        return to_action(outputs)

    return act


def _flat(x: jax.Array, size: int, shape: tuple[int, ...] | None) -> jax.Array:
    """As `Policy` reads an observation: [..., D]."""
    if shape is not None and x.ndim >= len(shape) and x.shape[x.ndim - len(shape) :] == shape:
        return x.reshape(*x.shape[: x.ndim - len(shape)], size)
    if x.ndim and x.shape[-1] == size:
        return x
    if x.size == size:
        return x.reshape(size)
    raise ValueError(f"this policy takes observations of {size} elements, got one of shape {x.shape}")


def _post_processing(action: Discrete | Box, squash: bool) -> Callable[[jax.Array], jax.Array]:
    if isinstance(action, Discrete):
        return lambda outputs: jnp.argmax(outputs, -1) + action.start
    assert action.dtype in DTYPES  # checked by the policy
    kind = np.dtype(action.dtype)
    dtype = jax.dtypes.canonicalize_dtype(kind)
    low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)

    def to_action(outputs: jax.Array) -> jax.Array:
        least, most = jnp.broadcast_to(low, outputs.shape), jnp.broadcast_to(high, outputs.shape)
        if squash:
            outputs = 0.5 * least + 0.5 * most + (0.5 * most - 0.5 * least) * jnp.tanh(outputs)
        bounded = jnp.clip(outputs, least, most)
        if kind.kind in "iub":
            bounded = jnp.rint(bounded)
        return bounded.astype(dtype).reshape(*outputs.shape[:-1], *action.shape)

    return to_action
