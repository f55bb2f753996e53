"""The part of a pytree that is trained, and groups that fit it whatever library wrapped its leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, path_string
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
    """``groups`` with the key paths of ``params``, and without slices of leaves that are not trained.

    The groups may have been found in a tree that holds more than the params: statistics beside them ("params/…" and
    "batch_stats/…" of Flax, a model and its state as a tuple), or among them (``nnx.BatchStat``). Leaves that are not
    kernels may be missing here.

    The leaf of an NNX Variable lies one level deeper ("kernel/value") in the states of ``nnx.state`` than in the arrays
    that ``nnx.Optimizer`` passes to optax ("kernel"); the groups may have been found in either.

    Raises:
        ValueError: the groups do not fit the params.
    """
    leaves = leaves_by_path(params)
    named = {path_string(path): path for path in leaves}

    def fit(path: KeyPath, depth: int) -> KeyPath | None:
        if path[depth:] in leaves:
            return path[depth:]
        name = path_string(path[depth:])
        spellings = (name, f"{name}/value", name.removesuffix("/value"))
        return next((named[spelling] for spelling in spellings if spelling in named), None)

    kernels = [s.path for group in groups.values() for s in group.slices if s.role != "bias"]
    # How many keys lead to the params in the tree that the groups were found in.
    depth = next((d for d in (0, 1) if all(fit(path, d) is not None for path in kernels)), None)
    if depth is None:
        checked_slices(groups, params)
        return groups

    def fitted(group: NeuronGroup) -> NeuronGroup:
        paths = [(s, fit(s.path, depth)) for s in group.slices]
        slices = tuple(dataclasses.replace(s, path=path) for s, path in paths if path is not None)
        return dataclasses.replace(group, slices=slices)

    here = NeuronGroups(map(fitted, groups.values()))
    checked_slices(here, params)
    return here
