"""A policy in the form that every exporter writes: without empty layers, and with no step that overflows float32."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from prune_rl.export.activations import Array
from prune_rl.export.empty_layers import fold_empty_layers
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete

LIMIT = float(np.finfo(np.float32).max)
_BOUNDED_ACTIVATIONS = ("tanh", "sigmoid")


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """2^exponent · clip(x · kernel + bias, ±LIMIT · 2^-exponent), computed in float32 without overflow.

    Where the exponent is 0, the clip changes nothing and is left out. Scaling by a power of two is exact.

    Attributes:
        kernel: float32[in, out].
        bias: float32[out].
        skip: float32[D, out], added as x · skip of what the network sees; the head only.
        exponent: 0 or more.
    """

    kernel: Array
    bias: Array
    skip: Array | None = None
    exponent: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Lowered:
    """What a policy computes, step by step.

    Attributes:
        mean, std: float32[D] or None.
        limit: the network sees clip((obs - mean) / std, ±limit); without statistics clip(obs, ±limit).
        layers: the last one is the head.
        activation: after every layer but the head.
        action: the action space.
        squash: whether outputs are squashed with tanh.
        low, high: float32[size], bounds of Box actions, ±LIMIT instead of infinite ones; empty for Discrete.
    """

    observation_size: int
    mean: Array | None
    std: Array | None
    limit: float
    layers: tuple[Affine, ...]
    activation: str
    action: Discrete | Box
    squash: bool
    low: Array
    high: Array

    @property
    def centre(self) -> Array:
        """float32[size]: the action of an output of 0 that is squashed."""
        return np.float32(0.5) * self.low + np.float32(0.5) * self.high

    @property
    def half(self) -> Array:
        """float32[size]: half of the width of the bounds."""
        return np.float32(0.5) * self.high - np.float32(0.5) * self.low

    @property
    def outputs(self) -> int:
        """Outputs of the head."""
        return len(self.layers[-1].bias)


def lower(policy: Policy) -> Lowered:
    """The same function as ``policy``, up to rounding, for all observations without NaN."""
    layers, skip = fold_empty_layers(policy.layers, policy.skip, policy.activation)
    limit = min(policy.obs_clip, LIMIT) if policy.obs_mean is not None else LIMIT
    bound, lowered = limit, []
    for index, (kernel, bias) in enumerate(layers):
        last = index == len(layers) - 1
        largest = np.abs(kernel.astype(np.float64)).sum(0) * bound + np.abs(bias)
        if last and skip is not None:
            largest = largest + np.abs(skip.astype(np.float64)).sum(0) * limit
        exponent = _exponent(float(largest.max(initial=0.0)))
        scale = np.float32(2.0**-exponent)
        lowered.append(
            Affine(
                kernel * scale, bias * scale, skip * scale if last and skip is not None else None, exponent
            )
        )
        # No activation is larger in magnitude than its input by more than 1.
        bound = (
            1.0
            if policy.activation in _BOUNDED_ACTIVATIONS
            else min(float(largest.max(initial=0.0)) + 1.0, LIMIT)
        )
    low, high = _bounds(policy.action)
    return Lowered(
        observation_size=policy.observation_size,
        mean=policy.obs_mean,
        std=policy.obs_std,
        limit=limit,
        layers=tuple(lowered),
        activation=policy.activation,
        action=policy.action,
        squash=policy.squash,
        low=low,
        high=high,
    )


def _exponent(largest: float) -> int:
    """The least one, 0 or more, with which no sum of magnitudes exceeds half of LIMIT."""
    return max(0, math.ceil(math.log2(largest) - math.log2(LIMIT / 2))) if largest > 0.0 else 0


def _bounds(action: Discrete | Box) -> tuple[Array, Array]:
    if isinstance(action, Discrete):
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    with np.errstate(over="ignore"):
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
    return np.clip(low, -LIMIT, LIMIT).astype(np.float32), np.clip(high, -LIMIT, LIMIT).astype(np.float32)
