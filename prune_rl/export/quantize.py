"""A policy in 8-bit integers. What it computes is defined here to the bit; the exported C code does the same.

Weights are int8 with one scale per output, activations int8 without zero point, sums int32. With D observations:

    q_x = rint(clip((obs − mean) · factor, ±127))                              float32, elementwise
    sum = q · kernel + bias                                                    int32
    p   = sum · multiplier,    z = sign(p) ⌊(|p| + 2^(shift−1)) / 2^shift⌋     of hidden layers
    q   = activation of z, below
    out = float32(sum) · scale                                                 of the head

The head of a policy with a linear path has [q, q_x] as its input. Ranges of activations come from observations that the
float policy met (calibration); each input has a scale of its own, which is part of the kernel that reads it.

- tanh: z counts 1/256. With a = min(|z|, 1024), s = ⌊a²/256⌋, f = ⌊s²/256⌋, n = 945·256 + 105 s + f and
  d = 945·256 + 420 s + 15 f,

      q = sign(z) min(127, ⌊(127 ⌊n a / 256⌋ + ⌊d/2⌋) / d⌋)

  which is the continued fraction of tanh up to its fifth term, within 0.6 of 127 tanh(z / 256);
- relu: q = min(max(z, 0), 127), with z in steps of q;
- others: q = table[clip(z, ±127) + 127].
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prune_rl.export import tanh
from prune_rl.export.actions import post_processing
from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.artefact import Artefact
from prune_rl.export.empty_layers import fold_empty_layers
from prune_rl.export.lowering import LIMIT
from prune_rl.export.policy import Policy

LARGEST = 127
TANH_FRACTION = 8  # bits of z behind the point
_LARGEST_BIAS = 32000  # int16, with room for rounding
_LARGEST_MULTIPLIER = 255
_LARGEST_SHIFT = 24


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenLayer:
    """kernel int8[in, out], bias int16[out], multiplier uint8[out], shift 1 … 24.

    ``step`` float64[out] is what one step of the layer's outputs stands for, and ``scale`` float64[out] one of its
    sums. ``table`` is int8[255], or None for tanh and relu.
    """

    kernel: NDArray[np.int8]
    bias: NDArray[np.int16]
    multiplier: NDArray[np.uint8]
    shift: int
    table: NDArray[np.int8] | None
    scale: NDArray[np.float64]
    step: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """kernel int8[in, out], bias int16[out], scale float32[out]."""

    kernel: NDArray[np.int8]
    bias: NDArray[np.int16]
    scale: Array


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedPolicy(Artefact):
    """Called like the `Policy` that it was made of; `quantize` makes it.

    Attributes:
        policy: the float policy.
        mean: float32[D], 0 without statistics.
        factor: float32[D].
        hidden: the hidden layers.
        head: the last layer.
        skip: whether the head reads what the network sees, too.
    """

    policy: Policy
    mean: Array
    factor: Array
    hidden: tuple[HiddenLayer, ...]
    head: Head
    skip: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all constants."""
        arrays: list[NDArray[Any]] = [self.factor, self.head.kernel, self.head.bias, self.head.scale]
        arrays += [self.mean] if self.policy.normalisation is not None else []
        for layer in self.hidden:
            arrays += [layer.kernel, layer.bias, layer.multiplier]
            arrays += [] if layer.table is None else [layer.table]
        return sum(array.nbytes for array in arrays)

    def __call__(self, obs: ArrayLike) -> Any:
        """See `Policy.__call__`."""
        outputs = self.outputs(obs)
        if self.policy.squash:
            low, high = (np.array(x, np.float32) for x in (self.action.low, self.action.high))  # type: ignore[union-attr]
            half, centre = np.float32(0.5), np.float32(0.5)
            scaled = (half * high - half * low) * tanh.tanh(outputs)
            outputs = (centre * low + centre * high) + scaled
        return post_processing(self.action, False)(outputs)

    @np.errstate(over="ignore")
    def outputs(self, obs: ArrayLike) -> Array:
        """The head's outputs, float32[..., num_outputs]; raises ``ValueError`` for NaN."""
        x = self.policy.flat(obs)
        if np.isnan(x).any():
            raise ValueError("a component of the observation is NaN, on which this policy cannot act")
        scaled = (x - self.mean) * self.factor
        inputs = np.rint(np.clip(scaled, np.float32(-LARGEST), np.float32(LARGEST))).astype(np.int32)
        q = inputs
        for layer in self.hidden:
            q = self._activated(_sums(q, layer.kernel, layer.bias), layer)
        if self.skip:
            q = np.concatenate([q, inputs], -1)
        sums = _sums(q, self.head.kernel, self.head.bias)
        outputs: Array = np.clip(
            sums.astype(np.float32) * self.head.scale, np.float32(-LIMIT), np.float32(LIMIT)
        )
        return outputs

    def _activated(self, sums: NDArray[np.int32], layer: HiddenLayer) -> NDArray[np.int32]:
        p = sums.astype(np.int64) * layer.multiplier.astype(np.int64)
        sign, a = np.where(p < 0, -1, 1), (np.abs(p) + (1 << (layer.shift - 1))) >> layer.shift
        if layer.table is not None:
            found: NDArray[np.int32] = layer.table[np.minimum(a, LARGEST) * sign + LARGEST].astype(np.int32)
            return found
        if self.policy.activation == "relu":
            rectified: NDArray[np.int32] = np.where(p > 0, np.minimum(a, LARGEST), 0).astype(np.int32)
            return rectified
        squashed: NDArray[np.int32] = (sign * integer_tanh(a)).astype(np.int32)
        return squashed


def integer_tanh(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """127 tanh(a / 256) for a >= 0, as defined above."""
    a = np.minimum(a, 1024)
    s = (a * a) >> 8
    f = (s * s) >> 8
    n, d = 241920 + 105 * s + f, 241920 + 420 * s + 15 * f
    result: NDArray[np.int64] = np.minimum(LARGEST, (LARGEST * ((n * a) >> 8) + d // 2) // d)
    return result


def _sums(q: NDArray[np.int32], kernel: NDArray[np.int8], bias: NDArray[np.int16]) -> NDArray[np.int32]:
    # int64 in NumPy; `quantize` refuses layers whose sums could leave int32.
    products = np.matmul(q.astype(np.int64), kernel.astype(np.int64))
    sums: NDArray[np.int32] = (products + bias.astype(np.int64)).astype(np.int32)
    return sums


def quantize(policy: Policy, calibration: ArrayLike) -> QuantizedPolicy:
    """Choose scales for ``policy`` and round its weights to 8 bits.

    Args:
        policy: any policy.
        calibration: observations as ``policy`` takes them, [N, …], such as those of a few episodes; what lies beyond
            their range is clipped.

    Raises:
        ValueError: no observation, or NaN in one; weights that no scale fits.
    """
    x = policy.flat(calibration).reshape(-1, policy.observation_size).astype(np.float64)
    if not len(x) or np.isnan(x).any():
        raise ValueError(f"calibration needs observations without NaN, at least one, got {len(x)}")
    mean, std, limit = np.zeros(x.shape[1]), np.ones(x.shape[1]), LIMIT
    if policy.normalisation is not None:
        mean, std = (value.astype(np.float64) for value in policy.normalisation[:2])
        limit = policy.normalisation[2]
    x = np.clip((np.clip(x, -LIMIT, LIMIT) - mean) / std, -limit, limit)
    layers, skip = fold_empty_layers(policy.layers, policy.skip, policy.activation)
    if len(layers) == 1 and skip is not None:
        layers, skip = ((layers[0][0] + skip, layers[0][1]),), None
    step = _steps(np.abs(x).max(0))
    factor = np.clip(1.0 / (std * step), 1e-30, 1e30).astype(np.float32)
    step = 1.0 / (factor.astype(np.float64) * std)
    first, hidden = step, []
    for kernel, bias in layers[:-1]:
        z = x @ kernel.astype(np.float64) + bias
        x = np.asarray(ACTIVATIONS[policy.activation](z.astype(np.float32)), np.float64)
        hidden.append(
            _hidden(kernel * step[:, None], bias, policy.activation, np.abs(z).max(), np.abs(x).max(0))
        )
        step = hidden[-1].step
    rows = layers[-1][0].astype(np.float64) * step[:, None]
    if skip is not None:
        rows = np.concatenate([rows, skip * first[:, None]])
    bias = layers[-1][1]
    least = np.maximum(np.abs(rows).max(0, initial=0.0) / LARGEST, np.abs(bias) / _LARGEST_BIAS)
    scale = np.maximum(least * (1 + 1e-6), 1e-30).astype(np.float32)
    head = Head(*_rounded(rows, bias, scale.astype(np.float64)), scale)
    return QuantizedPolicy(
        policy, np.asarray(mean, np.float32), factor, tuple(hidden), head, skip is not None
    )


def _steps(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """What one of 127 steps stands for; of what was always 0, as if 1 were the largest."""
    return np.where(largest > 0.0, largest, 1.0) / LARGEST


def _hidden(
    kernel: NDArray[np.float64], bias: Array, activation: str, largest_z: float, largest: NDArray[np.float64]
) -> HiddenLayer:
    """The layer of a real kernel [in, out] whose inputs count steps."""
    table = None
    if activation == "tanh":
        step = np.full(len(bias), 1.0 / LARGEST)
        unit: Any = 2.0**-TANH_FRACTION
    elif activation == "relu":
        step = unit = _steps(largest)
    else:
        unit = float(_steps(np.array(largest_z)))
        z = (unit * np.arange(-LARGEST, LARGEST + 1)).astype(np.float32)
        values = np.asarray(ACTIVATIONS[activation](z), np.float64)
        one = float(_steps(np.abs(values).max()))
        table, step = np.rint(values / one).astype(np.int8), np.full(len(bias), one)
    # One step of the sum has to be a whole number of 2^-shift units, so that the multiplier is exact.
    least = np.maximum(np.abs(kernel).max(0, initial=0.0) / LARGEST, np.abs(bias) / _LARGEST_BIAS) / unit
    shift = min(_LARGEST_SHIFT, math.floor(math.log2(_LARGEST_MULTIPLIER / max(float(least.max()), 1e-30))))
    if shift < 1:
        raise ValueError(
            "the weights of a hidden layer are too large for 8 bits: a single step saturates a neuron"
        )
    multiplier = np.clip(np.ceil(least * 2.0**shift), 1, _LARGEST_MULTIPLIER)
    scale = multiplier * unit / 2.0**shift
    rounded, rounded_bias = _rounded(kernel, bias, scale)
    return HiddenLayer(rounded, rounded_bias, multiplier.astype(np.uint8), shift, table, scale, step)


def _rounded(
    kernel: NDArray[np.float64], bias: Array, scale: NDArray[np.float64]
) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    if len(kernel) * LARGEST**2 + 2**15 >= 2**31:
        raise ValueError(f"a layer of {len(kernel)} inputs is too wide for sums of 32 bits")
    weights = np.clip(np.rint(kernel / scale), -LARGEST, LARGEST).astype(np.int8)
    return weights, np.rint(bias / scale).astype(np.int16)
