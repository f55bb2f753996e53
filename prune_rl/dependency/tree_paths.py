"""Pytrees of arrays as flat mappings from key path to leaf, their shapes, and the aliases that the package shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Params = Any  # any pytree of arrays
Masks = Mapping[str, Any]  # {group name: bool[size]}, True: kept
KeyPath = tuple[Any, ...]
Leaves = dict[KeyPath, jax.Array]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

make_struct: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct  # which has no types in jax


def leaves_by_path(params: Params) -> Leaves:
    """Every leaf of ``params`` under its key path."""
    return dict(jax.tree_util.tree_flatten_with_path(params)[0])


def replace_leaves(params: Params, new: Mapping[KeyPath, jax.Array]) -> Params:
    """``params`` with the leaves at the paths in ``new`` replaced."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    return jax.tree_util.tree_unflatten(treedef, [new.get(path, leaf) for path, leaf in paths])


def shape_struct(leaf: Any, what: str) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, tracer, scalar or ShapeDtypeStruct.

    Raises:
      ValueError: the leaf is none of these.
    """
    if isinstance(leaf, (bool, int, float, complex)):
        leaf = jax.typeof(leaf)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise ValueError(
            f"{what} must be an array, a scalar or a jax.ShapeDtypeStruct, got {type(leaf).__name__}; "
            "bind settings that are not arrays with functools.partial"
        )
    # As JAX would read the array itself: without 64-bit types, float64 is float32.
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return make_struct(tuple(leaf.shape), dtype, weak_type=getattr(leaf, "weak_type", False))


def shape_structs(tree: Any, what: str) -> Any:
    """`shape_struct` of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: shape_struct(leaf, f"{what}{jax.tree_util.keystr(path)}"), tree
    )
