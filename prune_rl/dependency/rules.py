"""The rules of JAX's primitives, by name: what each does to the positions of its operands' axes, and on smaller arrays.

A rule of `LINKS` is a pure function of shapes and the primitive's parameters. A primitive without one blocks every axis
it touches, so nothing is ever guessed. A rule of `RESIZED` binds the primitive on arrays smaller than the traced ones;
a primitive without one takes its shapes from its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.jaxpr import Equation
from prune_rl.dependency.structural_rules import (
    AxisMap,
    AxisOf,
    Links,
    Shape,
    broadcast_in_dim,
    concatenate,
    dynamic_slice,
    dynamic_update_slice,
    gather,
    opaque,
    pad,
    pairwise,
    reshape,
    rev,
    same,
    slice_,
    split,
    squeeze,
    tile,
    transpose,
)
from prune_rl.dependency.tree_paths import Flags, Indices

Rule = Callable[[list[Shape], list[Shape], Mapping[str, Any]], "Links | None"]


def _elementwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    rank = len(outs[0])
    shaped = [k for k, shape in enumerate(ins) if shape]
    if any(len(ins[k]) != rank for k in shaped):
        return None
    # A length-1 axis against a longer one is repeated: its length is fixed to 1.
    axes = tuple(tuple(AxisMap(k, i) for k in shaped if ins[k][i] == outs[0][i]) for i in range(rank))
    blocked = tuple((k, i) for k in shaped for i in range(rank) if ins[k][i] != outs[0][i])
    return Links(tuple(axes for _ in outs), blocked=blocked)


def _reduction(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    gone = [int(i) for i in params["axes"]]
    kept = tuple((AxisMap(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links(tuple(kept for _ in outs), summed=tuple((0, i) for i in gone))


def _arg(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    gone = [int(i) for i in params["axes"]]
    kept = tuple((AxisMap(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links((kept,), blocked=tuple((0, i) for i in gone))


def _along(names: str) -> Rule:
    """Every axis is kept, those that the parameter names with a fixed length."""

    def rule(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
        named = params[names]
        fixed = {int(i) for i in (named if isinstance(named, Sequence) else [named])}
        blocked = tuple((k, i) for k in range(len(ins)) for i in fixed)
        together = tuple(tuple(AxisMap(k, i) for k in range(len(ins))) for i in range(len(ins[0])))
        return Links(tuple(together for _ in outs), blocked=blocked)

    return rule


def _iota(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    return None if ins else Links((tuple(() for _ in outs[0]),), fixed=((0, params["dimension"]),))


def _window(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Pooling: an axis with a window of 1 is left alone."""
    axes, blocked, fixed = same(len(ins[0])), [], []
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    for i in range(len(ins[0])):
        if any(params[name][i] != 1 for name in names) or any(params["padding"][i]):
            axes[i] = ()
            blocked.append((0, i))
            fixed.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked), fixed=tuple(fixed))


def _dot_general(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    (left_c, right_c), (left_b, right_b) = params["dimension_numbers"]
    out: list[tuple[AxisMap, ...]] = [
        (AxisMap(0, a), AxisMap(1, b)) for a, b in zip(left_b, right_b, strict=True)
    ]
    for k, used in ((0, {*left_c, *left_b}), (1, {*right_c, *right_b})):
        out += [(AxisMap(k, i),) for i in range(len(ins[k])) if i not in used]
    contracted = tuple(((0, a), (1, b)) for a, b in zip(left_c, right_c, strict=True))
    return Links((tuple(out),), contracted, batch=tuple((0, a) for a in left_b))


def _conv(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    if params["batch_group_count"] != 1:
        return None
    axes: list[tuple[AxisMap, ...]] = [() for _ in outs[0]]
    axes[out[0]], axes[out[1]] = (AxisMap(0, lhs[0]),), (AxisMap(1, rhs[0]),)
    blocked = [*((0, i) for i in lhs[2:]), *((1, i) for i in rhs[2:])]
    fixed = [(0, i) for i in out[2:]]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    if groups == 1:
        contracted = (((0, lhs[1]), (1, rhs[1])),)
    elif ins[1][rhs[1]] == 1:  # depthwise: every input channel makes output channels of its own
        features = np.arange(outs[0][out[1]])
        axes[out[1]] += (AxisMap(0, lhs[1], features // (len(features) // groups), features),)
        blocked.append((1, rhs[1]))
    else:
        axes[out[1]] = ()
        blocked += [(0, lhs[1]), (1, rhs[0]), (1, rhs[1])]
        fixed.append((0, out[1]))
    return Links((tuple(axes),), contracted, blocked=tuple(blocked), fixed=tuple(fixed))


# fmt: off
ELEMENTWISE = frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
        "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma",
        "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
        "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
        "mul", "name", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round",
        "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
        "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    )
)
# fmt: on
REDUCTIONS = frozenset(("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"))
CUMULATIVE = frozenset(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"))
WINDOWS = frozenset(("reduce_window_max", "reduce_window_min", "reduce_window_sum"))
# No arithmetic: what the outputs hold, the operands held.
MOVES = frozenset(
    (
        "broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "gather",
        "optimization_barrier", "pad", "reshape", "rev", "slice", "sort", "split", "squeeze", "tile",
        "transpose",
    )
)  # fmt: skip
LINKS: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(CUMULATIVE, _along("axis")),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(("argmax", "argmin"), _arg),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "iota": _iota,
    "optimization_barrier": pairwise,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "slice": slice_,
    "sort": _along("dimension"),
    "split": split,
    "squeeze": squeeze,
    "tile": tile,
    "transpose": transpose,
}


def links_of(name: str, ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links:
    """The links of one primitive applied to operands of these shapes; opaque where no rule applies."""
    rule = LINKS.get(name)
    links = rule(ins, outs, params) if rule is not None else None
    return opaque(ins, outs) if links is None else links


# --- on arrays that positions were removed from ---


class Kept(Protocol):
    """What is kept of the values of a program."""

    def shape(self, value: int) -> Shape:
        """The shape after removal."""

    def along(self, value: int, axis: int) -> Flags:
        """Which positions are kept, bool[traced length]."""

    def integers(self, value: int) -> Indices | None:
        """The traced index array that a value is known to be."""


ResizedRule = Callable[[Equation, list[Any], Kept], list[Any]]


def bind_resized(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """The outputs of one primitive on arrays that hold only the kept positions."""
    rule = RESIZED.get(equation.name)
    return equation.bind(arguments) if rule is None else rule(equation, arguments, kept)


def _with_shape(name: str) -> ResizedRule:
    """The parameter `name` is the shape of the output."""

    def rule(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
        return equation.bind(arguments, {**equation.params, name: kept.shape(equation.outs[0])})

    return rule


def _resized_slice(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    params, (array,), (value,) = equation.params, arguments, equation.ins
    strides = params["strides"] or (1,) * np.ndim(array)
    ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (start, stop, step) in enumerate(ranges):
        array = _take(array, np.arange(start, stop, step), axis, kept.along(value, axis))
    return [array]


def _take(array: Any, indices: Indices, axis: int, keep: Flags) -> Any:
    """The kept ones of the positions `indices`, numbered as before removal, along an axis of a resized array."""
    now = (np.cumsum(keep) - 1)[indices[keep[indices]]]
    if len(now) == 0 or bool((np.diff(now) == 1).all()):
        start = int(now[0]) if len(now) else 0
        return jax.lax.slice_in_dim(array, start, start + len(now), axis=axis)
    return jnp.take(array, now, axis, mode="clip")


def _resized_split(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    axis = equation.params["axis"]
    return equation.bind(
        arguments, {**equation.params, "sizes": tuple(kept.shape(v)[axis] for v in equation.outs)}
    )


def _resized_gather(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    indices, numbers = kept.integers(equation.ins[1]), equation.params["dimension_numbers"]
    (axis, *others) = numbers.start_index_map
    if indices is None or others or kept.along(equation.ins[0], axis).all():
        return _resized_window(equation, arguments, kept)
    keep = kept.along(equation.ins[0], axis)
    taken = _take(arguments[0], indices[:, 0].astype(np.int64), int(axis), keep)
    (out,) = (o for o in range(np.ndim(taken)) if o not in numbers.offset_dims)
    return [jnp.moveaxis(taken, int(axis), out)]


def _resized_window(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """Axes that were taken whole still are."""
    sizes, traced = equation.params["slice_sizes"], equation.source.invars[0].aval.shape
    lengths = zip(sizes, traced, kept.shape(equation.ins[0]), strict=True)
    slice_sizes = tuple(new if size == old else size for size, old, new in lengths)
    return equation.bind(arguments, {**equation.params, "slice_sizes": slice_sizes})


def _resized_conv(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    params = dict(equation.params)
    if params["feature_group_count"] > 1:
        params["feature_group_count"] = kept.shape(equation.ins[0])[params["dimension_numbers"].lhs_spec[1]]
    return equation.bind(arguments, params)


RESIZED: dict[str, ResizedRule] = {
    "broadcast_in_dim": _with_shape("shape"),
    "conv_general_dilated": _resized_conv,
    "dynamic_slice": _resized_window,
    "gather": _resized_gather,
    "iota": _with_shape("shape"),
    "reshape": _with_shape("new_sizes"),
    "slice": _resized_slice,
    "split": _resized_split,
}
