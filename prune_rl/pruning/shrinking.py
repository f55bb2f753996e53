"""Smaller arrays while training goes on: the neurons that masks keep, gathered out of params and optimiser state.

`shrink` is for any project; a learner calls `gather` under ``jit`` and ``vmap``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, Slice, path_string
from prune_rl.dependency.slices import AxisSlices, axis_slices, checked_slices, concrete_masks, kept_positions
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params, leaves_by_path, replace_leaves
from prune_rl.pruning.masks import owner_of
from prune_rl.pruning.rules import PruningState
from prune_rl.pruning.transforms.trained_params import fit_groups


class Shrunk(NamedTuple):
    """What `shrink` returns, all for the smaller arrays."""

    groups: NeuronGroups
    params: Params
    opt_state: Any
    masks: dict[str, Any]


def shrink(
    groups: NeuronGroups,
    params: Params,
    opt_state: Any,
    masks: Masks,
    *,
    widths: Mapping[str, int] | None = None,
) -> Shrunk:
    """Gather the neurons that masks keep into smaller arrays, with the state of the optimiser: training goes on there.

    Call it between two training steps, outside ``jit``, and go on with what it returns; a jitted step is compiled anew
    for the new shapes. The params and updates of the same training with masked neurons in full-size arrays are the
    same, up to rounding.

    A leaf of the state belongs to the parameter of its shape whose path its own path ends with (moments, accumulated
    gradients, averaged params, also of a part of the params), or to the group whose name ends its path and whose size
    it has (importance and masks in the state of ``group_sparse`` or ``dynamic_pruning``). Make those transformations
    anew with the returned groups, and do not call ``init``: the state remembers how many neurons there were.

    Args:
        groups: from ``find_groups``.
        params: the pytree that the groups were found in.
        opt_state: the state of any optax transformation of ``params``, or any other tree with leaves as above, such as
            a tuple of it and target params.
        masks: {group name: bool[size]}, True where the neuron is kept; groups without a mask are kept whole.
        widths: {group name: neurons in the new arrays}, if that shall be more than are kept: arrays of a few sizes
            only, such as powers of two, compile less often. Neurons that are masked fill them up. None: those kept.

    Returns:
        (groups, params, opt_state, masks) for the smaller arrays.

    Raises:
        ValueError: a mask is traced or not bool[size]; the groups do not fit the params; a width is less than what is
            kept or more than there is; or a leaf of the state is neither of the size of its parameter nor independent
            of it, such as the rows and columns of ``optax.adafactor``.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, prune_rl
        >>> params = {"a": jnp.ones((2, 8)), "b": jnp.ones((8, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> opt_state = optax.adam(1e-3).init(params)
        >>> masks = {"a": jnp.arange(8) < 3}
        >>> groups, params, opt_state, masks = prune_rl.shrink(groups, params, opt_state, masks)
        >>> print(groups, params["a"].shape, opt_state[0].mu["b"].shape)
        NeuronGroups(a: 3) (2, 3) (3, 1)
    """
    here = fit_groups(groups, params)
    kept = concrete_masks(here, masks)
    whole = {name: np.ones(group.size, bool) for name, group in here.items()}
    flags = {name: kept.get(name, whole[name]) for name in here}
    sizes = {name: int(flag.sum()) for name, flag in flags.items()} | dict(widths or {})
    _check_widths(here, flags, sizes)
    new_params, new_state, new_masks = gather(here, params, (params, opt_state, dict(kept)), flags, sizes)
    given = {name: mask for name, mask in masks.items() if name not in here}
    stay = {name: staying(flag, sizes[name]) for name, flag in flags.items()}
    return Shrunk(_resized(here, stay, sizes), new_params, new_state, {**given, **new_masks})


def staying(mask: Any, width: int) -> Any:
    """The ``width`` neurons of a layer that smaller arrays hold, bool[size]: those kept, then the first masked ones.

    NumPy for NumPy, else traced; at most ``width`` may be kept.
    """
    if isinstance(mask, np.ndarray):
        return np.argsort(np.argsort(~mask, kind="stable")) < width
    return jnp.argsort(jnp.argsort(~mask, stable=True)) < width


def gather(groups: NeuronGroups, params: Params, tree: Any, masks: Masks, widths: Mapping[str, int]) -> Any:
    """``tree`` with its params-shaped and group-shaped leaves gathered, see ``shrink``.

    Jittable and vmappable over ``tree`` and ``masks``; NumPy masks give NumPy's gather for NumPy leaves. Leaves without
    a neuron of a group that changes are returned as they are, and may be of any type that has a shape.

    Args:
        groups: from ``find_groups``, with the paths of ``params``.
        params: the full-size params; only shapes are used.
        tree: any tree, such as (params, opt_state, masks).
        masks: {group name: bool[size]} of every group that changes.
        widths: {group name: int}, not below the number of neurons that are kept.

    Raises:
        ValueError: a leaf is neither of the size of its parameter nor independent of it.
    """
    table, shapes = (
        checked_slices(groups, params),
        {p: np.shape(x) for p, x in leaves_by_path(params).items()},
    )
    stay = {
        name: staying(masks[name], widths[name])
        for name, group in groups.items()
        if widths[name] != group.size
    }
    new = {}
    positions: dict[Any, Any] = {}  # by place: a parameter, its moments and its copies share them
    for path, leaf in leaves_by_path(tree).items():
        owner = owner_of(path, np.shape(leaf), shapes)
        group = groups.get(path_string(path[-1:]), None)
        if owner is not None:
            for axis, pieces in table.get(owner, {}).items():
                if (owner, axis) not in positions:
                    keep = kept_positions(pieces, stay)
                    length = _length(pieces, leaf.shape[axis], widths)
                    positions[owner, axis] = None if keep is None else _positions(keep, length)
                if positions[owner, axis] is not None:
                    leaf = _take(leaf, axis, positions[owner, axis])
            new[path] = leaf
        elif group is not None and np.shape(leaf) == (group.size,):
            if group.name in stay:
                if group.name not in positions:
                    positions[group.name] = _positions(stay[group.name], widths[group.name])
                new[path] = _take(leaf, 0, positions[group.name])
        else:
            _check_independent(path, leaf, table, set(stay), shapes)
    return replace_leaves(tree, new)


def full_masks(pruning: PruningState) -> dict[str, np.ndarray[Any, Any]]:
    """The masks over the neurons that there were before any shrinking, {group name: bool[…, size]}, NumPy.

    Leading axes, such as one of seeds, are kept.
    """
    masks = {}
    for name, mask in pruning.masks.items():
        kept, numbers = np.asarray(mask), np.asarray(pruning.neurons[name])
        full = np.zeros((*kept.shape[:-1], int(np.max(np.asarray(pruning.sizes[name])))), bool)
        np.put_along_axis(full, numbers, kept, axis=-1)
        masks[name] = full
    return masks


def _positions(keep: Any, length: int) -> Any:
    """Where bool[n] is True, int[length]."""
    return np.flatnonzero(keep) if isinstance(keep, np.ndarray) else jnp.nonzero(keep, size=length)[0]


def _take(leaf: Any, axis: int, positions: Any) -> Any:
    if isinstance(positions, np.ndarray):
        return leaf.take(positions, axis)
    return jnp.take(leaf, positions, axis, unique_indices=True, indices_are_sorted=True)


def _length(pieces: list[tuple[NeuronGroup, Slice]], length: int, widths: Mapping[str, int]) -> int:
    """The length of an axis after the gathering."""
    for group, piece in pieces:
        length -= (group.size - widths[group.name]) * piece.indices(group.size).shape[1]
    return length


def _resized(groups: NeuronGroups, stay: Masks, widths: Mapping[str, int]) -> NeuronGroups:
    """The groups in the smaller arrays: sizes, and positions counted anew where a group does not own the whole axis."""
    table = axis_slices(groups)

    def fit(group: NeuronGroup, piece: Slice) -> Slice:
        if piece.positions is None:
            return piece
        keep = kept_positions(table[piece.path][piece.axis], stay)
        new_index = np.cumsum(keep) - 1
        mine = new_index[piece.indices(group.size)[stay[group.name]]]
        positions = tuple(tuple(int(i) for i in row) for row in mine)
        return dataclasses.replace(piece, positions=positions, length=int(keep.sum()))

    return NeuronGroups(
        (
            dataclasses.replace(
                group, size=widths[name], slices=tuple(fit(group, piece) for piece in group.slices)
            )
            for name, group in groups.items()
        ),
        groups.rejected,
    )


def _check_widths(groups: NeuronGroups, kept: Masks, widths: Mapping[str, int]) -> None:
    unknown = sorted(set(widths) - set(groups))
    if unknown:
        raise ValueError(f"widths names {unknown}, which are no groups; the groups are {list(groups)}")
    for name, group in groups.items():
        least = int(kept[name].sum())
        if not least <= widths[name] <= group.size:
            raise ValueError(
                f"the width of group {name!r} must lie between the {least} neurons that are kept and its size "
                f"{group.size}, got {widths[name]}"
            )


def _check_independent(
    path: KeyPath,
    leaf: Any,
    table: AxisSlices,
    changed: set[str],
    shapes: Mapping[KeyPath, tuple[int, ...]],
) -> None:
    """Raise ``ValueError`` for a leaf of another shape than its parameter's that the parameter's size decides."""
    if math.prod(np.shape(leaf)) <= 1:
        return
    owner = next((path[start:] for start in range(len(path)) if path[start:] in shapes), None)
    touched = {group.name for pieces in table.get(owner or (), {}).values() for group, _ in pieces}
    if touched & changed:
        raise ValueError(
            f"{path_string(path)!r} has shape {np.shape(leaf)}, but its parameter {path_string(owner or ())!r} has "
            f"shape {shapes[owner or ()]}: it cannot be told which of its entries belong to which neuron. Use an "
            "optimiser whose state has the shapes of the params, or start it anew on the smaller params"
        )
