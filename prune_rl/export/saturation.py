"""What a network computes where float32 overflows, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prune_rl.export.activations import ACTIVATIONS, Array

_LIMIT = float(np.finfo(np.float32).max)


def saturated_outputs(
    x: Array,
    layers: Sequence[tuple[Array, Array]],
    activation: str,
    skip: Array | None,
    normalisation: tuple[Array, Array, float] | None,
) -> Array:
    """The outputs for observations float32[N, D] without NaN: float32[N, num_outputs], all of them finite.

    Computed in float64, and every value is kept within what float32 can hold, so that no two infinities meet.

    Args:
        x: the observations, which may be infinite.
        layers: as those of a `Policy`.
        activation: a name in `ACTIVATIONS`.
        skip: as that of a `Policy`.
        normalisation: mean, standard deviation and the limit that the normalised observation is clipped to, or None.
    """
    activate: Any = ACTIVATIONS[activation]
    value: Any = np.clip(x.astype(np.float64), -_LIMIT, _LIMIT)
    if normalisation is not None:
        mean, std, clip = normalisation
        bound = min(clip, _LIMIT)
        value = np.clip((value - mean.astype(np.float64)) / std.astype(np.float64), -bound, bound)
    # One row at a time, as in `Policy.outputs`.
    value = inputs = value[:, None, :]
    for index, (kernel, bias) in enumerate(layers):
        value = value @ kernel.astype(np.float64) + bias
        last = index == len(layers) - 1
        if last and skip is not None:
            value = value + inputs @ skip.astype(np.float64)
        value = np.clip(value, -_LIMIT, _LIMIT)
        if not last:
            value = np.clip(activate(value), -_LIMIT, _LIMIT)
    outputs: Array = value[:, 0, :].astype(np.float32)
    return outputs


def within_float32(x: Array) -> Array:
    """``x`` with the largest finite numbers for infinities, and 0 for what two opposite ones made."""
    return np.nan_to_num(x)
