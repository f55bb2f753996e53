"""Masks over neurons: which are kept, what that leaves of the parameters, and how much it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.groups import NeuronGroup, NeuronGroups, Slice, path_string
from prune_rl.pruning.leaves import KeyPath, leaves_by_path

Masks = Mapping[str, Any]


class Kept(NamedTuple):
    """How many of how many are left."""

    kept: int
    total: int


@dataclasses.dataclass(frozen=True)
class Count:
    """What the masks leave: neurons of all groups, entries of all parameter leaves, width by group name."""

    neurons: Kept
    weights: Kept
    widths: dict[str, int]


def init_masks(groups: NeuronGroups) -> dict[str, jax.Array]:
    """{group name: bool[size]}, every neuron kept."""
    return {name: jnp.ones((group.size,), bool) for name, group in groups.items()}


def axis_slices(groups: NeuronGroups) -> dict[KeyPath, dict[int, list[tuple[NeuronGroup, Slice]]]]:
    """{leaf path: {axis: what the groups have there}}; a slice that has two roles is named once."""
    table: dict[KeyPath, dict[int, list[tuple[NeuronGroup, Slice]]]] = {}
    for group in groups.values():
        for piece in group.slices:
            mine = table.setdefault(piece.path, {}).setdefault(piece.axis, [])
            if not any(group is other and piece.positions == slice_.positions for other, slice_ in mine):
                mine.append((group, piece))
    return table


def checked_slices(
    groups: NeuronGroups, params: Any
) -> dict[KeyPath, dict[int, list[tuple[NeuronGroup, Slice]]]]:
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
    """The masks of the groups; names of other groups are left out, as are groups without a mask.

    Raises:
      ValueError: a mask is not bool[size].
    """
    chosen = {name: masks[name] for name in groups if name in masks}
    for name, mask in chosen.items():
        size = groups[name].size
        shape, dtype = np.shape(mask), getattr(mask, "dtype", None)
        if shape != (size,) or dtype != np.bool_:
            raise ValueError(
                f"the mask of group {name!r} must be bool[{size}] (True: kept), got {dtype} of shape {shape}"
            )
    return chosen


def concrete_masks(groups: NeuronGroups, masks: Masks) -> dict[str, np.ndarray[Any, Any]]:
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


def _keep(
    shape: tuple[int, ...], axes: Mapping[int, list[tuple[NeuronGroup, Slice]]], masks: Masks
) -> jax.Array | None:
    """Kept entries of one leaf, as a bool array that broadcasts against it; None where all are kept."""
    keep: jax.Array | None = None
    for axis, pieces in axes.items():
        positions = kept_positions(pieces, masks)
        if positions is not None:
            along = jnp.reshape(positions, [-1 if i == axis else 1 for i in range(len(shape))])
            keep = along if keep is None else jnp.logical_and(keep, along)
    return keep


def mask_like(groups: NeuronGroups, params: Any, masks: Masks) -> Any:
    """A tree like params of bool arrays, True where an entry is outside every masked slice. Jittable.

    Raises:
      ValueError: as `apply_masks`.
    """
    table, masks = checked_slices(groups, params), check_masks(groups, masks)

    def like(path: KeyPath, leaf: Any) -> jax.Array:
        keep = _keep(np.shape(leaf), table.get(path, {}), masks)
        return jnp.broadcast_to(True if keep is None else keep, np.shape(leaf))

    return jax.tree_util.tree_map_with_path(like, params)


def apply_masks(groups: NeuronGroups, params: Any, masks: Masks) -> Any:
    """Set every slice of every masked neuron in params to exactly 0, nan and inf included.

    Jittable and vmappable over params and masks; one select per touched leaf, which XLA fuses. Also for trees
    of the same structure as params, such as gradients or Adam's moments. Names in masks that are not groups
    are ignored; groups without a mask are kept whole.

    Args:
      groups: from `find_groups`.
      params: the pytree that the groups were found in.
      masks: {group name: bool[size]}, True where the neuron is kept.

    Raises:
      ValueError: a mask is not bool[size], or the groups do not fit the tree.
    """
    table, masks = checked_slices(groups, params), check_masks(groups, masks)

    def masked(path: KeyPath, leaf: Any) -> Any:
        keep = _keep(np.shape(leaf), table.get(path, {}), masks)
        return leaf if keep is None else jnp.where(keep, leaf, 0)

    return jax.tree_util.tree_map_with_path(masked, params)


def count(groups: NeuronGroups, params: Any, masks: Masks) -> Count:
    """Neurons and weights that are kept, as Python ints; weights are the entries of `compact`'s tree.

    Args:
      groups: from `find_groups`.
      params: the uncompacted tree; only shapes are used.
      masks: {group name: bool[size]}, concrete.

    Raises:
      ValueError: a mask is traced or not bool[size], or the groups do not fit the tree.
    """
    table, masks = checked_slices(groups, params), concrete_masks(groups, masks)
    widths = {name: int(masks[name].sum()) if name in masks else group.size for name, group in groups.items()}
    kept = total = 0
    for path, leaf in leaves_by_path(params).items():
        shape = list(np.shape(leaf))
        total += math.prod(shape)
        for axis, pieces in table.get(path, {}).items():
            keep = kept_positions(pieces, masks)
            shape[axis] = shape[axis] if keep is None else int(keep.sum())
        kept += math.prod(shape)
    neurons = Kept(sum(widths.values()), sum(group.size for group in groups.values()))
    return Count(neurons, Kept(kept, total), widths)
