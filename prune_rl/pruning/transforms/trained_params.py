"""The part of a pytree that is trained, and groups that fit it whatever library wrapped its leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from prune_rl.dependency.groups import NeuronGroups, path_string
from prune_rl.dependency.slices import checked_slices
from prune_rl.dependency.tree_paths import KeyPath, Params, leaves_by_path


def trained_part(name: str, updates: Any, params: Params | None) -> Params:
    """``params`` where ``updates`` has a leaf, None elsewhere.

    Equinox trains the arrays of a model that holds integers and functions too, whose gradient is None.

    Args:
        name: of the transformation, for the error message.
        updates: the gradients.
        params: what the caller of ``update`` gave.

    Raises:
        ValueError: ``params`` is None.
    """
    if params is None:
        raise ValueError(f"{name} needs the params: call update(grads, state, params)")
    return jax.tree.map(
        lambda update, param: None if update is None else param,
        updates,
        params,
        is_leaf=lambda node: node is None,
    )


def fit_groups(groups: NeuronGroups, params: Params) -> NeuronGroups:
    """``groups`` with the key paths of ``params``.

    The leaf of an NNX Variable lies one level deeper ("kernel/value") in the states of ``nnx.state`` than in the arrays
    that ``nnx.Optimizer`` passes to optax ("kernel"); the groups may have been found in either.

    Raises:
        ValueError: the groups do not fit the params.
    """
    leaves = leaves_by_path(params)
    named = {path_string(path): path for path in leaves}

    def fit(path: KeyPath) -> KeyPath:
        if path in leaves:
            return path
        name = path_string(path)
        spellings = (name, f"{name}/value", name.removesuffix("/value"))
        return next((named[spelling] for spelling in spellings if spelling in named), path)

    fitted = NeuronGroups(
        dataclasses.replace(g, slices=tuple(dataclasses.replace(s, path=fit(s.path)) for s in g.slices))
        for g in groups.values()
    )
    checked_slices(fitted, params)
    return fitted
