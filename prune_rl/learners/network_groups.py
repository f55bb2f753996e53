"""The neuron groups of a learner's networks, found once for params of the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Params, make_struct
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.traced_numbers import without_values

Outputs = Callable[..., Any]


def network_groups(
    outputs_of: Callable[[Any], Outputs], params: Params, config: LearnerConfig, input_sizes: tuple[int, ...]
) -> NeuronGroups:
    """``find_groups`` of ``outputs_of(config)``, a function of params and of one float32[1, size] per input size.

    An update asks for the groups several times while it is traced. They depend on nothing but the arguments' shapes,
    so that the program is analysed only the first time. ``outputs_of`` is pure, and a part of the cache's key.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return _find(outputs_of, without_values(config), structure, shapes, input_sizes)


@functools.lru_cache(maxsize=128)
def _find(
    outputs_of: Callable[[Any], Outputs],
    config: LearnerConfig,
    structure: Any,
    shapes: tuple[tuple[tuple[int, ...], Any], ...],
    input_sizes: tuple[int, ...],
) -> NeuronGroups:
    params = structure.unflatten([make_struct(*shape) for shape in shapes])
    inputs = [make_struct((1, size), jnp.float32) for size in input_sizes]
    return find_groups(outputs_of(config), params, *inputs)
