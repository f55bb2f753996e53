"""The source of a policy in 8-bit integers: the same bits as `prune_rl.export.quantize.QuantizedPolicy`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prune_rl.export.c.actions import ActionCode, action_code
from prune_rl.export.c.functions import CLAMP, TANH
from prune_rl.export.c.literals import array
from prune_rl.export.c.self_test import self_test
from prune_rl.export.c.source import CSource, assemble, check_name
from prune_rl.export.lowering import Lowered, lower
from prune_rl.export.quantize import (
    BIAS_UNIT,
    LARGEST_ACTIVATION,
    TABLE_UNIT,
    TANH_TABLE,
    TANH_TABLE_STEP,
    Head,
    HiddenLayer,
    QuantizedPolicy,
)

# Four sums at a time, so that an input is loaded once for four products. `paired` has the order of the kernel, which
# lets processors with the DSP extension multiply two pairs of 16-bit numbers at once.
_AFFINE = """
#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>
#include <string.h>

/* sum + a[0] b[0] + a[1] b[1], for each of two sums, with bytes 0 and 2, and 1 and 3, of four weights. */
static void @multiply(const int8_t *weights, const int16_t *x, const int16_t *y, int32_t *sum_0, int32_t *sum_1)
{
    uint32_t word;
    uint32_t rotated;
    int32_t even;
    int32_t odd;
    (void)memcpy(&even, x, sizeof even);
    (void)memcpy(&odd, y, sizeof odd);
    (void)memcpy(&word, weights, sizeof word);
    rotated = (word >> 8U) | (word << 24U);
    *sum_0 = __smlad(__sxtb16((int32_t)word), even, *sum_0);
    *sum_1 = __smlad(__sxtb16((int32_t)rotated), odd, *sum_1);
}
#else
static void @multiply(const int8_t *weights, const int16_t *x, const int16_t *y, int32_t *sum_0, int32_t *sum_1)
{
    *sum_0 += ((int32_t)weights[0] * (int32_t)x[0]) + ((int32_t)weights[2] * (int32_t)x[1]);
    *sum_1 += ((int32_t)weights[1] * (int32_t)y[0]) + ((int32_t)weights[3] * (int32_t)y[1]);
}
#endif

/* sums = x kernel + BIAS_UNIT bias; the kernel in blocks of four outputs, then the others' rows, inputs in pairs. */
static void @affine(const int8_t *kernel, const int16_t *bias, const int16_t *x, uint32_t inputs, int32_t *sums,
                    uint32_t outputs)
{
    uint32_t j = 0U;
    uint32_t k = 0U;
    while ((j + 4U) <= outputs) {
        int32_t sum_0 = BIAS_UNIT * (int32_t)bias[j];
        int32_t sum_1 = BIAS_UNIT * (int32_t)bias[j + 1U];
        int32_t sum_2 = BIAS_UNIT * (int32_t)bias[j + 2U];
        int32_t sum_3 = BIAS_UNIT * (int32_t)bias[j + 3U];
        uint32_t i = 0U;
        while ((i + 2U) <= inputs) {
            @multiply(&kernel[k], &x[i], &x[i], &sum_0, &sum_1);
            @multiply(&kernel[k + 4U], &x[i], &x[i], &sum_2, &sum_3);
            i += 2U;
            k += 8U;
        }
        if (i < inputs) {
            sum_0 += (int32_t)kernel[k] * (int32_t)x[i];
            sum_1 += (int32_t)kernel[k + 1U] * (int32_t)x[i];
            sum_2 += (int32_t)kernel[k + 2U] * (int32_t)x[i];
            sum_3 += (int32_t)kernel[k + 3U] * (int32_t)x[i];
            k += 4U;
        }
        sums[j] = sum_0;
        sums[j + 1U] = sum_1;
        sums[j + 2U] = sum_2;
        sums[j + 3U] = sum_3;
        j += 4U;
    }
    while (j < outputs) {
        int32_t sum_0 = BIAS_UNIT * (int32_t)bias[j];
        int32_t sum_1 = 0;
        uint32_t i = 0U;
        while ((i + 4U) <= inputs) {
            @multiply(&kernel[k], &x[i], &x[i + 2U], &sum_0, &sum_1);
            i += 4U;
            k += 4U;
        }
        while (i < inputs) {
            sum_0 += (int32_t)kernel[k] * (int32_t)x[i];
            i++;
            k++;
        }
        sums[j] = sum_0 + sum_1;
        j++;
    }
}
"""


def paired(kernel: NDArray[np.int8]) -> NDArray[np.int8]:
    """A kernel [in, out] in the order in which the C code reads it.

    Blocks of four outputs, each with pairs of inputs: four bytes for its first two outputs (both with the first input,
    then both with the second), four for the others; an input that is left over comes last. Then the rows of the other
    outputs, in quadruples of inputs 0, 2, 1, 3.
    """
    inputs, full = len(kernel), kernel.shape[1] // 4 * 4
    parts = []
    for start in range(0, full, 4):
        block, even = kernel[:, start : start + 4], inputs // 2 * 2
        pairs = block[:even].reshape(-1, 2, 4)
        parts += [np.stack([pairs[:, :, :2], pairs[:, :, 2:]], 1).ravel(), block[even:].ravel()]
    for row in kernel[:, full:].T:
        whole = inputs // 4 * 4
        parts += [row[:whole].reshape(-1, 4)[:, [0, 2, 1, 3]].ravel(), row[whole:]]
    return np.concatenate(parts)


_ACTIVATE = """
static void @activate(const int32_t *sums, const uint8_t *multiplier, uint32_t shift,TABLE int16_t *y, uint32_t count)
{
    for (uint32_t j = 0U; j < count; j++) {
        const int32_t sign = 1 - (2 * (int32_t)((uint32_t)sums[j] >> 31U));
        const WIDE p = (WIDE)(uint32_t)(sign * sums[j]) * multiplier[j];
        const WIDE z = (p + ((WIDE)1U << (shift - 1U))) >> shift;
BODY
    }
}
"""
_BODIES = {
    "tanh": """
        const uint32_t a = (z < LAST_KNOTU) ? (uint32_t)z : LAST_KNOTU;
        const uint8_t *const gap = &@tanh_gap[a / 256U];
        const int32_t slope = (int32_t)gap[1] - (int32_t)gap[0];
        const int32_t between = (256 * (int32_t)gap[0]) + ((int32_t)(a % 256U) * slope);
        const uint32_t q = ((a < LARGESTU) ? a : LARGESTU) - (((uint32_t)between + 64U) / 128U);
        y[j] = (int16_t)(sign * (int32_t)q);""",
    "relu": """
        const uint32_t q = (z < LARGESTU) ? (uint32_t)z : LARGESTU;
        y[j] = (int16_t)((sign < 0) ? 0 : (int32_t)q);""",
    "table": """
        const uint32_t q = (z < 127U) ? (uint32_t)z : 127U;
        y[j] = (int16_t)(TABLE_UNIT * (int32_t)table[127 + (sign * (int32_t)q)]);""",
}

_QUANTISE = """
/* Rounds half to even: 1.5 * 2^23 leaves no fraction. The bits of positive numbers, as integers, are in their order and
 * those of negative ones below them, so that they are bounded faster than the numbers. */
static int16_t @quantise(float x)
{
    const int32_t zero = 0x4B400000;
    union { float number; int32_t bits; } shifted;
    int32_t bounded;
    shifted.number = x + 12582912.0f;
    bounded = (shifted.bits < (zero - LARGEST)) ? (zero - LARGEST) : shifted.bits;
    bounded = (bounded > (zero + LARGEST)) ? (zero + LARGEST) : bounded;
    return (int16_t)(bounded - zero);
}
"""


def c_int8_source(
    quantized: QuantizedPolicy, name: str = "policy", metadata: Mapping[str, str] | None = None
) -> CSource:
    """As `prune_rl.export.c.source.c_source`, in 8-bit integers; the self-test expects the actions of ``quantized``."""
    check_name(name)
    lowered = lower(quantized.policy)
    action = action_code(lowered)
    parts = [
        _constants(quantized),
        action.constants,
        _functions(quantized, action),
        _act(quantized, lowered, action),
    ]
    test = self_test(quantized.policy, action.kind, action.size, quantized)
    return assemble(quantized.policy, name, metadata, action, parts, test)


def _kind(quantized: QuantizedPolicy) -> str:
    return quantized.policy.activation if quantized.policy.activation in _BODIES else "table"


def _constants(quantized: QuantizedPolicy) -> str:
    text = []
    if quantized.policy.normalisation is not None:
        text.append(array("float", "@mean", quantized.mean))
    text.append(array("float", "@factor", quantized.factor))
    layers: list[HiddenLayer | Head] = [*quantized.hidden, quantized.head]
    for index, layer in enumerate(layers):
        text += [
            array("int8_t", f"@kernel_{index}", paired(layer.kernel)),
            array("int16_t", f"@bias_{index}", layer.bias),
        ]
        if isinstance(layer, HiddenLayer):
            text.append(array("uint8_t", f"@multiplier_{index}", layer.multiplier))
            if layer.table is not None:
                text.append(array("int8_t", f"@table_{index}", layer.table))
    if quantized.hidden and _kind(quantized) == "tanh":
        text.append(array("uint8_t", "@tanh_gap", TANH_TABLE))
    text.append(array("float", "@scale", quantized.head.scale))
    return "".join(text)


def _functions(quantized: QuantizedPolicy, action: ActionCode) -> str:
    kind = _kind(quantized)
    largest = max((_largest_sum(layer) for layer in quantized.hidden), default=0)
    activate = _ACTIVATE.replace("WIDE", "uint32_t" if largest < 2**32 else "uint64_t")
    activate = activate.replace("TABLE", " const int8_t *table," if kind == "table" else "")
    activate = activate.replace("BODY", _BODIES[kind].strip("\n"))
    clamp = CLAMP if "@clamp(" in action.functions + action.body else ""
    parts = (clamp, _QUANTISE, _AFFINE, activate if quantized.hidden else "", TANH if action.tanh else "")
    code = (
        "".join((*parts, action.functions))
        .replace("BIAS_UNIT", str(BIAS_UNIT))
        .replace("TABLE_UNIT", str(TABLE_UNIT))
    )
    last_knot = TANH_TABLE_STEP * (len(TANH_TABLE) - 2)
    return code.replace("LAST_KNOT", str(last_knot)).replace("LARGEST", str(LARGEST_ACTIVATION))


def _largest_sum(layer: HiddenLayer) -> int:
    """A bound of |sum · multiplier| and what is added to round it."""
    sums = np.abs(layer.kernel.astype(np.int64)).sum(0) * LARGEST_ACTIVATION
    sums += BIAS_UNIT * np.abs(layer.bias.astype(np.int64))
    return int((sums * layer.multiplier).max(initial=0)) + (1 << (layer.shift - 1))


def _act(quantized: QuantizedPolicy, policy: Lowered, action: ActionCode) -> str:
    size, outputs = policy.observation_size, policy.outputs
    widths = [len(layer.bias) for layer in quantized.hidden]
    inputs = quantized.head.kernel.shape[0]
    longest = max(inputs, *widths) if widths else inputs
    difference = (
        "observation[i] - @mean[i]" if quantized.policy.normalisation is not None else "observation[i]"
    )
    table = _kind(quantized) == "table"
    # The sums are taken out of a buffer before what they make is written into it, so one of each kind is enough.
    declarations = [f"int16_t x[{size}]", f"int32_t sums[{max(outputs, *widths) if widths else outputs}]"]
    if widths:
        declarations.append(f"int16_t q[{longest}]")
    calls, source, count = [], "x", size
    for index, width in enumerate(widths):
        calls.append(f"@affine(@kernel_{index}, @bias_{index}, {source}, {count}U, sums, {width}U);")
        extra = f" @table_{index}," if table else ""
        shift = quantized.hidden[index].shift
        calls.append(f"@activate(sums, @multiplier_{index}, {shift}U,{extra} q, {width}U);")
        source, count = "q", width
    if quantized.skip and widths:
        calls.append(
            f"for (uint32_t i = 0U; i < {size}U; i++) {{\n            q[{count}U + i] = x[i];\n        }}"
        )
    calls.append(
        f"@affine(@kernel_{len(widths)}, @bias_{len(widths)}, {source}, {inputs}U, sums, {outputs}U);"
    )
    calls.append(
        f"for (uint32_t i = 0U; i < {outputs}U; i++) {{\n"
        "            outputs[i] = (float)sums[i] * @scale[i];\n        }"
    )
    body = "".join(f"        {call}\n" for call in calls)
    return (
        f"\nint32_t @act(const float observation[{size}], {action.kind} action[{action.size}])\n{{\n"
        + "".join(f"    {declaration};\n" for declaration in [f"float outputs[{outputs}]", *declarations])
        + "    int32_t status = 0;\n"
        f"    for (uint32_t i = 0U; i < {size}U; i++) {{\n"
        f"        const float difference = {difference};\n"
        "        if (observation[i] != observation[i]) {\n            status = 1;\n        }\n"
        "        x[i] = @quantise(difference * @factor[i]);\n    }\n"
        f"    if (status == 0) {{\n{body}{action.body}    }}\n    return status;\n}}\n"
    )
