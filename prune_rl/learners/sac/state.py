"""The train state of SAC: networks and optimisers, how they start, how they act, and one optimiser step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.learners import replay_buffer
from prune_rl.learners.actions import action_bounds, from_unit, is_discrete
from prune_rl.learners.actor_critic import prunable_groups, pruning_rules
from prune_rl.learners.distillation import Distillation, init_distillation
from prune_rl.learners.distributions import Categorical, SquashedGaussian
from prune_rl.learners.mask_rules import rests
from prune_rl.learners.networks import init_actor_q_critics
from prune_rl.learners.optimizer import learning_rate, pruned_adam
from prune_rl.learners.replay_buffer import Replay
from prune_rl.learners.rollout import EpisodeReturns
from prune_rl.learners.running_statistics import RunningStatistics, normalize
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.values import Architecture, policy
from prune_rl.pruning.rules import PruningState, init_pruning
from prune_rl.pruning.shrinking import gather
from prune_rl.pruning.transforms.group_sparse import GroupSparseState
from prune_rl.spaces import Discrete, Spec


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


@struct.dataclass
class State:
    """Everything that training changes, for one seed; every leaf is an array.

    ``pruning``: masks {group name: bool[size]} of the groups that may be pruned, and how far the schedule is;
    ``bounds`` float32[2, size] of the actions; ``step`` int32[], updates made, the same for all seeds;
    ``distillation``: None where nothing is distilled.
    """

    networks: Networks
    pruning: PruningState
    replay: Replay
    obs_stats: RunningStatistics
    returns: EpisodeReturns
    bounds: jax.Array
    key: jax.Array
    step: jax.Array
    distillation: Distillation | None = None

    @property
    def params(self) -> Params:
        """{"actor", "critic"}."""
        return self.networks.params

    @property
    def opt_state(self) -> OptState:
        """One optimiser state per loss."""
        return self.networks.opt_state

    @property
    def masks(self) -> dict[str, jax.Array]:
        """{group name: bool[size]}, True: kept; {} in a dense run."""
        return self.pruning.masks

    @property
    def importance(self) -> dict[str, jax.Array]:
        """Running importance of the neurons that may be pruned, {group name: float32[size]}."""
        return {**self.opt_state.actor.importance, **self.opt_state.critic.importance}


VMAP_AXES: Any = State(0, 0, 0, 0, 0, 0, 0, None, 0)  # type: ignore[arg-type]
"""``in_axes`` of a state with a leading seed axis. ``step`` has none: batched, ``cond`` would run both branches."""


def init(key: jax.Array, config: Config, spec: Spec) -> State:
    """A fresh state for one seed. Raises ``ValueError`` for a bad config, or Box actions without finite bounds."""
    config.check()
    if not spec.action.bounded:
        raise ValueError(
            f"SAC squashes its actions into their bounds, which must be finite, got {spec.action}; use PPO, or "
            "bound the environment's actions"
        )
    actor_key, critic_key, key = jax.random.split(key, 3)
    networks = init_networks((actor_key, critic_key), config, spec)
    groups, rules = prunable_groups(networks.params, config), pruning_rules(networks.params, config)
    obs_stats = RunningStatistics.create((spec.observation_size,))
    return State(
        networks=networks,
        pruning=init_pruning(groups, rules, networks.params),
        replay=replay_buffer.create(config.capacity, spec),
        obs_stats=obs_stats,
        returns=EpisodeReturns.create(config.num_envs),
        bounds=action_bounds(spec),
        key=key,
        step=jnp.zeros((), jnp.int32),
        distillation=init_distillation(networks.params["actor"], obs_stats, config),
    )


def init_networks(keys: tuple[jax.Array, jax.Array], config: Config, spec: Spec) -> Networks:
    """Orthogonal actor and critics, target critics equal to the critics, and fresh optimisers."""
    options = {"skip": config.skip, "layer_norm": config.critic_layer_norm}
    params = init_actor_q_critics(keys, spec, config.hidden, config.critic_widths, **options)
    groups = prunable_groups(params, config)
    log_alpha = jnp.log(jnp.float32(config.init_alpha if config.alpha is None else config.alpha))
    opt_state = OptState(
        actor=optimizer("actor", groups, config).init({"actor": params["actor"]}),
        critic=optimizer("critic", groups, config).init({"critic": params["critic"]}),
        alpha=optax.adam(learning_rate(config)).init(log_alpha),
    )
    # A copy: a state whose leaves share memory cannot be donated.
    return Networks(params, jax.tree.map(jnp.copy, params["critic"]), log_alpha, opt_state)


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


def architecture(state: State, config: Config) -> Architecture:
    """What the networks' params do not say; static under ``jit``."""
    return Architecture(config.activation, is_discrete(state.bounds))


def act(state: State, obs: jax.Array, noise: jax.Array, config: Config) -> jax.Array:
    """Sampled actions for raw observations [N, D], uniform ones during warm-up; ``noise`` from ``action_noise``.

    int32[N], or float32[N, size] within the environment's bounds. The best ones where the learner ``rests``.
    """
    warmup = state.step < config.warmup_updates
    obs = normalize(state.obs_stats, obs, config)
    distribution = policy(state.params["actor"], obs, architecture(state, config))
    noise = jnp.where(rests(state.step, config), 0.0, noise)
    if isinstance(distribution, Categorical):
        return Categorical(jnp.where(warmup, 0.0, distribution.logits)).sample(noise)
    assert isinstance(distribution, SquashedGaussian)
    sampled, _ = distribution.sample_and_log_prob(noise)
    # The normal noise through twice its own distribution function is uniform on [−1, 1].
    action = jnp.where(warmup, jax.lax.erf(noise / math.sqrt(2.0)), sampled)
    return from_unit(action, state.bounds)


def acting(state: State) -> State:
    """The part of a state that ``act`` reads; everything else is None. Pure."""
    nothing: Any = None
    networks = Networks({"actor": state.params["actor"]}, nothing, nothing, nothing)
    return State(networks, nothing, nothing, state.obs_stats, nothing, state.bounds, nothing, state.step)


def shrink(state: State, widths: Mapping[str, int], config: Config) -> State:
    """The state in smaller arrays: hidden layers of ``widths``, {group name: neurons}, at least as many as are kept.

    Training goes on as it would with masked neurons in the larger arrays, up to rounding. Pure.
    """
    networks = state.networks
    groups = prunable_groups(networks.params, config)
    # The target critics are params of the same names.
    whole = (networks.params, {"critic": networks.target_critic}, networks.opt_state, state.pruning)
    params, target, opt_state, pruning = gather(groups, networks.params, whole, state.pruning.needed, widths)
    networks = Networks(params, target["critic"], networks.log_alpha, opt_state)
    return dataclasses.replace(state, networks=networks, pruning=pruning)


def squashes(spec: Spec) -> bool:
    """Whether the deterministic action is tanh of the actor's output, scaled to the bounds of the action space."""
    return not isinstance(spec.action, Discrete)


def extend(state: State, config: Config) -> State:
    """The state for a longer training than before: with room in the replay buffer for what follows. Pure."""
    return dataclasses.replace(state, replay=replay_buffer.enlarged(state.replay, config.capacity))
