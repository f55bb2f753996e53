"""What primitives that pick positions by indices do to the positions of their operands' axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prune_rl.dependency.structural_rules import AxisMap, AxisOf, Links, Shape, same
from prune_rl.dependency.tree_paths import Indices


def gather(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes taken whole are kept, those of the indices become axes of the output; what is picked from is fixed.

    `gather_at` is the rule where the indices are constants.
    """
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if numbers.operand_batching_dims:
        return None
    axes: list[tuple[AxisMap, ...]] = [() for _ in outs[0]]
    offset = [i for i in range(len(ins[0])) if i not in numbers.collapsed_slice_dims]
    whole = {i: o for i, o in zip(offset, numbers.offset_dims, strict=True) if sizes[i] == ins[0][i]}
    picked = {*numbers.start_index_map}
    for i, o in whole.items():
        if i not in picked:
            axes[o] = (AxisMap(0, i),)
    rest = [o for o in range(len(outs[0])) if o not in numbers.offset_dims]
    for k, o in enumerate(rest):
        axes[o] = (AxisMap(1, k),)
    blocked = tuple((0, i) for i in range(len(ins[0])) if i not in whole or i in picked)
    blocked += ((1, len(ins[1]) - 1),)
    fixed = tuple((0, o) for o, tied in enumerate(axes) if not tied)
    return Links((tuple(axes),), blocked=blocked, fixed=fixed)


def gather_at(links: Links, indices: Indices, operand: Shape, params: Mapping[str, Any]) -> Links:
    """The links of a gather by constant indices, int[n, 1], along one axis; `links` unchanged where it is another."""
    numbers = params["dimension_numbers"]
    if indices.ndim != 2 or len(numbers.start_index_map) != 1:
        return links
    (axis,) = numbers.start_index_map
    inside = bool(((indices >= 0) & (indices < operand[axis])).all())
    if numbers.collapsed_slice_dims != (axis,) or params["slice_sizes"][axis] != 1 or not inside:
        return links
    (out,) = (o for o in range(len(links.outs[0])) if o not in numbers.offset_dims)
    axes = list(links.outs[0])
    axes[out] = (AxisMap(0, axis, indices[:, 0].astype(np.int64), np.arange(len(indices))),)
    return dataclasses.replace(
        links,
        outs=(tuple(axes),),
        blocked=tuple(at for at in links.blocked if at != (0, axis)),
        fixed=tuple(at for at in links.fixed if at != (0, out)),
    )


def dynamic_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes taken whole are kept; of the others, only the program knows which positions."""
    cut = [i for i, (n, m) in enumerate(zip(ins[0], outs[0], strict=True)) if n != m]
    axes = [() if i in cut else tied for i, tied in enumerate(same(len(ins[0])))]
    return Links((tuple(axes),), blocked=tuple((0, i) for i in cut), fixed=tuple((0, i) for i in cut))


def dynamic_update_slice(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes written whole are kept; of the others, only the program knows which positions."""
    cut = [i for i, (n, m) in enumerate(zip(ins[0], ins[1], strict=True)) if n != m]
    axes = [(AxisMap(0, i),) if i in cut else (AxisMap(0, i), AxisMap(1, i)) for i in range(len(ins[0]))]
    return Links((tuple(axes),), blocked=tuple((k, i) for i in cut for k in (0, 1)))


def scatter(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes written whole are kept; of those that indices pick from, only the program knows which positions."""
    numbers = params["dimension_numbers"]
    if numbers.operand_batching_dims:
        return None
    operand, indices, updates = ins
    window = [i for i in range(len(operand)) if i not in numbers.inserted_window_dims]
    whole = {
        i: u
        for i, u in zip(window, numbers.update_window_dims, strict=True)
        if i not in numbers.scatter_dims_to_operand_dims and operand[i] == updates[u]
    }
    axes = [(AxisMap(0, i), *((AxisMap(2, whole[i]),) if i in whole else ())) for i in range(len(operand))]
    blocked: list[AxisOf] = [(0, i) for i in range(len(operand)) if i not in whole]
    blocked += [(1, i) for i in range(len(indices))]
    blocked += [(2, u) for u in range(len(updates)) if u not in whole.values()]
    return Links((tuple(axes),), blocked=tuple(blocked))
