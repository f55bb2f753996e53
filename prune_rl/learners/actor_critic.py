"""The neurons of {"actor", "critic"}, multilayer perceptrons that read a vector each, and the rules for removing them.

The critic is one network, or an ensemble whose params are stacked and whose members lose the same neurons: neuron j
goes in all of them.
"""

from __future__ import annotations

import jax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Params, make_struct
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_rules, prunable
from prune_rl.learners.network_groups import Outputs, network_groups
from prune_rl.learners.networks import apply_ensemble, apply_mlp, input_size, is_ensemble
from prune_rl.pruning.rules import PruningRules
from prune_rl.pruning.targets import Ensemble


def all_groups(params: Params, config: LearnerConfig) -> NeuronGroups:
    """The neuron groups of actor and critic."""
    outputs = _ensemble_outputs if is_ensemble(params["critic"]) else _outputs
    return network_groups(outputs, params, config, _input_sizes(params))


def prunable_groups(params: Params, config: LearnerConfig) -> NeuronGroups:
    """The groups that may lose neurons: the actor's, and the critic's when asked; none in a dense run."""
    return prunable(all_groups(params, config), config.prune)


def pruning_rules(params: Params, config: LearnerConfig) -> PruningRules | None:
    """What bounds the removal of neurons; None in a dense run."""
    if config.prune is None:
        return None
    ensemble = critic_ensemble(params, config) if is_ensemble(params["critic"]) else None
    return mask_rules(config, prunable_groups(params, config), _networks(config), ensemble)


def critic_ensemble(params: Params, config: LearnerConfig) -> Ensemble:
    """The critics as what they are to a mask update: each a network of its own that loses the same neurons."""
    member = jax.tree.map(lambda leaf: make_struct(leaf.shape[1:], leaf.dtype), params["critic"])
    groups = network_groups(_outputs, params | {"critic": member}, config, _input_sizes(params)).within(
        "critic"
    )
    return Ensemble(groups, {"actor": None, "critic": 0})


def _networks(config: LearnerConfig) -> dict[str, Outputs]:
    """The function ``(params, input)`` of the actor, and of one critic, for params with one critic in them."""
    return {
        "actor": lambda p, x: apply_mlp(p["actor"], x, config.activation),
        "critic": lambda p, x: apply_mlp(p["critic"], x, config.activation),
    }


def _input_sizes(params: Params) -> tuple[int, ...]:
    return tuple(input_size(params[name]) for name in ("actor", "critic"))


def _outputs(config: LearnerConfig) -> Outputs:
    actor, critic = _networks(config).values()
    return lambda p, x, y: (actor(p, x), critic(p, y))


def _ensemble_outputs(config: LearnerConfig) -> Outputs:
    actor = _networks(config)["actor"]
    return lambda p, x, y: (actor(p, x), apply_ensemble(p["critic"], y, config.activation))
