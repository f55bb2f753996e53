"""A policy in 8-bit integers. What it computes is defined here to the bit; the exported C code does the same.

Weights are int8 with one scale per output, sums int32. Activations are integers of 13 bits with sign and without zero
point, kept in int16: they cost no memory, processors multiply 16-bit integers as fast as 8-bit ones, and 8 bits cost
returns. With D observations and L = 2048:

    q_x = rint(clip((obs − mean) · factor, ±L))                                float32, elementwise
    sum = q · kernel + 16 · bias                                               int32
    p   = sum · multiplier,    z = sign(p) ⌊(|p| + 2^(shift−1)) / 2^shift⌋     of hidden layers
    q   = activation of z, below
    out = float32(sum) · scale                                                 of the head

The head of a policy with a linear path has [q, q_x] as its input. Ranges of activations come from observations that the
float policy met (calibration); each input has a scale of its own, which is part of the kernel that reads it.

- tanh: z counts 1/2048, and tanh(x) = min(x, 1) − e(x), where e is interpolated in a table with a step of 1/8: with
  a = min(|z|, 7680), i = ⌊a/256⌋ and f = a − 256 i,

      q = sign(z) (min(a, L) − ⌊((256 − f) e[i] + f e[i + 1] + 64) / 128⌋)

  which is within 3 of L tanh(z / 2048);
- relu: q = min(max(z, 0), L), with z in steps of q;
- others: q = 16 table[clip(z, ±127) + 127].

Weights are not rounded one by one. The rows of a kernel are rounded one after the other, and what is left of the float
kernel is moved so that the sums on the calibration's observations stay near those of the float policy, given the
errors made before (the method of optimal brain surgery, as in GPTQ). Biases take the rest of the mean error.
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

LARGEST = 127  # weights
LARGEST_ACTIVATION = 2048
BIAS_UNIT = TABLE_UNIT = 16
TANH_FRACTION = 11  # bits of z behind the point
TANH_TABLE_STEP = 256  # in units of z
_DAMPING = 1e-3  # of the mean variance of inputs: what calibration does not show keeps the float weights
_LARGEST_BIAS = 30000  # int16, with room for rounding and for the mean error
_LARGEST_MULTIPLIER = 255
_LARGEST_SHIFT = 24


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenLayer:
    """kernel int8[in, out], bias int16[out], multiplier uint8[out], shift 1 … 24.

    ``step`` float64[out] is what one step of the layer's outputs stands for, and ``scale`` float64[out] one of its
    sums. ``table`` is int8[255], or None for tanh and relu. The bias counts 16 sums.
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
    """kernel int8[in, out], bias int16[out] in units of 16 sums, scale float32[out]."""

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
        if self.hidden and self.policy.activation == "tanh":
            arrays.append(TANH_TABLE)
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
        q = inputs = _quantised(x, self.mean, self.factor)
        for layer in self.hidden:
            q = _activated(_sums(q, layer.kernel, layer.bias), layer, self.policy.activation)
        if self.skip:
            q = np.concatenate([q, inputs], -1)
        sums = _sums(q, self.head.kernel, self.head.bias)
        outputs: Array = np.clip(
            sums.astype(np.float32) * self.head.scale, np.float32(-LIMIT), np.float32(LIMIT)
        )
        return outputs


@np.errstate(over="ignore")
def _quantised(x: Array, mean: Array, factor: Array) -> NDArray[np.int32]:
    bound = np.float32(LARGEST_ACTIVATION)
    inputs: NDArray[np.int32] = np.rint(np.clip((x - mean) * factor, -bound, bound)).astype(np.int32)
    return inputs


def _activated(sums: NDArray[np.int32], layer: HiddenLayer, activation: str) -> NDArray[np.int32]:
    p = sums.astype(np.int64) * layer.multiplier.astype(np.int64)
    sign, a = np.where(p < 0, -1, 1), (np.abs(p) + (1 << (layer.shift - 1))) >> layer.shift
    if layer.table is not None:
        found: NDArray[np.int32] = layer.table[np.minimum(a, LARGEST) * sign + LARGEST].astype(np.int32)
        return TABLE_UNIT * found
    if activation == "relu":
        rectified: NDArray[np.int32] = np.where(p > 0, np.minimum(a, LARGEST_ACTIVATION), 0).astype(np.int32)
        return rectified
    squashed: NDArray[np.int32] = (sign * integer_tanh(a)).astype(np.int32)
    return squashed


def _tanh_table() -> NDArray[np.uint8]:
    """The values of e at 0, 1/8, … 31/8 in steps of 1/1024, less half of what a straight line between them misses."""
    x = np.arange(32) * TANH_TABLE_STEP / 2**TANH_FRACTION
    bend = 2 * np.tanh(x) * (1 - np.tanh(x) ** 2)
    gap = np.minimum(x, 1.0) - np.tanh(x) - bend / 16 / 64
    gap[-2:] = 0.0  # the last segment is where tanh is 1
    table: NDArray[np.uint8] = np.rint(1024 * np.maximum(gap, 0.0)).astype(np.uint8)
    return table


TANH_TABLE = _tanh_table()


def integer_tanh(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """2048 tanh(a / 2048) for a >= 0, as defined above."""
    a = np.minimum(a, TANH_TABLE_STEP * (len(TANH_TABLE) - 2))
    index, f = a // TANH_TABLE_STEP, a % TANH_TABLE_STEP
    table = TANH_TABLE.astype(np.int64)
    gap = (TANH_TABLE_STEP - f) * table[index] + f * table[index + 1]
    result: NDArray[np.int64] = np.minimum(a, LARGEST_ACTIVATION) - ((gap + 64) >> 7)
    return result


def _sums(q: NDArray[np.int32], kernel: NDArray[np.int8], bias: NDArray[np.int16]) -> NDArray[np.int32]:
    # float64 holds these integers exactly, and its products are fast; `quantize` refuses sums that could leave int32.
    products = np.matmul(q.astype(np.float64), kernel.astype(np.float64))
    sums: NDArray[np.int32] = (products + BIAS_UNIT * bias.astype(np.float64)).astype(np.int32)
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
    observed = policy.flat(calibration).reshape(-1, policy.observation_size)
    if not len(observed) or np.isnan(observed).any():
        raise ValueError(f"calibration needs observations without NaN, at least one, got {len(observed)}")
    x = observed.astype(np.float64)
    mean, std, limit = np.zeros(x.shape[1]), np.ones(x.shape[1]), LIMIT
    if policy.normalisation is not None:
        mean, std = (value.astype(np.float64) for value in policy.normalisation[:2])
        limit = policy.normalisation[2]
    x = np.clip((np.clip(x, -LIMIT, LIMIT) - mean) / std, -limit, limit)
    layers, skip = fold_empty_layers(policy.layers, policy.skip, policy.activation)
    if len(layers) == 1 and skip is not None:
        layers, skip = ((layers[0][0] + skip, layers[0][1]),), None
    step = _steps(np.abs(x).max(0), LARGEST_ACTIVATION)
    factor = np.clip(1.0 / (std * step), 1e-30, 1e30).astype(np.float32)
    step = 1.0 / (factor.astype(np.float64) * std)
    first, hidden = step, []
    q = inputs = _quantised(observed, np.asarray(mean, np.float32), factor)
    seen = x
    for kernel, bias in layers[:-1]:
        z = x @ kernel.astype(np.float64) + bias
        x = np.asarray(ACTIVATIONS[policy.activation](z.astype(np.float32)), np.float64)
        hidden.append(_hidden(kernel * step[:, None], bias, policy.activation, z, np.abs(x).max(0), q))
        q = _activated(_sums(q, hidden[-1].kernel, hidden[-1].bias), hidden[-1], policy.activation)
        step = hidden[-1].step
    rows, bias = layers[-1][0].astype(np.float64) * step[:, None], layers[-1][1]
    outputs = x @ layers[-1][0].astype(np.float64) + bias
    if skip is not None:
        rows, q = np.concatenate([rows, skip * first[:, None]]), np.concatenate([q, inputs], -1)
        outputs = outputs + seen @ skip.astype(np.float64)
    scale = np.maximum(_least_scale(rows, bias) * (1 + 1e-6), 1e-30).astype(np.float32)
    head = Head(*_rounded(rows, scale.astype(np.float64), q, outputs), scale)
    return QuantizedPolicy(
        policy, np.asarray(mean, np.float32), factor, tuple(hidden), head, skip is not None
    )


def _steps(largest: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """What one of ``count`` steps stands for; of what was always 0, as if 1 were the largest."""
    return np.where(largest > 0.0, largest, 1.0) / count


def _least_scale(kernel: NDArray[np.float64], bias: Array) -> NDArray[np.float64]:
    of_kernel: NDArray[np.float64] = np.abs(kernel).max(0, initial=0.0) / LARGEST
    return np.maximum(of_kernel, np.abs(bias.astype(np.float64)) / (_LARGEST_BIAS * BIAS_UNIT))


def _hidden(
    kernel: NDArray[np.float64],
    bias: Array,
    activation: str,
    z: NDArray[np.float64],
    largest: NDArray[np.float64],
    inputs: NDArray[np.int32],
) -> HiddenLayer:
    """The layer of a real kernel [in, out] whose inputs count steps; ``z`` are its float sums, ``inputs`` integers."""
    table = None
    if activation == "tanh":
        step = np.full(len(bias), 1.0 / LARGEST_ACTIVATION)
        unit: Any = 2.0**-TANH_FRACTION
    elif activation == "relu":
        step = unit = _steps(largest, LARGEST_ACTIVATION)
    else:
        unit = float(_steps(np.abs(z).max(), LARGEST))
        ticks = (unit * np.arange(-LARGEST, LARGEST + 1)).astype(np.float32)
        values = np.asarray(ACTIVATIONS[activation](ticks), np.float64)
        one = float(_steps(np.abs(values).max(), LARGEST))
        table, step = np.rint(values / one).astype(np.int8), np.full(len(bias), one / TABLE_UNIT)
    # One step of the sum has to be a whole number of 2^-shift units, so that the multiplier is exact.
    least = _least_scale(kernel, bias) / unit
    shift = min(_LARGEST_SHIFT, math.floor(math.log2(_LARGEST_MULTIPLIER / max(float(least.max()), 1e-30))))
    if shift < 1:
        raise ValueError(
            "the weights of a hidden layer are too large for 8 bits: a single step saturates a neuron"
        )
    multiplier = np.clip(np.ceil(least * 2.0**shift), 1, _LARGEST_MULTIPLIER)
    scale = multiplier * unit / 2.0**shift
    rounded, rounded_bias = _rounded(kernel, scale, inputs, z)
    return HiddenLayer(rounded, rounded_bias, multiplier.astype(np.uint8), shift, table, scale, step)


def _rounded(
    kernel: NDArray[np.float64],
    scale: NDArray[np.float64],
    inputs: NDArray[np.int32],
    sums: NDArray[np.float64],
) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """Integers whose sums for ``inputs`` [N, in] times ``scale`` are near the real ``sums`` [N, out]."""
    if len(kernel) * LARGEST * LARGEST_ACTIVATION + BIAS_UNIT * 2**15 >= 2**31:
        raise ValueError(f"a layer of {len(kernel)} inputs is too wide for sums of 32 bits")
    counts = inputs.astype(np.float64)
    centre = counts.mean(0)
    weights = _rounded_kernel(kernel / scale, counts - centre, (sums - sums.mean(0)) / scale)
    bias = np.rint((sums.mean(0) / scale - centre @ weights) / BIAS_UNIT)
    return weights.astype(np.int8), np.clip(bias, -(2**15) + 1, 2**15 - 1).astype(np.int16)


def _rounded_kernel(
    kernel: NDArray[np.float64], inputs: NDArray[np.float64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Whole numbers up to ±127 near ``kernel`` [in, out]: ``inputs`` times them are near ``sums``, both centred."""
    size = len(kernel)
    covariance = inputs.T @ inputs / len(inputs)
    damping = _DAMPING * np.trace(covariance) / max(size, 1)
    covariance += (damping if damping > 0.0 else 1.0) * np.eye(size)
    wanted = inputs.T @ (sums - inputs @ kernel) / len(inputs)
    kernel = np.clip(kernel + np.linalg.solve(covariance, wanted), -LARGEST, LARGEST)
    rounded = np.zeros_like(kernel)
    # The inputs that matter most come first: the others can still make up for them.
    order = np.argsort(-np.diag(covariance), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    left = kernel[order]
    for index, row in enumerate(order):
        rounded[row] = np.clip(np.rint(left[index]), -LARGEST, LARGEST)
        error = (left[index] - rounded[row]) / upper[index, index]
        left[index + 1 :] -= np.outer(upper[index, index + 1 :], error)
    return rounded
