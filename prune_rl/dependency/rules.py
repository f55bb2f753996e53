"""The rules of JAX's primitives, by name: what each does to the positions of its operands' axes.

A rule is a pure function of shapes and the primitive's parameters. A primitive without one blocks every axis it
touches, so nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.dependency.indexing_rules import dynamic_slice, dynamic_update_slice, gather, scatter
from prune_rl.dependency.structural_rules import (
    AxisMap,
    Links,
    Shape,
    broadcast_in_dim,
    concatenate,
    opaque,
    pad,
    pairwise,
    reshape,
    rev,
    same,
    slice_,
    split,
    squeeze,
    stack,
    tile,
    transpose,
    unstack,
)

Rule = Callable[[list[Shape], list[Shape], Mapping[str, Any]], "Links | None"]


def _elementwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    rank = len(outs[0])  # the result of a cast may have an axis more, or less, for the bytes
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


def _generated(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """New positions: numbers, or draws from a key. Made at full size and gathered, so their number may change."""
    made = tuple(tuple(() for _ in shape) for shape in outs)
    return Links(made, blocked=tuple((k, i) for k, shape in enumerate(ins) for i in range(len(shape))))


def _positional(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """A reduction over devices under `shard_map`, or over the axes that `vmap` has turned names into."""
    if params.get("axis_index_groups") is not None:
        return None
    gone = [i for i in params["axes"] if isinstance(i, int)]
    kept = [
        tuple((AxisMap(k, i),) for i in range(len(shape)) if i not in gone) for k, shape in enumerate(ins)
    ]
    return Links(tuple(kept), summed=tuple((k, i) for k in range(len(ins)) for i in gone))


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
    fixed = tuple((0, i) for i in out[2:])
    contracted = (((0, lhs[1]), (1, rhs[1])),)
    if groups == 1:
        return Links((tuple(axes),), contracted, blocked=tuple(blocked), fixed=fixed)
    channels, features = (np.arange(n).reshape(groups, -1) for n in (ins[0][lhs[1]], outs[0][out[1]]))

    def tied(extra: AxisMap) -> tuple[tuple[AxisMap, ...], ...]:
        return tuple((*maps, extra) if i == out[1] else maps for i, maps in enumerate(axes))

    # Whole groups: the channels of a group go together, with the output channels that they make.
    pairs = [(c, f[:1]) for c, f in zip(channels, features, strict=True)]
    pairs += [(c[:1], f[1:]) for c, f in zip(channels, features, strict=True) if len(f) > 1]
    ends = [np.concatenate([np.broadcast_to(p[k], max(map(len, p))) for p in pairs]) for k in (0, 1)]
    whole = (tied(AxisMap(0, lhs[1], *ends)),)
    # Equally many channels of every group: those at one place in each group go together.
    place = features.reshape(-1) % features.shape[1]
    equal = (tied(AxisMap(1, rhs[0], features.reshape(-1), place)),)
    return Links(
        whole,
        readings=(
            Links(whole, blocked=(*blocked, (1, rhs[1])), fixed=fixed),
            Links(equal, contracted, blocked=tuple(blocked), fixed=fixed),
        ),
    )


# fmt: off
ELEMENTWISE = frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
        "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex", "conj",
        "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv",
        "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag",
        "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt", "lt_to", "max", "min",
        "mul", "mulhi", "name", "ne", "neg", "nextafter", "not", "or", "polygamma", "population_count", "pow", "real",
        "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left",
        "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
        "sub", "tan", "tanh", "threefry2x32", "xor", "zeta",
    )
)
# fmt: on
# What says where an array lies, or marks it, and leaves the values alone.
MARKS = frozenset(
    ("device_put", "layout_constraint", "optimization_barrier", "pbroadcast", "pvary", "sharding_constraint")
)
# Made from shapes, or drawn from a key: at full size, so that the same randomness reaches a smaller network.
GENERATED = frozenset(("empty", "empty2", "iota", "random_bits", "rng_bit_generator", "rng_uniform"))
# What has to do with keys: as constant as what is drawn from them.
KEYS = frozenset(
    ("random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap", "random_wrap")
)
SCATTERS = frozenset(("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"))
REDUCTIONS = frozenset(
    ("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor")
)
POSITIONAL = frozenset(("pmax", "pmin", "psum", "psum_invariant"))
CUMULATIVE = frozenset(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"))
WINDOWS = frozenset(("reduce_window_max", "reduce_window_min", "reduce_window_sum"))
# No arithmetic: what the outputs hold, the operands held.
MOVES = frozenset(
    (
        *MARKS, "broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "gather", "pad",
        "reshape", "rev", "slice", "sort", "split", "squeeze", "stack", "tile", "transpose", "unstack",
    )
)  # fmt: skip
LINKS: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(CUMULATIVE, _along("axis")),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(POSITIONAL, _positional),
    **dict.fromkeys(MARKS, pairwise),
    **dict.fromkeys(GENERATED, _generated),
    **dict.fromkeys(SCATTERS, scatter),
    **dict.fromkeys(("argmax", "argmin"), _arg),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "slice": slice_,
    "sort": _along("dimension"),
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "top_k": _along("axis"),
    "transpose": transpose,
    "unstack": unstack,
}


def links_of(name: str, ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links:
    """The links of one primitive applied to operands of these shapes; opaque where no rule applies."""
    rule = LINKS.get(name)
    links = rule(ins, outs, params) if rule is not None else None
    return opaque(ins, outs) if links is None else links
