"""What a gradient step of SAC changes: actor, critics, temperature and their optimisers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params, make_struct
from prune_rl.learners.mask_rules import mask_rules, prunable
from prune_rl.learners.network_groups import Outputs, network_groups
from prune_rl.learners.networks import apply_ensemble, apply_mlp, init_ensemble, init_mlp, input_size
from prune_rl.learners.optimizer import learning_rate, pruned_adam
from prune_rl.learners.sac.config import Config
from prune_rl.pruning.rules import PruningRules
from prune_rl.pruning.targets import Ensemble
from prune_rl.pruning.transforms.group_sparse import GroupSparseState
from prune_rl.spaces import Discrete, Spec

NUM_CRITICS = 2


@struct.dataclass
class OptState:
    """One optimiser per loss."""

    actor: GroupSparseState
    critic: GroupSparseState
    alpha: Any


@struct.dataclass
class Networks:
    """``params`` = {"actor", "critic"}; the critics' leaves have a leading axis [2, …]; ``log_alpha`` float32[]."""

    params: Params
    target_critic: Params
    log_alpha: jax.Array
    opt_state: OptState


def init_networks(actor_key: jax.Array, critic_key: jax.Array, config: Config, spec: Spec) -> Networks:
    """Orthogonal actor and critics, target critics equal to the critics, and fresh optimisers."""
    outputs, inputs = spec.action.num_outputs, spec.observation_size
    actor_outputs, critic_inputs, critic_outputs = outputs, inputs, outputs
    if not isinstance(spec.action, Discrete):
        actor_outputs, critic_inputs, critic_outputs = 2 * outputs, inputs + outputs, 1
    critic_sizes = [critic_inputs, *config.critic_widths, critic_outputs]
    params = {
        "actor": init_mlp(actor_key, [inputs, *config.hidden, actor_outputs], 0.01, skip=config.skip),
        "critic": init_ensemble(critic_key, NUM_CRITICS, critic_sizes, 1.0),
    }
    groups = prunable_groups(params, config)
    log_alpha = jnp.log(jnp.float32(config.init_alpha if config.alpha is None else config.alpha))
    opt_state = OptState(
        actor=optimizer("actor", groups, config).init({"actor": params["actor"]}),
        critic=optimizer("critic", groups, config).init({"critic": params["critic"]}),
        alpha=optax.adam(learning_rate(config)).init(log_alpha),
    )
    # A copy: a state whose leaves share memory cannot be donated.
    return Networks(params, jax.tree.map(jnp.copy, params["critic"]), log_alpha, opt_state)


def member_functions(config: Config) -> dict[str, Outputs]:
    """{"actor", "critic"}: the function ``(params, input)`` of the actor, and of one critic, for params = {"actor",
    "critic"} with one critic in them.
    """
    return {
        "actor": lambda p, x: apply_mlp(p["actor"], x, config.activation),
        "critic": lambda p, x: apply_mlp(p["critic"], x, config.activation),
    }


def all_groups(params: Params, config: Config) -> NeuronGroups:
    """The neuron groups of the actor and of the critics, which share theirs: neuron j goes in both critics."""
    return network_groups(_outputs, params, config, _input_sizes(params))


def critic_ensemble(params: Params, config: Config) -> Ensemble:
    """The critics as what they are to a mask update: each a network of its own that loses the same neurons."""
    member = params | {
        "critic": jax.tree.map(lambda leaf: make_struct(leaf.shape[1:], leaf.dtype), params["critic"])
    }
    groups = network_groups(_member_outputs, member, config, _input_sizes(params)).within("critic")
    return Ensemble(groups, {"actor": None, "critic": 0})


def _input_sizes(params: Params) -> tuple[int, ...]:
    return tuple(input_size(params[name]) for name in ("actor", "critic"))


def _outputs(config: Config) -> Outputs:
    actor = member_functions(config)["actor"]
    return lambda p, x, y: (actor(p, x), apply_ensemble(p["critic"], y, config.activation))


def _member_outputs(config: Config) -> Outputs:
    actor, critic = member_functions(config).values()
    return lambda p, x, y: (actor(p, x), critic(p, y))


def prunable_groups(params: Params, config: Config) -> NeuronGroups:
    """The groups that may lose neurons: the actor's, and the critics' when asked; none in a dense run."""
    return prunable(all_groups(params, config), config.prune)


def pruning_rules(params: Params, config: Config) -> PruningRules | None:
    """What bounds the removal of neurons; None in a dense run."""
    if config.prune is None:
        return None
    groups = prunable_groups(params, config)
    return mask_rules(config, groups, member_functions(config), critic_ensemble(params, config))


def optimizer(network: str, groups: NeuronGroups, config: Config) -> optax.GradientTransformationExtraArgs:
    """Adam with pruning for {network: params}; the proximal step acts on the actor only."""
    return pruned_adam(config, groups.within(network), proximal=network == "actor")


def apply_gradient(
    network: str, networks: Networks, gradient: Params, masks: Masks, config: Config
) -> tuple[Params, GroupSparseState]:
    """One optimiser step of one network; masked slices stay 0."""
    tx = optimizer(network, prunable_groups(networks.params, config), config)
    old, opt_state = {network: networks.params[network]}, getattr(networks.opt_state, network)
    changes, opt_state = tx.update({network: gradient}, opt_state, old, masks=masks)
    new: Any = optax.apply_updates(old, changes)
    return new[network], opt_state
