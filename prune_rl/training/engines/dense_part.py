"""The first part of a pruned run, in which it trains as its dense control does, with the same program."""

from __future__ import annotations

from typing import Any

import jax

from prune_rl.learners.mask_rules import dense_updates
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import learner_of
from prune_rl.methods import dense as dense_method
from prune_rl.pruning.rules import PruningState
from prune_rl.spaces import Spec

# A program is compiled for this part, so it is left out where it would be shorter than so many updates.
LEAST = 16


class DensePart:
    """The leaves of a pruned run's tree that a dense run has too.

    Args:
        whole: the tree of the pruned run; only its structure is used.
        dense: that of a dense run, with the same paths.
    """

    def __init__(self, whole: Any, dense: Any) -> None:
        positions = {path: i for i, (path, _) in enumerate(jax.tree_util.tree_flatten_with_path(whole)[0])}
        paths, self._structure = jax.tree_util.tree_flatten_with_path(dense)
        self._positions = [positions[path] for path, _ in paths]

    def of(self, whole: Any) -> Any:
        """The tree of the dense run."""
        leaves = jax.tree.leaves(whole)
        return jax.tree.unflatten(self._structure, [leaves[i] for i in self._positions])

    def put(self, whole: Any, dense: Any) -> Any:
        """``whole`` with the leaves of the dense run replaced."""
        leaves, structure = jax.tree.flatten(whole)
        for i, leaf in zip(self._positions, jax.tree.leaves(dense), strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(structure, leaves)


def dense_state(config: LearnerConfig, spec: Spec) -> Any:
    """The shapes of the state of one seed of the dense control."""
    learner, dense = learner_of(config), dense_method.learner_config(config)
    return jax.eval_shape(lambda: learner.init(jax.random.key(0), dense, spec))


def num_dense_updates(config: LearnerConfig, state: Any) -> int:
    """Updates of a run before it does anything that its dense control does not."""
    if config.prune is None or not isinstance(getattr(state, "pruning", None), PruningState):
        return 0
    number = dense_updates(config)
    return number if number >= LEAST else 0
