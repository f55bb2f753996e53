"""What a primitive does to the positions of its operands' axes, as data; the rules of those without arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prune_rl.dependency.tree_paths import Indices

AxisOf = tuple[int, int]  # (position of the operand, input or output; its axis)
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class AxisMap:
    """Positions of one operand axis that are the same neurons as positions of an output axis.

    Position source[n] of axis `axis` of operand `operand` is position target[n] of the output axis; None: all
    positions, in order. Several sources may share a target and the other way round.
    """

    operand: int
    axis: int
    source: Indices | None = None
    target: Indices | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ReshapeOptions:
    """A reshape that merges several axes into one, or splits one: only one of the several can be that of the neurons.

    `ins` and `outs`: the input and output axes that take part, of which one side is a single axis; `lengths`: those
    of the several.
    """

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def options(self) -> list[tuple[int, int]]:
        """(input axis, output axis) of each reading; the last axis first, where features mostly are."""
        return [(i, o) for i in reversed(self.ins) for o in reversed(self.outs)]

    def axis_map(self, mine: int, theirs: int) -> AxisMap:
        """The map of one reading: each position of the single axis to its coordinate along one of the several."""
        merges = len(self.outs) == 1
        which = self.ins.index(mine) if merges else self.outs.index(theirs)
        along = np.arange(math.prod(self.lengths))
        coordinate = along // math.prod(self.lengths[which + 1 :]) % self.lengths[which]
        return AxisMap(0, mine, coordinate, along) if merges else AxisMap(0, mine, along, coordinate)


@dataclasses.dataclass(frozen=True, eq=False)
class Links:
    """What a primitive does to the axes of its operands.

    outs[k][i]: maps to axis i of output k (none: new positions). contracted: pairs of operand axes summed
    against each other; a shorter second one is read once for each part of the first. summed: operand axes that are
    reduced. batch: operand axes that index independent products. blocked: operand axes used in a way that fixes their
    length. fixed: output axes (output, axis) of a fixed length. reshapes: ambiguous ones, see `ReshapeOptions`.
    readings: where the primitive can be seen in several ways, each; the one that is taken replaces these links.
    opaque: the primitive has no rule.
    """

    outs: tuple[tuple[tuple[AxisMap, ...], ...], ...]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    summed: tuple[AxisOf, ...] = ()
    batch: tuple[AxisOf, ...] = ()
    blocked: tuple[AxisOf, ...] = ()
    fixed: tuple[AxisOf, ...] = ()
    reshapes: tuple[ReshapeOptions, ...] = ()
    readings: tuple[Links, ...] = ()
    opaque: bool = False


def opaque(ins: list[tuple[int, ...]], outs: list[tuple[int, ...]]) -> Links:
    """The links of a primitive without a rule: every axis it touches is fixed."""
    every = tuple((k, i) for k, shape in enumerate(ins) for i in range(len(shape)))
    made = tuple((k, i) for k, shape in enumerate(outs) for i in range(len(shape)))
    return Links(tuple(tuple(() for _ in shape) for shape in outs), blocked=every, fixed=made, opaque=True)


def same(rank: int, operand: int = 0) -> list[tuple[AxisMap, ...]]:
    """Every axis of the output is that axis of one operand."""
    return [(AxisMap(operand, i),) for i in range(rank)]


def broadcast_in_dim(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that are named in `broadcast_dimensions` are kept, the others are new."""
    axes: list[tuple[AxisMap, ...]] = [() for _ in outs[0]]
    blocked: list[AxisOf] = []
    for i, target in enumerate(params["broadcast_dimensions"]):
        if ins[0][i] == outs[0][target]:
            axes[target] = (AxisMap(0, i),)
        else:
            blocked.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked))


def reshape(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that a row-major reshape keeps, merges or splits."""
    old, new = ins[0], outs[0]
    if params.get("dimensions") is not None or 0 in old:
        return None
    axes: list[tuple[AxisMap, ...]] = [() for _ in new]
    kept: set[int] = set()
    reshapes: list[ReshapeOptions] = []
    for mine, theirs in _factors(old, new):
        if len(mine) == len(theirs) == 1:
            axes[theirs[0]], kept = ((AxisMap(0, mine[0]),), kept | {mine[0]})
        elif len(mine) == 1 or len(theirs) == 1:
            lengths = [old[i] for i in mine] if len(theirs) == 1 else [new[i] for i in theirs]
            reshapes.append(ReshapeOptions(tuple(mine), tuple(theirs), tuple(lengths)))
    # Which of several length-1 axes is which is only certain when ones are added or removed in front.
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    extra = len(longer) - len(shorter)
    if longer[:extra] == (1,) * extra and longer[extra:] == shorter:
        for i, n in enumerate(shorter):
            if n == 1:
                mine_, theirs_ = (i + extra, i) if longer is old else (i, i + extra)
                axes[theirs_], kept = (AxisMap(0, mine_),), kept | {mine_}
    chosen = (
        {i for reshape in reshapes for i in reshape.ins},
        {i for reshape in reshapes for i in reshape.outs},
    )
    blocked = tuple((0, i) for i in range(len(old)) if i not in kept | chosen[0])
    fixed = tuple((0, i) for i, tied in enumerate(axes) if not tied and i not in chosen[1])
    return Links((tuple(axes),), blocked=blocked, fixed=fixed, reshapes=tuple(reshapes))


def _factors(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """The finest partition of both shapes into runs of equal products; axes of length 1 left out."""
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
    return Links((tuple((AxisMap(0, i),) for i in params["permutation"]),))


def squeeze(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes of length 1 go."""
    gone = [int(i) for i in params["dimensions"]]
    kept = tuple((AxisMap(0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links((kept,), blocked=tuple((0, i) for i in gone))


def rev(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Positions along the named axes are reversed."""
    axes = same(len(ins[0]))
    for i in params["dimensions"]:
        n = ins[0][i]
        axes[i] = (AxisMap(0, i, np.arange(n)[::-1], np.arange(n)),)
    return Links((tuple(axes),))


def tile(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes are repeated whole."""
    axes = same(len(ins[0]))
    for i, (n, times) in enumerate(zip(ins[0], params["reps"], strict=True)):
        if times != 1:
            axes[i] = (AxisMap(0, i, np.tile(np.arange(n), times), np.arange(n * times)),)
    return Links((tuple(axes),))


def concatenate(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """One axis is put together from those of the operands."""
    along, start = params["dimension"], 0
    axes = [tuple(AxisMap(k, i) for k in range(len(ins))) for i in range(len(outs[0]))]
    pieces = []
    for k, shape in enumerate(ins):
        pieces.append(AxisMap(k, along, np.arange(shape[along]), start + np.arange(shape[along])))
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
            axes[i] = (AxisMap(0, i, taken, np.arange(len(taken))),)
    return Links((tuple(axes),))


def split(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """One axis is cut in consecutive pieces."""
    start, pieces = 0, []
    for size in map(int, params["sizes"]):
        axes = same(len(ins[0]))
        axes[params["axis"]] = (AxisMap(0, params["axis"], start + np.arange(size), np.arange(size)),)
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
            axes[i] = (AxisMap(0, i, np.arange(ins[0][i]), int(low) + np.arange(ins[0][i])),)
    return Links((tuple(axes),), blocked=tuple(blocked), fixed=tuple(fixed))


def pairwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Output k is operand k."""
    return Links(tuple(tuple(same(len(shape), k)) for k, shape in enumerate(outs)))


def stack(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Operands are joined along a new axis."""
    axis = params["axis"]
    axes = [tuple(AxisMap(k, i) for k in range(len(ins))) for i in range(len(ins[0]))]
    return Links(((*axes[:axis], (), *axes[axis:]),), fixed=((0, axis),))


def unstack(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """One output per position of an axis, which goes."""
    kept = tuple((AxisMap(0, i),) for i in range(len(ins[0])) if i != params["axis"])
    return Links(tuple(kept for _ in outs), blocked=((0, params["axis"]),))
