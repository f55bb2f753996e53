"""C code from the outputs of the head to the action, as `prune_rl.export.actions.post_processing` does it in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.actions import exact_bounds
from prune_rl.export.c.literals import array, double_literal, float_literal
from prune_rl.export.lowering import Lowered
from prune_rl.spaces import Box, Discrete

# C99 has no half precision: such actions are float, rounded to what half precision can hold.
C_TYPES = {"float32": "float", "float64": "double", "float16": "float", "bool": "uint8_t"}


@dataclasses.dataclass(frozen=True)
class ActionCode:
    """The parts of the source that make an action.

    Attributes:
        kind: the C type of one component.
        size: how many there are.
        constants: definitions at file level.
        functions: likewise; `@` is the prefix of names.
        body: statements that read `outputs` and write `action`.
        tanh: whether they call `@tanh`.
    """

    kind: str
    size: int
    constants: str
    functions: str
    body: str
    tanh: bool


def action_type(action: Discrete | Box) -> str:
    """The C type of one component of an action."""
    if isinstance(action, Discrete):
        return "int32_t" if action.start >= -(2**31) and action.start + action.n <= 2**31 else "int64_t"
    return C_TYPES.get(action.dtype, f"{action.dtype}_t")


def action_code(policy: Lowered) -> ActionCode:
    """The code for a policy's action space."""
    kind = action_type(policy.action)
    if isinstance(policy.action, Discrete):
        return ActionCode(kind, 1, "", "", _argmax(policy.action, kind), False)
    constants: list[str] = []

    def operand(name: str, values: ArrayLike, ctype: str, literal: Callable[[float], str]) -> str:
        """An expression for component i: an element of a new array, or a literal where all are equal."""
        texts = [literal(value) for value in np.ravel(values)]
        if len(set(texts)) == 1:
            return texts[0]
        constants.append(array(ctype, f"@{name}", values, texts))
        return f"@{name}[i]"

    lines = []
    if policy.squash:
        half = operand("half", policy.half, "float", float_literal)
        centre = operand("centre", policy.centre, "float", float_literal)
        lines += [f"const float scaled = {half} * @tanh(outputs[i]);", f"float y = {centre} + scaled;"]
    else:
        lines += ["float y = outputs[i];"]
    low, high = (
        operand(name, values, "float", float_literal)
        for name, values in (("low", policy.low), ("high", policy.high))
    )
    lines.append(f"y = @clamp(y, {low}, {high});")
    functions, dtype = "", np.dtype(policy.action.dtype)
    if dtype == np.float32:
        lines.append("action[i] = y;")
    else:
        lower, upper = exact_bounds(policy.action)
        small = dtype == np.float16 or dtype.itemsize <= 2
        ctype, literal = ("float", float_literal) if small else ("double", double_literal)
        functions = (_ROUND_HALF if dtype.kind == "f" else _ROUND_FLOAT) if small else _ROUND_DOUBLE
        if dtype == np.float64:
            functions = ""
            lines.append("double exact = (double)y;")
        elif small:
            lines.append(
                f"float exact = @round({'@clamp(y, -65504.0f, 65504.0f)' if dtype.kind == 'f' else 'y'});"
            )
        else:
            lines.append("double exact = @round((double)y);")
        least, most = (operand(f"exact_{n}", v, ctype, literal) for n, v in (("low", lower), ("high", upper)))
        lines += [
            f"exact = (exact < {least}) ? {least} : exact;",
            f"exact = (exact > {most}) ? {most} : exact;",
            "action[i] = exact;" if dtype.kind == "f" else f"action[i] = ({kind})exact;",
        ]
    body = "".join(f"            {line}\n" for line in lines)
    size = policy.action.size
    loop = f"        for (uint32_t i = 0U; i < {size}U; i++) {{\n{body}        }}\n"
    return ActionCode(kind, size, "".join(constants), functions, loop, policy.squash)


def _argmax(action: Discrete, kind: str) -> str:
    suffix = "" if kind == "int32_t" else "LL"
    start = f" + {action.start}{suffix}" if action.start >= 0 else f" - {-action.start}{suffix}"
    return (
        "        uint32_t best = 0U;\n"
        f"        for (uint32_t i = 1U; i < {action.n}U; i++) {{\n"
        "            if (outputs[i] > outputs[best]) {\n"
        "                best = i;\n"
        "            }\n"
        "        }\n"
        f"        action[0] = ({kind})best{start if action.start else ''};\n"
    )


# Adding 1.5 · 2^23 (in double 1.5 · 2^52) leaves no fraction: rounded half to even. Beyond these, bounds decide.
_ROUND_FLOAT = """
static float @round(float x)
{
    const float shifted = x + 12582912.0f;
    return shifted - 12582912.0f;
}
"""
_ROUND_DOUBLE = """
static double @round(double x)
{
    const double shifted = x + 6755399441055744.0;
    return shifted - 6755399441055744.0;
}
"""
# To 11 significant bits, or to multiples of 2^-24 below 2^-14: 1.5 · 2^23 quanta are added and taken away.
_ROUND_HALF = """
static float @round(float x)
{
    const float magnitude = (x < 0.0f) ? -x : x;
    float quantum = 5.96046448e-08f;
    float power = 0.00012207031f;
    while (magnitude >= power) {
        power = power * 2.0f;
        quantum = quantum * 2.0f;
    }
    {
        const float shifted = x + (quantum * 12582912.0f);
        return shifted - (quantum * 12582912.0f);
    }
}
"""
