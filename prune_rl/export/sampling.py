"""Random actions of a policy, in NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.saturation import within_float32
from prune_rl.spaces import Discrete

if TYPE_CHECKING:
    from prune_rl.export.policy import Policy


def sample(policy: Policy, x: Array, rng: np.random.Generator | None, temperature: float | None) -> Any:
    """See `Policy.sample`; ``x`` is float32[D] or float32[..., D]."""
    rng = np.random.default_rng() if rng is None else rng
    heat = policy.temperature if temperature is None else temperature
    if not 0.0 <= heat < math.inf:
        raise ValueError(f"temperature must be a finite number >= 0, got {heat}")
    if not isinstance(policy.action, Discrete) and policy.spread is None:
        raise ValueError(
            "this policy has no spread to sample actions with: its file was written by an earlier version, or without "
            "one"
        )
    outputs = policy.outputs(x.reshape(-1, 1, x.shape[-1])).reshape(*x.shape[:-1], policy.action.num_outputs)
    if policy.spread is None:
        noise = heat * rng.gumbel(size=outputs.shape)
    else:
        noise = heat * policy.spread.std(*_last_hidden(policy, x)) * rng.standard_normal(outputs.shape)
    return policy.to_action(within_float32(outputs + noise.astype(np.float32)))


def _last_hidden(policy: Policy, x: Array) -> tuple[Array, Array]:
    """The last hidden layer and what the network sees, for float32[..., D]; saturated, without NaN."""
    if policy.normalisation is not None:
        mean, std, clip = policy.normalisation
        x = np.clip((x - mean) / std, -clip, clip)
    h = inputs = within_float32(x)
    for kernel, bias in policy.layers[:-1]:
        h = within_float32(ACTIVATIONS[policy.activation](within_float32(h @ kernel + bias)))
    return h, inputs
