"""The forward pass of a compact policy in NumPy, for one observation or a batch of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.saturation import saturated_outputs

if TYPE_CHECKING:
    from prune_rl.export.policy import Policy


def network_outputs(policy: Policy, x: Array, clip: tuple[Array, Array]) -> Array:
    """The outputs of the head for float32[D] or float32[..., D] in float32 alone; ``clip``: bounds float32[D]."""
    if policy.obs_mean is not None and policy.obs_std is not None:
        x = x - policy.obs_mean
        x /= policy.obs_std
        low, high = clip
        np.maximum(x, low, out=x)
        np.minimum(x, high, out=x)
    activation = ACTIVATIONS[policy.activation]
    head_kernel, head_bias = policy.layers[-1]
    inputs = x
    if x.ndim == 1:
        for kernel, bias in policy.layers[:-1]:
            x = x.dot(kernel)  # takes a third of the time of `@`
            x += bias
            x = activation(x)
        outputs: Array = x.dot(head_kernel)
        outputs += head_bias
        if policy.skip is not None:
            outputs += inputs.dot(policy.skip)
        return outputs
    # As [..., 1, D] every row is multiplied like a single observation. One matrix product for the whole batch would
    # be faster, but differ in the last bit, which can change an episode.
    x = inputs = x[..., None, :]
    for kernel, bias in policy.layers[:-1]:
        x = activation(x @ kernel + bias)
    outputs = x @ head_kernel + head_bias
    if policy.skip is not None:
        outputs += inputs @ policy.skip
    return outputs[..., 0, :]


def repaired_outputs(policy: Policy, x: Array, outputs: Array) -> Array:
    """`outputs` without infinity and NaN; raises ``ValueError`` where that comes from a NaN in `x`."""
    missing = np.isnan(x)
    if missing.any():
        component = int(np.argwhere(missing)[0][-1])
        raise ValueError(f"component {component} of the observation is NaN, on which this policy cannot act")
    bad = ~np.isfinite(outputs).all(-1)
    outputs = outputs.copy()
    rows = x[bad].reshape(-1, x.shape[-1])
    outputs[bad] = saturated_outputs(
        rows, policy.layers, policy.activation, policy.skip, policy.normalisation
    ).reshape(outputs[bad].shape)
    return outputs


def reshaped(x: Array, size: int, shape: tuple[int, ...] | None) -> Array:
    """Observations in any form that `Policy` takes, as float32[D] or float32[..., D]; raises ``ValueError``."""
    if shape is not None and x.ndim >= len(shape) and x.shape[x.ndim - len(shape) :] == shape:
        return np.ascontiguousarray(x).reshape(*x.shape[: x.ndim - len(shape)], size)
    if x.ndim and x.shape[-1] == size:
        return np.ascontiguousarray(x)
    if x.size == size:
        return x.reshape(size)
    raise ValueError(f"this policy takes observations of {size} elements, got one of shape {x.shape}")
