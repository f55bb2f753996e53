"""From masked parameters to physically smaller ones, and the function that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.axes import link
from prune_rl.pruning.groups import NeuronGroups, path_string
from prune_rl.pruning.leaves import KeyPath, leaves_by_path
from prune_rl.pruning.masks import Masks, axis_groups, axis_names, concrete_masks
from prune_rl.pruning.reevaluation import Lengths, evaluate
from prune_rl.pruning.tracing import make_struct, shape_struct, shape_structs, trace

Survivors = Mapping[str, np.ndarray[Any, Any]]  # indices of the kept neurons, by group


def compact(groups: NeuronGroups, params: Any, masks: Masks) -> Any:
    """The same tree with the slices of masked neurons gathered out of every leaf.

    Args:
      groups: from `find_groups`.
      params: the full-size tree (or one of its structure, such as gradients). NumPy leaves stay NumPy.
      masks: {group name: bool[size]}, concrete; groups without a mask are kept whole.

    Raises:
      ValueError: a mask is traced (shapes depend on it) or not bool[size], or the groups do not fit the tree.
    """
    survivors = _survivors(groups, masks)
    table = axis_groups(groups, params)

    def gather(path: KeyPath, leaf: Any) -> Any:
        for axis, name in table.get(path, {}).items():
            if name in survivors:
                leaf = leaf.take(survivors[name], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(gather, params)


def expand(groups: NeuronGroups, small: Any, masks: Masks) -> Any:
    """The full-size tree of a compacted one, with zeros at masked neurons: the inverse of `compact` on masked
    parameters.

    Raises:
      ValueError: a mask is traced or not bool[size], or `small` is not a tree compacted with these masks.
    """
    survivors = _survivors(groups, masks)
    shapes, table = _full_shapes(groups, small, survivors), axis_names(groups)

    def spread(path: KeyPath, leaf: Any) -> Any:
        if path not in table:
            return leaf
        full = shapes[path]
        kept = [survivors.get(table[path].get(i, ""), np.arange(size)) for i, size in enumerate(full)]
        if isinstance(leaf, np.ndarray):
            array = np.zeros(full, leaf.dtype)
            array[np.ix_(*kept)] = leaf
            return array
        return jnp.zeros(full, leaf.dtype).at[np.ix_(*kept)].set(leaf)

    return jax.tree_util.tree_map_with_path(spread, small)


def compact_function(
    fn: Callable[..., Any], groups: NeuronGroups, params: Any, masks: Masks, *inputs: Any
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

    Raises:
      ValueError: a mask is traced or not bool[size], the groups do not fit the tree, or a masked axis goes
        through a primitive that cannot be adapted.
    """
    survivors = _survivors(groups, masks)
    axis_groups(groups, params)

    def small_fn(small: Any, *inputs: Any) -> Any:
        shapes = _full_shapes(groups, small, survivors)
        full = jax.tree_util.tree_map_with_path(lambda path, leaf: _struct(leaf, shapes[path]), small)
        traced = trace(fn, full, *inputs)
        lengths = Lengths(link(traced.program, len(traced.paths)))
        table = axis_names(groups)
        for path, value in zip(traced.paths, traced.program.inputs, strict=False):
            for axis, name in table.get(path, {}).items():
                if name in survivors:
                    lengths.set(value, axis, len(survivors[name]))
        lengths.check()
        values = evaluate(traced.program, jax.tree_util.tree_leaves((small, inputs)), lengths)
        return jax.tree_util.tree_unflatten(traced.out_tree, [values[v] for v in traced.program.outputs])

    if inputs:
        small = jax.eval_shape(lambda tree: compact(groups, tree, masks), shape_structs(params, "params"))
        jax.eval_shape(small_fn, small, *inputs)
    return small_fn


def _survivors(groups: NeuronGroups, masks: Masks) -> Survivors:
    return {name: np.flatnonzero(mask) for name, mask in concrete_masks(groups, masks).items()}


def _full_shapes(groups: NeuronGroups, small: Any, survivors: Survivors) -> dict[KeyPath, tuple[int, ...]]:
    """The full-size shape of every leaf of a compacted tree, which is checked on the way."""
    shapes = {path: list(np.shape(leaf)) for path, leaf in leaves_by_path(small).items()}
    for path, axes in axis_names(groups).items():
        for axis, name in axes.items():
            width = len(survivors[name]) if name in survivors else groups[name].size
            shape = shapes.get(path, [])
            if axis >= len(shape) or shape[axis] != width:
                got = f"shape {tuple(shape)}" if path in shapes else "no such leaf"
                raise ValueError(
                    f"the compacted tree should hold {width} neurons of group {name!r} along axis {axis} of "
                    f"{path_string(path)!r}, got {got}: "
                    "use the tree that compact gives for the same masks"
                )
    for path, axes in axis_names(groups).items():
        for axis, name in axes.items():
            shapes[path][axis] = groups[name].size
    return {path: tuple(shape) for path, shape in shapes.items()}


def _struct(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    small = shape_struct(leaf, "params")
    return make_struct(shape, small.dtype, weak_type=small.weak_type)
