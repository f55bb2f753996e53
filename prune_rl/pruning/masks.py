"""Masks over neurons: which are kept, what that leaves of the parameters, and how much it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, Slice
from prune_rl.dependency.slices import check_masks, checked_slices, concrete_masks, kept_positions
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params, leaves_by_path, replace_leaves


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
    are ignored, unless none is; groups without a mask are kept whole.

    Args:
      groups: from `find_groups`.
      params: the pytree that the groups were found in.
      masks: {group name: bool[size]}, True where the neuron is kept; integers 0 and 1 do, too.

    Raises:
      ValueError: a mask is not bool[size], no name in masks is a group, or the groups do not fit the tree.
    """
    table, masks = checked_slices(groups, params), check_masks(groups, masks)

    def masked(path: KeyPath, leaf: Any) -> Any:
        keep = _keep(np.shape(leaf), table.get(path, {}), masks)
        return leaf if keep is None else jnp.where(keep, leaf, 0)

    return jax.tree_util.tree_map_with_path(masked, params)


def mask_updates(groups: NeuronGroups, updates: Params, params: Params, masks: Masks) -> Params:
    """``updates`` that take the masked slices of ``params`` to exactly 0 and are the given ones elsewhere.

    Updates of less precision than the params (from bfloat16 gradients, say) come back in that of the params, since
    −param could not be exact otherwise.
    """
    return jax.tree.map(
        lambda keep, update, old: jnp.where(keep, update, -old),
        mask_like(groups, params, masks),
        updates,
        params,
    )


def mask_state(groups: NeuronGroups, state: Any, params: Params, masks: Masks) -> Any:
    """``state`` of any optax transformation with the masked slices of its params-shaped parts at exactly 0.

    A leaf of the state belongs to the parameter of its shape whose path its own path ends with, so that moments which
    cover a part of the params only (``optax.partition``, ``optax.masked``) are found too.
    """
    keep = leaves_by_path(mask_like(groups, params, masks))
    touched = {part.path for name, group in groups.items() if name in masks for part in group.slices}
    moments = {}
    shapes = {path: leaf.shape for path, leaf in keep.items()}
    for path, leaf in leaves_by_path(state).items():
        owner = owner_of(path, jnp.shape(leaf), shapes)
        if owner in touched:
            moments[path] = jnp.where(keep[owner], leaf, 0)
    return replace_leaves(state, moments)


def owner_of(
    path: KeyPath, shape: tuple[int, ...], shapes: Mapping[KeyPath, tuple[int, ...]]
) -> KeyPath | None:
    """The path of the parameter that a leaf of an optimiser's state belongs to, or None.

    It is the one of the leaf's shape whose path the leaf's path ends with.

    Args:
      path: of the leaf.
      shape: of the leaf.
      shapes: {path: shape} of the params.
    """
    ends = (path[start:] for start in range(len(path) + 1))
    return next((end for end in ends if shapes.get(end) == shape), None)


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
