"""What each primitive of JAX does to the axes of its operands: one rule per primitive, a pure function of shapes.

A primitive without a rule blocks every axis it touches, so nothing is ever guessed. Whole axes are tied here; a
rule that ties single indices would be another table of this kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

AxisOf = tuple[int, int]  # (position of the operand, input or output; its axis)
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Links:
    """What a primitive does to the axes of its operands.

    outs[k][i]: operand axes that axis i of output k is tied to (none: a new axis). contracted: pairs of
    operand axes summed against each other. batch: operand axes that index independent products. blocked:
    operand axes used in a way that fixes their length. fixed: output axes (output, axis) of a fixed length.
    opaque: the primitive has no rule.
    """

    outs: tuple[tuple[tuple[AxisOf, ...], ...], ...]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    batch: tuple[AxisOf, ...] = ()
    blocked: tuple[AxisOf, ...] = ()
    fixed: tuple[AxisOf, ...] = ()
    opaque: bool = False


Rule = Callable[[list[Shape], list[Shape], Mapping[str, Any]], "Links | None"]


def _elementwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    out = outs[0]
    axes: list[list[AxisOf]] = [[] for _ in out]
    blocked: list[AxisOf] = []
    for k, shape in enumerate(ins):
        if not shape:
            continue
        if len(shape) != len(out):
            return None
        for i, size in enumerate(shape):
            # A length-1 axis against a longer one is repeated: its length is fixed to 1.
            (axes[i] if size == out[i] else blocked).append((k, i))
    linked = tuple(tuple(a) for a in axes)
    return Links(tuple(linked for _ in outs), blocked=tuple(blocked))


def _broadcast_in_dim(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes: list[tuple[AxisOf, ...]] = [() for _ in outs[0]]
    blocked: list[AxisOf] = []
    for i, target in enumerate(params["broadcast_dimensions"]):
        if ins[0][i] == outs[0][target]:
            axes[target] = ((0, i),)
        else:
            blocked.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked))


def _reshape(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that a row-major reshape leaves alone: the equal ones at the end, then the equal ones in front."""
    old, new = ins[0], outs[0]
    if params.get("dimensions") is not None or (0 in old and old != new):
        return None
    axes: list[tuple[AxisOf, ...]] = [() for _ in new]
    kept: set[int] = set()
    tail = 0
    while tail < min(len(old), len(new)) and old[-1 - tail] == new[-1 - tail]:
        tail += 1
        axes[len(new) - tail], kept = ((0, len(old) - tail),), kept | {len(old) - tail}
    head = 0
    while head < min(len(old), len(new)) - tail and old[head] == new[head]:
        axes[head], kept = ((0, head),), kept | {head}
        head += 1
    # Which of several length-1 axes is which is only certain when ones are added or removed in front.
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    extra = len(longer) - len(shorter)
    if longer[:extra] != (1,) * extra or longer[extra:] != shorter:
        kept -= {i for i, size in enumerate(old) if size == 1}
        axes = [a if n != 1 else () for a, n in zip(axes, new, strict=True)]
    blocked = tuple((0, i) for i in range(len(old)) if i not in kept)
    fixed = tuple((0, i) for i, tied in enumerate(axes) if not tied)
    return Links((tuple(axes),), blocked=blocked, fixed=fixed)


def _transpose(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    return Links((tuple(((0, i),) for i in params["permutation"]),))


def _without(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Squeeze and reductions: the named axes go, and whatever had length n there is used up."""
    gone = params["axes"] if "axes" in params else params["dimensions"]
    kept = tuple(((0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links(tuple(kept for _ in outs), blocked=tuple((0, int(i)) for i in gone))


def _dot_general(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    (left_c, right_c), (left_b, right_b) = params["dimension_numbers"]
    out: list[tuple[AxisOf, ...]] = [((0, a), (1, b)) for a, b in zip(left_b, right_b, strict=True)]
    for k, used in ((0, {*left_c, *left_b}), (1, {*right_c, *right_b})):
        out += [((k, i),) for i in range(len(ins[k])) if i not in used]
    contracted = tuple(((0, a), (1, b)) for a, b in zip(left_c, right_c, strict=True))
    return Links((tuple(out),), contracted, batch=tuple((0, a) for a in left_b))


# fmt: off
ELEMENTWISE = frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
        "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma",
        "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
        "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
        "mul", "name", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
        "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
        "xor",
    )
)
# fmt: on
REDUCTIONS = frozenset(("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"))
MOVES = frozenset(("broadcast_in_dim", "reshape", "squeeze", "transpose"))  # no arithmetic
LINKS: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS | {"squeeze"}, _without),
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": _transpose,
    "dot_general": _dot_general,
}


def links_of(name: str, ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links:
    """The links of one primitive applied to operands of these shapes; opaque where no rule applies."""
    rule = LINKS.get(name)
    links = rule(ins, outs, params) if rule is not None else None
    if links is not None:
        return links
    every = tuple((k, i) for k, shape in enumerate(ins) for i in range(len(shape)))
    made = tuple((k, i) for k, shape in enumerate(outs) for i in range(len(shape)))
    free = tuple(tuple(() for _ in shape) for shape in outs)
    return Links(free, blocked=every, fixed=made, opaque=True)
