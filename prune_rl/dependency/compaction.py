"""From masked parameters to physically smaller ones, and the function that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.evaluation import evaluate
from prune_rl.dependency.groups import NeuronGroups, path_string
from prune_rl.dependency.jaxpr import trace
from prune_rl.dependency.resizing import KeptPositions, resize
from prune_rl.dependency.slices import AxisSlices, axis_slices, checked_slices, concrete_masks, kept_positions
from prune_rl.dependency.tree_paths import (
    Flags,
    KeyPath,
    Masks,
    Params,
    leaves_by_path,
    make_struct,
    shape_struct,
    shape_structs,
)


def compact(groups: NeuronGroups, params: Params, masks: Masks) -> Params:
    """The same tree with the slices of masked neurons gathered out of every leaf.

    Args:
      groups: from `find_groups`.
      params: the full-size tree (or one of its structure, such as gradients). NumPy leaves stay NumPy.
      masks: {group name: bool[size]}, concrete; groups without a mask are kept whole.

    Raises:
      ValueError: a mask is traced (shapes depend on it) or not bool[size], or the groups do not fit the tree.
    """
    kept = _kept(checked_slices(groups, params), concrete_masks(groups, masks))

    def gather(path: KeyPath, leaf: Any) -> Any:
        for axis, keep in kept.get(path, {}).items():
            leaf = leaf.take(np.flatnonzero(keep), axis)
        return leaf

    return jax.tree_util.tree_map_with_path(gather, params)


def expand(groups: NeuronGroups, small: Params, masks: Masks) -> Params:
    """The full-size tree of a compacted one, with zeros at masked neurons: the inverse of `compact` on masked
    parameters.

    Raises:
      ValueError: a mask is traced or not bool[size], or `small` is not a tree compacted with these masks.
    """
    kept = _kept(axis_slices(groups), concrete_masks(groups, masks))
    shapes = _full_shapes(groups, small, kept)

    def spread(path: KeyPath, leaf: Any) -> Any:
        if path not in kept:
            return leaf
        full = shapes[path]
        where = np.ix_(*(np.flatnonzero(kept[path].get(i, np.ones(n, bool))) for i, n in enumerate(full)))
        if isinstance(leaf, np.ndarray):
            array = np.zeros(full, leaf.dtype)
            array[where] = leaf
            return array
        return jnp.zeros(full, leaf.dtype).at[where].set(leaf)

    return jax.tree_util.tree_map_with_path(spread, small)


def compact_function(
    fn: Callable[..., Any],
    groups: NeuronGroups,
    params: Params,
    masks: Masks,
    *inputs: Any,
    carry: bool = False,
) -> Callable[..., Any]:
    """Adapt fn to compacted parameters, also where it fixes the widths (flax.linen.Dense(features=64)).

    small_fn(compact(groups, params, masks), *inputs) equals fn(apply_masks(groups, params, masks), *inputs).
    It traces fn at full size for the inputs of each call, so other batch sizes work, and runs the same
    primitives on the small arrays. It works under jit, grad and vmap, and keeps custom derivative rules.

    Args:
      fn: the function the groups were found in.
      groups: from `find_groups`.
      params: the full-size parameters; only shapes are used.
      masks: {group name: bool[size]}, concrete.
      *inputs: arguments of fn, to check now rather than at the first call that fn can be adapted.
      carry: fn is a step fn(params, carry, *inputs) -> (carry, outputs), see `find_groups`. Then the inputs are needed,
        with the carry at full size; small_fn takes and returns a small one, see `compact_carry`.

    Raises:
      ValueError: a mask is traced or not bool[size], the groups do not fit the tree, a masked axis goes through a
        primitive that cannot be adapted, or a carry comes without inputs.
    """
    kept_axes = _kept(checked_slices(groups, params), concrete_masks(groups, masks))
    state = _kept_of_carry(fn, groups, params, masks, inputs) if carry else []

    def small_fn(small: Any, *inputs: Any) -> Any:
        shapes = _full_shapes(groups, small, kept_axes)
        full = jax.tree_util.tree_map_with_path(lambda path, leaf: _struct(leaf, shapes[path]), small)
        traced = trace(fn, full, *_full_carry(inputs, state), carry=carry)

        def assign(kept: KeptPositions) -> None:
            for path, value in zip(traced.paths, traced.program.inputs, strict=False):
                for axis, keep in kept_axes.get(path, {}).items():
                    kept.assign(value, axis, keep)

        kept = resize(traced.program, len(traced.paths), assign, exact=True, carried=traced.carried)
        values = evaluate(traced.program, jax.tree_util.tree_leaves((small, inputs)), kept)
        return traced.returned(values)

    if inputs:
        small = jax.eval_shape(lambda tree: compact(groups, tree, masks), shape_structs(params, "params"))
        inputs = (jax.eval_shape(lambda tree: _gathered(tree, state), inputs[0]), *inputs[1:])
        # Some types of outputs cannot be rebuilt from shapes.
        jax.eval_shape(lambda *arguments: (small_fn(*arguments), None)[1], small, *inputs)
    return small_fn


def compact_carry(
    fn: Callable[..., Any], groups: NeuronGroups, params: Params, masks: Masks, carry: Any, *inputs: Any
) -> Any:
    """The carry of a step without the neurons that masks remove, for what `compact_function` makes of the step.

    Args:
      fn: the step fn(params, carry, *inputs) -> (carry, outputs) that the groups were found in.
      groups: from `find_groups(..., carry=True)`.
      params: the full-size parameters; only shapes are used.
      masks: {group name: bool[size]}, concrete.
      carry: at full size, such as the zeros that an episode starts with.
      *inputs: further arguments of fn; only shapes are used.

    Raises:
      ValueError: as `compact_function`.
    """
    return _gathered(carry, _kept_of_carry(fn, groups, params, masks, (carry, *inputs)))


# By leaf and axis of a carry: which positions are kept, bool[length].
KeptCarry = list[list[Flags]]


def _kept_of_carry(
    fn: Callable[..., Any], groups: NeuronGroups, params: Params, masks: Masks, inputs: tuple[Any, ...]
) -> KeptCarry:
    if not inputs:
        raise ValueError(
            "with carry=True compact_function needs the inputs: give it a full-size carry and the others"
        )
    kept_axes = _kept(checked_slices(groups, params), concrete_masks(groups, masks))
    traced = trace(fn, params, *inputs, carry=True)

    def assign(kept: KeptPositions) -> None:
        for path, value in zip(traced.paths, traced.program.inputs, strict=False):
            for axis, keep in kept_axes.get(path, {}).items():
                kept.assign(value, axis, keep)

    kept = resize(traced.program, len(traced.paths), assign, exact=True, carried=traced.carried)
    return [
        [kept.along(value, axis) for axis in range(len(traced.program.shape(value)))]
        for value, _ in traced.carried
    ]


def _gathered(carry: Any, state: KeptCarry) -> Any:
    """A carry without the positions that are removed."""
    leaves, structure = jax.tree_util.tree_flatten(carry)
    small = []
    for leaf, axes in zip(leaves, state or [[] for _ in leaves], strict=True):
        for axis, keep in enumerate(axes):
            if not keep.all():
                leaf = leaf.take(np.flatnonzero(keep), axis)
        small.append(leaf)
    return jax.tree_util.tree_unflatten(structure, small)


def _full_carry(inputs: tuple[Any, ...], state: KeptCarry) -> tuple[Any, ...]:
    """The inputs of a step with the shapes of a full-size carry; other axes, such as the batch, are as given."""
    if not state:
        return inputs
    leaves, structure = jax.tree_util.tree_flatten(inputs[0])
    full = []
    for leaf, axes in zip(leaves, state, strict=True):
        lengths = zip(np.shape(leaf), axes, strict=True)
        full.append(_struct(leaf, tuple(n if keep.all() else len(keep) for n, keep in lengths)))
    return (jax.tree_util.tree_unflatten(structure, full), *inputs[1:])


def _kept(table: AxisSlices, masks: Masks) -> dict[KeyPath, dict[int, Flags]]:
    """{leaf path: {axis: bool[full length]}}, the kept positions of every axis that the groups touch."""
    kept: dict[KeyPath, dict[int, Flags]] = {}
    for path, axes in table.items():
        for axis, pieces in axes.items():
            group, piece = pieces[0]
            length = group.size if piece.length is None else piece.length
            keep = kept_positions(pieces, masks)
            kept.setdefault(path, {})[axis] = np.ones(length, bool) if keep is None else keep
    return kept


def _full_shapes(
    groups: NeuronGroups, small: Any, kept: Mapping[KeyPath, Mapping[int, Flags]]
) -> dict[KeyPath, tuple[int, ...]]:
    """The full-size shape of every leaf of a compacted tree, which is checked on the way."""
    shapes = {path: list(np.shape(leaf)) for path, leaf in leaves_by_path(small).items()}
    for group in groups.values():
        for piece in group.slices:
            width = int(kept[piece.path][piece.axis].sum())
            shape = shapes.get(piece.path, [])
            if piece.axis >= len(shape) or shape[piece.axis] != width:
                got = f"shape {tuple(shape)}" if piece.path in shapes else "no such leaf"
                what = "neurons" if piece.positions is None else "positions"
                raise ValueError(
                    f"the compacted tree should hold {width} {what} of group {group.name!r} along axis {piece.axis} "
                    f"of {path_string(piece.path)!r}, got {got}: use the tree that compact gives for the same masks"
                )
    for path, axes in kept.items():
        for axis, keep in axes.items():
            shapes[path][axis] = len(keep)
    return {path: tuple(shape) for path, shape in shapes.items()}


def _struct(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    small = shape_struct(leaf, "params")
    return make_struct(shape, small.dtype, weak_type=small.weak_type)
