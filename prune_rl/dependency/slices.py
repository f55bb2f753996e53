"""Neuron groups as slices of a tree's leaves: looked up by leaf and axis, checked, and combined with masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, Slice, path_string
from prune_rl.dependency.tree_paths import Flags, KeyPath, Masks, Params, leaves_by_path

# {leaf path: {axis: the slices along it, each with its group}}
AxisSlices = Mapping[KeyPath, Mapping[int, list[tuple[NeuronGroup, Slice]]]]


def axis_slices(groups: NeuronGroups) -> AxisSlices:
    """{leaf path: {axis: [(group, slice)]}}; a slice that has two roles is listed once."""
    table: dict[KeyPath, dict[int, list[tuple[NeuronGroup, Slice]]]] = {}
    for group in groups.values():
        for piece in group.slices:
            mine = table.setdefault(piece.path, {}).setdefault(piece.axis, [])
            if not any(group is other and piece.positions == slice_.positions for other, slice_ in mine):
                mine.append((group, piece))
    return table


def checked_slices(groups: NeuronGroups, params: Params) -> AxisSlices:
    """`axis_slices`, checked against the tree that the groups are to be used on.

    Raises:
      ValueError: a leaf is missing in params, or its length along the axis is not the one the groups were found with.
    """
    leaves = leaves_by_path(params)
    for group in groups.values():
        for piece in group.slices:
            leaf = leaves.get(piece.path)
            what = f"group {group.name!r} has a slice of {path_string(piece.path)!r}"
            if leaf is None:
                known = ", ".join(path_string(path) for path in leaves) or "none"
                raise ValueError(f"{what}, which is not a leaf of the given tree (its leaves: {known})")
            shape, length = np.shape(leaf), group.size if piece.length is None else piece.length
            if piece.axis >= len(shape) or shape[piece.axis] != length:
                among = "" if piece.length is None else f" among {length} positions"
                raise ValueError(
                    f"{what} with {group.size} neurons{among} along axis {piece.axis}, but the given leaf has shape "
                    f"{shape}: find the groups of this tree, or give the tree before compaction"
                )
    return axis_slices(groups)


def check_masks(groups: NeuronGroups, masks: Masks) -> dict[str, Any]:
    """The masks of the groups as bool; names of other groups are left out, as are groups without a mask.

    Raises:
      ValueError: a mask is not bool[size], nor an integer array of zeros and ones; none of the names in masks is a
        group's.
    """
    unknown = [name for name in masks if name not in groups]
    if unknown and len(unknown) == len(masks) and len(groups):
        raise ValueError(
            f"masks has {unknown}, of which none is a group: the groups are {list(groups)}; give "
            "{group name: bool[size]}"
        )
    return {name: _checked_mask(name, masks[name], groups[name].size) for name in groups if name in masks}


def _checked_mask(name: str, mask: Any, size: int) -> Any:
    shape, dtype = np.shape(mask), getattr(mask, "dtype", None)
    what = f"the mask of group {name!r} must be bool[{size}] (True: kept)"
    if shape != (size,) or dtype is None or dtype.kind not in "biu":
        raise ValueError(f"{what}, got {dtype} of shape {shape}")
    if dtype == np.bool_:
        return mask
    if not isinstance(mask, jax.core.Tracer) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError(f"{what} or hold 0 and 1, got {np.unique(np.asarray(mask)).tolist()}")
    return mask.astype(bool)


def concrete_masks(groups: NeuronGroups, masks: Masks) -> dict[str, Flags]:
    """The masks of the groups as NumPy arrays, for what changes shapes.

    Raises:
      ValueError: a mask is traced, or not bool[size].
    """
    chosen = check_masks(groups, masks)
    for name, mask in chosen.items():
        if isinstance(mask, jax.core.Tracer):
            raise ValueError(
                f"the mask of group {name!r} is traced, but shapes depend on it: call this outside jit, vmap "
                "and grad"
            )
    return {name: np.asarray(mask) for name, mask in chosen.items()}


def kept_positions(pieces: list[tuple[NeuronGroup, Slice]], masks: Masks) -> Any:
    """Kept positions along one axis, bool[length]; None where all are kept. NumPy for NumPy masks, else traced."""
    keep = None
    for group, piece in pieces:
        if group.name not in masks:
            continue
        mask = masks[group.name]
        mine = mask if piece.positions is None else piece.spread(mask, True)
        keep = mine if keep is None else keep & mine
    return keep
