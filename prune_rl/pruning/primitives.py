"""What each primitive of JAX does to the positions of its operands' axes: one rule per primitive.

A rule is a pure function of shapes and the primitive's parameters. A primitive without a rule blocks every axis it
touches, so nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.pruning.links import AxisOf, Choice, Links, Tie, opaque

Shape = tuple[int, ...]
Rule = Callable[[list[Shape], list[Shape], Mapping[str, Any]], "Links | None"]


def _same(rank: int, operand: int = 0) -> list[tuple[Tie, ...]]:
    """Every axis of the output is that axis of one operand."""
    return [(Tie(operand, i),) for i in range(rank)]


def _elementwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    rank = len(outs[0])
    shaped = [k for k, shape in enumerate(ins) if shape]
    if any(len(ins[k]) != rank for k in shaped):
        return None
    # A length-1 axis against a longer one is repeated: its length is fixed to 1.
    axes = tuple(tuple(Tie(k, i) for k in shaped if ins[k][i] == outs[0][i]) for i in range(rank))
    blocked = tuple((k, i) for k in shaped for i in range(rank) if ins[k][i] != outs[0][i])
    return Links(tuple(axes for _ in outs), blocked=blocked)


def _pairwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Output k is operand k."""
    return Links(tuple(tuple(_same(len(shape), k)) for k, shape in enumerate(outs)))


def _broadcast_in_dim(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes: list[tuple[Tie, ...]] = [() for _ in outs[0]]
    blocked: list[AxisOf] = []
    for i, target in enumerate(params["broadcast_dimensions"]):
        if ins[0][i] == outs[0][target]:
            axes[target] = (Tie(0, i),)
        else:
            blocked.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked))


def _reshape(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that a row-major reshape leaves alone, folds together or takes apart."""
    old, new = ins[0], outs[0]
    if params.get("dimensions") is not None or 0 in old:
        return None
    axes: list[tuple[Tie, ...]] = [() for _ in new]
    kept: set[int] = set()
    choices: list[Choice] = []
    for mine, theirs in _factors(old, new):
        if len(mine) == len(theirs) == 1:
            axes[theirs[0]], kept = ((Tie(0, mine[0]),), kept | {mine[0]})
        elif len(mine) == 1 or len(theirs) == 1:
            choices.append(_fold(old, new, mine, theirs))
    # Which of several length-1 axes is which is only certain when ones are added or removed in front.
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    extra = len(longer) - len(shorter)
    if longer[:extra] == (1,) * extra and longer[extra:] == shorter:
        for i, n in enumerate(shorter):
            if n == 1:
                mine_, theirs_ = (i + extra, i) if longer is old else (i, i + extra)
                axes[theirs_], kept = (Tie(0, mine_),), kept | {mine_}
    chosen = {i for choice in choices for i in choice.ins}, {i for choice in choices for i in choice.outs}
    blocked = tuple((0, i) for i in range(len(old)) if i not in kept | chosen[0])
    fixed = tuple((0, i) for i, tied in enumerate(axes) if not tied and i not in chosen[1])
    return Links((tuple(axes),), blocked=blocked, fixed=fixed, choices=tuple(choices))


def _factors(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The finest cut of both shapes into runs of equal products; axes of length 1 left out."""
    runs: list[tuple[list[int], list[int]]] = []
    left, right = ([i for i, n in enumerate(shape) if n != 1] for shape in (old, new))
    while left or right:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        a, b = old[mine[0]], new[theirs[0]]
        while a != b:
            if a < b:
                mine.append(left.pop(0))
                a *= old[mine[-1]]
            else:
                theirs.append(right.pop(0))
                b *= new[theirs[-1]]
        runs.append((mine, theirs))
    return runs


def _fold(old: Shape, new: Shape, mine: list[int], theirs: list[int]) -> Choice:
    """Several axes against one: the coordinate along each of the several, at every position of the one."""
    several, shape = (mine, old) if len(theirs) == 1 else (theirs, new)
    coordinates = np.indices([shape[i] for i in several]).reshape(len(several), -1)
    along = np.arange(coordinates.shape[1])
    options = []
    for axis, coordinate in zip(several, coordinates, strict=True):
        if several is mine:
            options.append((axis, theirs[0], Tie(0, axis, coordinate, along)))
        else:
            options.append((mine[0], axis, Tie(0, mine[0], along, coordinate)))
    # Features come last in most layouts.
    return Choice(tuple(reversed(options)), tuple(mine), tuple(theirs))


def _transpose(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    return Links((tuple((Tie(0, i),) for i in params["permutation"]),))


def _squeeze(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    gone = [int(i) for i in params["dimensions"]]
    kept = tuple((Tie(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links((kept,), blocked=tuple((0, i) for i in gone))


def _reduction(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    gone = [int(i) for i in params["axes"]]
    kept = tuple((Tie(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links(tuple(kept for _ in outs), summed=tuple((0, i) for i in gone))


def _arg(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    gone = [int(i) for i in params["axes"]]
    kept = tuple((Tie(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links((kept,), blocked=tuple((0, i) for i in gone))


def _along(names: str) -> Rule:
    """Every axis is kept, those that the parameter names with a fixed length."""

    def rule(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
        named = params[names]
        fixed = {int(i) for i in (named if isinstance(named, Sequence) else [named])}
        blocked = tuple((k, i) for k in range(len(ins)) for i in fixed)
        together = tuple(tuple(Tie(k, i) for k in range(len(ins))) for i in range(len(ins[0])))
        return Links(tuple(together for _ in outs), blocked=blocked)

    return rule


def _iota(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    return None if ins else Links((tuple(() for _ in outs[0]),), fixed=((0, params["dimension"]),))


def _rev(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes = _same(len(ins[0]))
    for i in params["dimensions"]:
        n = ins[0][i]
        axes[i] = (Tie(0, i, np.arange(n)[::-1], np.arange(n)),)
    return Links((tuple(axes),))


def _tile(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes = _same(len(ins[0]))
    for i, (n, times) in enumerate(zip(ins[0], params["reps"], strict=True)):
        if times != 1:
            axes[i] = (Tie(0, i, np.tile(np.arange(n), times), np.arange(n * times)),)
    return Links((tuple(axes),))


def _concatenate(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    along, start = params["dimension"], 0
    axes = [tuple(Tie(k, i) for k in range(len(ins))) for i in range(len(outs[0]))]
    pieces = []
    for k, shape in enumerate(ins):
        pieces.append(Tie(k, along, np.arange(shape[along]), start + np.arange(shape[along])))
        start += shape[along]
    axes[along] = tuple(pieces)
    return Links((tuple(axes),))


def _slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes = _same(len(ins[0]))
    strides = params["strides"] or (1,) * len(ins[0])
    for i, (start, stop, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        taken = np.arange(int(start), int(stop), int(step))
        if len(taken) != ins[0][i]:
            axes[i] = (Tie(0, i, taken, np.arange(len(taken))),)
    return Links((tuple(axes),))


def _split(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    start, pieces = 0, []
    for size in map(int, params["sizes"]):
        axes = _same(len(ins[0]))
        axes[params["axis"]] = (Tie(0, params["axis"], start + np.arange(size), np.arange(size)),)
        pieces.append(tuple(axes))
        start += size
    return Links(tuple(pieces))


def _pad(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes, blocked, fixed = _same(len(ins[0])), [], []
    for i, (low, high, inner) in enumerate(params["padding_config"]):
        if inner or low < 0 or high < 0:
            axes[i] = ()
            blocked.append((0, i))
            fixed.append((0, i))
        elif low or high:
            axes[i] = (Tie(0, i, np.arange(ins[0][i]), int(low) + np.arange(ins[0][i])),)
    return Links((tuple(axes),), blocked=tuple(blocked), fixed=tuple(fixed))


def _window(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Pooling: an axis with a window of 1 is left alone."""
    axes, blocked, fixed = _same(len(ins[0])), [], []
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    for i in range(len(ins[0])):
        if any(params[name][i] != 1 for name in names) or any(params["padding"][i]):
            axes[i] = ()
            blocked.append((0, i))
            fixed.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked), fixed=tuple(fixed))


def _dot_general(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    (left_c, right_c), (left_b, right_b) = params["dimension_numbers"]
    out: list[tuple[Tie, ...]] = [(Tie(0, a), Tie(1, b)) for a, b in zip(left_b, right_b, strict=True)]
    for k, used in ((0, {*left_c, *left_b}), (1, {*right_c, *right_b})):
        out += [(Tie(k, i),) for i in range(len(ins[k])) if i not in used]
    contracted = tuple(((0, a), (1, b)) for a, b in zip(left_c, right_c, strict=True))
    return Links((tuple(out),), contracted, batch=tuple((0, a) for a in left_b))


def _conv(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    if params["batch_group_count"] != 1:
        return None
    axes: list[tuple[Tie, ...]] = [() for _ in outs[0]]
    axes[out[0]], axes[out[1]] = (Tie(0, lhs[0]),), (Tie(1, rhs[0]),)
    blocked = [*((0, i) for i in lhs[2:]), *((1, i) for i in rhs[2:])]
    fixed = [(0, i) for i in out[2:]]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    if groups == 1:
        contracted = (((0, lhs[1]), (1, rhs[1])),)
    elif ins[1][rhs[1]] == 1:  # depthwise: every input channel makes output channels of its own
        features = np.arange(outs[0][out[1]])
        axes[out[1]] += (Tie(0, lhs[1], features // (len(features) // groups), features),)
        blocked.append((1, rhs[1]))
    else:
        axes[out[1]] = ()
        blocked += [(0, lhs[1]), (1, rhs[0]), (1, rhs[1])]
        fixed.append((0, out[1]))
    return Links((tuple(axes),), contracted, blocked=tuple(blocked), fixed=tuple(fixed))


def _gather(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes taken whole are kept, those of the indices become axes of the output; what is picked from is fixed.

    `positions` knows more where the indices are constants.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims:
        return None
    axes: list[tuple[Tie, ...]] = [() for _ in outs[0]]
    offset = [i for i in range(len(ins[0])) if i not in numbers.collapsed_slice_dims]
    whole = {i: o for i, o in zip(offset, numbers.offset_dims, strict=True) if sizes[i] == ins[0][i]}
    picked = {*numbers.start_index_map}
    for i, o in whole.items():
        if i not in picked:
            axes[o] = (Tie(0, i),)
    rest = [o for o in range(len(outs[0])) if o not in numbers.offset_dims]
    for k, o in enumerate(rest):
        axes[o] = (Tie(1, k),)
    blocked = tuple((0, i) for i in range(len(ins[0])) if i not in whole or i in picked)
    blocked += ((1, len(ins[1]) - 1),)
    fixed = tuple((0, o) for o, tied in enumerate(axes) if not tied)
    return Links((tuple(axes),), blocked=blocked, fixed=fixed)


def _dynamic_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    cut = [i for i, (n, m) in enumerate(zip(ins[0], outs[0], strict=True)) if n != m]
    axes = [() if i in cut else tied for i, tied in enumerate(_same(len(ins[0])))]
    return Links((tuple(axes),), blocked=tuple((0, i) for i in cut), fixed=tuple((0, i) for i in cut))


def _dynamic_update_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    cut = [i for i, (n, m) in enumerate(zip(ins[0], ins[1], strict=True)) if n != m]
    axes = [(Tie(0, i),) if i in cut else (Tie(0, i), Tie(1, i)) for i in range(len(ins[0]))]
    return Links((tuple(axes),), blocked=tuple((k, i) for i in cut for k in (0, 1)))


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
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "optimization_barrier": _pairwise,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _split,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
}


def links_of(name: str, ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links:
    """The links of one primitive applied to operands of these shapes; opaque where no rule applies."""
    rule = LINKS.get(name)
    links = rule(ins, outs, params) if rule is not None else None
    return opaque(ins, outs) if links is None else links
