"""A pytree of parameters as a flat mapping from key path to leaf, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

Params = Any  # any pytree of arrays
Masks = Mapping[str, Any]  # {group name: bool[size]}, True: kept
KeyPath = tuple[Any, ...]
Leaves = dict[KeyPath, jax.Array]


def leaves_by_path(params: Params) -> Leaves:
    """Every leaf of ``params`` under its key path."""
    return dict(jax.tree_util.tree_flatten_with_path(params)[0])


def replace_leaves(params: Params, new: Mapping[KeyPath, jax.Array]) -> Params:
    """``params`` with the leaves at the paths in ``new`` replaced."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    return jax.tree_util.tree_unflatten(treedef, [new.get(path, leaf) for path, leaf in paths])
