"""Which groups have neurons of one structure, so that their scores can be compared: isomorphic pruning."""

from __future__ import annotations

import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups
from prune_rl.dependency.slices import checked_slices
from prune_rl.dependency.tree_paths import Params, leaves_by_path


def isomorphic_classes(groups: NeuronGroups, params: Params) -> dict[str, str]:
    """The class of each group: those whose neurons are parts of the same structure, {group name: class}.

    The structure of a neuron is the graph of the leaves that it takes slices of, without their sizes: how many axes
    each leaf has, along which one the slices lie, in which role and at how many positions. As the ``scope`` of
    ``update_masks``, neurons are compared with those of their class alone: those of the hidden layers of perceptrons
    with each other, those of attention heads with each other.

    References:
        Fang, Ma, Bi Mi and Wang, `Isomorphic pruning for vision models <https://arxiv.org/abs/2407.04616>`_, ECCV 2024

    Raises:
        ValueError: the groups do not fit the params.
    """
    checked_slices(groups, params)
    leaves = leaves_by_path(params)

    def structure(group: NeuronGroup) -> str:
        parts = [
            f"{s.role} {jnp.ndim(leaves[s.path])}.{s.axis} x{s.indices(group.size).shape[1]}"
            for s in group.slices
        ]
        return ", ".join(sorted(parts))

    return {name: structure(group) for name, group in groups.items()}
