"""Reinforcement-learning policies that shrink while they train, and the transforms that shrink them.

Names are imported on first use: ``import prune_rl`` and ``prune_rl.load_policy`` need neither JAX nor Gymnasium.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "find_groups": "prune_rl.dependency.find_groups",
    "NeuronGroup": "prune_rl.dependency.groups",
    "NeuronGroups": "prune_rl.dependency.groups",
    "explain": "prune_rl.dependency.summary",
    "layer_norm": "prune_rl.pruning.layer_norm",
    "init_masks": "prune_rl.pruning.masks",
    "apply_masks": "prune_rl.pruning.masks",
    "count": "prune_rl.pruning.masks",
    "taylor_importance": "prune_rl.pruning.importance",
    "fisher_importance": "prune_rl.pruning.importance",
    "magnitude_importance": "prune_rl.pruning.importance",
    "output_importance": "prune_rl.pruning.importance",
    "random_importance": "prune_rl.pruning.importance",
    "surgeon_importance": "prune_rl.pruning.brain_surgeon",
    "refit": "prune_rl.pruning.brain_surgeon",
    "activations": "prune_rl.dependency.activations",
    "cubic_sparsity": "prune_rl.pruning.mask_schedule",
    "update_masks": "prune_rl.pruning.ranking",
    "compact": "prune_rl.dependency.compaction",
    "compact_function": "prune_rl.dependency.compaction",
    "expand": "prune_rl.dependency.compaction",
    "group_sparse": "prune_rl.pruning.transforms.group_sparse",
    "scale_by_width": "prune_rl.pruning.transforms.scale_by_width",
    "dynamic_pruning": "prune_rl.pruning.transforms.dynamic_pruning",
    "masks_of": "prune_rl.pruning.transforms.dynamic_pruning",
    "Spec": "prune_rl.spaces",
    "Box": "prune_rl.spaces",
    "Discrete": "prune_rl.spaces",
    "Policy": "prune_rl.export.policy",
    "load_policy": "prune_rl.export.policy",
    "save_policy": "prune_rl.export.policy",
}

__all__ = [*_WHERE, "__version__", "ppo", "sac"]  # noqa: PLE0604

if TYPE_CHECKING:
    from prune_rl.dependency.activations import activations as activations
    from prune_rl.dependency.compaction import compact as compact
    from prune_rl.dependency.compaction import compact_function as compact_function
    from prune_rl.dependency.compaction import expand as expand
    from prune_rl.dependency.find_groups import find_groups as find_groups
    from prune_rl.dependency.groups import NeuronGroup as NeuronGroup
    from prune_rl.dependency.groups import NeuronGroups as NeuronGroups
    from prune_rl.dependency.summary import explain as explain
    from prune_rl.export.policy import Policy as Policy
    from prune_rl.export.policy import load_policy as load_policy
    from prune_rl.export.policy import save_policy as save_policy
    from prune_rl.learners import ppo as ppo
    from prune_rl.learners import sac as sac
    from prune_rl.pruning.brain_surgeon import refit as refit
    from prune_rl.pruning.brain_surgeon import surgeon_importance as surgeon_importance
    from prune_rl.pruning.importance import fisher_importance as fisher_importance
    from prune_rl.pruning.importance import magnitude_importance as magnitude_importance
    from prune_rl.pruning.importance import output_importance as output_importance
    from prune_rl.pruning.importance import random_importance as random_importance
    from prune_rl.pruning.importance import taylor_importance as taylor_importance
    from prune_rl.pruning.layer_norm import layer_norm as layer_norm
    from prune_rl.pruning.mask_schedule import cubic_sparsity as cubic_sparsity
    from prune_rl.pruning.masks import apply_masks as apply_masks
    from prune_rl.pruning.masks import count as count
    from prune_rl.pruning.masks import init_masks as init_masks
    from prune_rl.pruning.ranking import update_masks as update_masks
    from prune_rl.pruning.transforms.dynamic_pruning import dynamic_pruning as dynamic_pruning
    from prune_rl.pruning.transforms.dynamic_pruning import masks_of as masks_of
    from prune_rl.pruning.transforms.group_sparse import group_sparse as group_sparse
    from prune_rl.pruning.transforms.scale_by_width import scale_by_width as scale_by_width
    from prune_rl.spaces import Box as Box
    from prune_rl.spaces import Discrete as Discrete
    from prune_rl.spaces import Spec as Spec


def __getattr__(name: str) -> Any:
    if name in ("ppo", "sac"):
        return importlib.import_module(f"prune_rl.learners.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'prune_rl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
