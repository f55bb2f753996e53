"""Layers, masks and distances that several tests of pruning share."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from prune_rl.dependency.groups import NeuronGroups


def dense(p: Any, x: jax.Array) -> jax.Array:
    """x @ kernel, and the bias if there is one."""
    y = x @ p["kernel"]
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in p else y


def random_masks(groups: NeuronGroups, seed: int = 0, share: float = 0.5) -> dict[str, np.ndarray[Any, Any]]:
    """A mask of every group that keeps each neuron with probability ``share``."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(group.size) < share for name, group in groups.items()}
