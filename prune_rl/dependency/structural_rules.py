"""What the primitives that only move numbers do to the positions of their operand's axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prune_rl.dependency.index_maps import AxisOf, Choice, Links, Tie

Shape = tuple[int, ...]


def same(rank: int, operand: int = 0) -> list[tuple[Tie, ...]]:
    """Every axis of the output is that axis of one operand."""
    return [(Tie(operand, i),) for i in range(rank)]


def broadcast_in_dim(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that are named in `broadcast_dimensions` are kept, the others are new."""
    axes: list[tuple[Tie, ...]] = [() for _ in outs[0]]
    blocked: list[AxisOf] = []
    for i, target in enumerate(params["broadcast_dimensions"]):
        if ins[0][i] == outs[0][target]:
            axes[target] = (Tie(0, i),)
        else:
            blocked.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked))


def reshape(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
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
            lengths = [old[i] for i in mine] if len(theirs) == 1 else [new[i] for i in theirs]
            choices.append(Choice(tuple(mine), tuple(theirs), tuple(lengths)))
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


def transpose(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes change places."""
    return Links((tuple((Tie(0, i),) for i in params["permutation"]),))


def squeeze(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes of length 1 go."""
    gone = [int(i) for i in params["dimensions"]]
    kept = tuple((Tie(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links((kept,), blocked=tuple((0, i) for i in gone))


def rev(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Positions along the named axes are reversed."""
    axes = same(len(ins[0]))
    for i in params["dimensions"]:
        n = ins[0][i]
        axes[i] = (Tie(0, i, np.arange(n)[::-1], np.arange(n)),)
    return Links((tuple(axes),))


def tile(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes are repeated whole."""
    axes = same(len(ins[0]))
    for i, (n, times) in enumerate(zip(ins[0], params["reps"], strict=True)):
        if times != 1:
            axes[i] = (Tie(0, i, np.tile(np.arange(n), times), np.arange(n * times)),)
    return Links((tuple(axes),))


def concatenate(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """One axis is put together from those of the operands."""
    along, start = params["dimension"], 0
    axes = [tuple(Tie(k, i) for k in range(len(ins))) for i in range(len(outs[0]))]
    pieces = []
    for k, shape in enumerate(ins):
        pieces.append(Tie(k, along, np.arange(shape[along]), start + np.arange(shape[along])))
        start += shape[along]
    axes[along] = tuple(pieces)
    return Links((tuple(axes),))


def slice_(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """A range of positions of every axis, with steps."""
    axes = same(len(ins[0]))
    strides = params["strides"] or (1,) * len(ins[0])
    for i, (start, stop, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        taken = np.arange(int(start), int(stop), int(step))
        if len(taken) != ins[0][i]:
            axes[i] = (Tie(0, i, taken, np.arange(len(taken))),)
    return Links((tuple(axes),))


def split(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """One axis is cut in consecutive pieces."""
    start, pieces = 0, []
    for size in map(int, params["sizes"]):
        axes = same(len(ins[0]))
        axes[params["axis"]] = (Tie(0, params["axis"], start + np.arange(size), np.arange(size)),)
        pieces.append(tuple(axes))
        start += size
    return Links(tuple(pieces))


def pad(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """New positions before and after those of an axis; between them, or fewer of them, is not followed."""
    axes, blocked, fixed = same(len(ins[0])), [], []
    for i, (low, high, inner) in enumerate(params["padding_config"]):
        if inner or low < 0 or high < 0:
            axes[i] = ()
            blocked.append((0, i))
            fixed.append((0, i))
        elif low or high:
            axes[i] = (Tie(0, i, np.arange(ins[0][i]), int(low) + np.arange(ins[0][i])),)
    return Links((tuple(axes),), blocked=tuple(blocked), fixed=tuple(fixed))


def gather(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
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


def dynamic_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes taken whole are kept; of the others, only the program knows which positions."""
    cut = [i for i, (n, m) in enumerate(zip(ins[0], outs[0], strict=True)) if n != m]
    axes = [() if i in cut else tied for i, tied in enumerate(same(len(ins[0])))]
    return Links((tuple(axes),), blocked=tuple((0, i) for i in cut), fixed=tuple((0, i) for i in cut))


def dynamic_update_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes written whole are kept; of the others, only the program knows which positions."""
    cut = [i for i, (n, m) in enumerate(zip(ins[0], ins[1], strict=True)) if n != m]
    axes = [(Tie(0, i),) if i in cut else (Tie(0, i), Tie(1, i)) for i in range(len(ins[0]))]
    return Links((tuple(axes),), blocked=tuple((k, i) for i in cut for k in (0, 1)))


def pairwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Output k is operand k."""
    return Links(tuple(tuple(same(len(shape), k)) for k, shape in enumerate(outs)))
