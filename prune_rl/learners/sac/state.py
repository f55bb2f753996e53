"""The train state of soft actor-critic: what is in it, how it starts, how it acts, and what optimises its parts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners.distributions import Categorical, Gaussian, SquashedGaussian
from prune_rl.learners.networks import apply_ensemble, apply_mlp, init_ensemble, init_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.learners.sac import replay_buffer
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.losses import policy
from prune_rl.learners.sac.replay_buffer import Replay
from prune_rl.pruning.group_sparse import GroupSparseState, group_sparse
from prune_rl.pruning.mask_schedule import Gate
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.scale_by_width import scale_by_width
from prune_rl.spaces import Box, Spec

Params = dict[str, Any]

NUM_CRITICS = 2
NETWORKS = ("actor", "critic")
# Transitions on which the score and the refit of a mask update look at the actor.


@struct.dataclass
class OptState:
    """One optimiser per loss."""

    actor: GroupSparseState
    critic: GroupSparseState
    alpha: Any


@struct.dataclass
class Networks:
    """What a gradient step changes. The critics' leaves have a leading axis [2, …]; ``log_alpha`` float32[]."""

    params: Params
    target_critic: Params
    log_alpha: jax.Array
    opt_state: OptState


@struct.dataclass
class State:
    """Everything that training changes, for one seed; every leaf is an array.

    ``networks.params`` = {"actor", "critic"}; ``masks`` = {group name: bool[size]} of the groups that may be pruned;
    ``bounds`` float32[2, size]: the actions' least and greatest values, size 0 for Discrete actions;
    ``step``: int32[], updates made, the same for all seeds; ``episode``: float32[2, N], discounted and undiscounted
    return of the episodes under way; ``running_return``: mean training return, NaN before the first finished episode.
    """

    networks: Networks
    masks: dict[str, jax.Array]
    gate: Gate
    replay: Replay
    obs_stats: RunningStatistics
    bounds: jax.Array
    episode: jax.Array
    running_return: jax.Array
    key: jax.Array
    step: jax.Array

    @property
    def params(self) -> Params:
        """{"actor", "critic"}."""
        return self.networks.params

    @property
    def importance(self) -> dict[str, jax.Array]:
        """Running importance of the neurons that may be pruned, {group name: float32[size]}; {} in a dense run."""
        return {**self.networks.opt_state.actor.importance, **self.networks.opt_state.critic.importance}


VMAP_AXES: Any = State(0, 0, 0, 0, 0, 0, 0, 0, 0, None)  # type: ignore[arg-type]
"""``in_axes`` of a state with a leading seed axis. ``step`` has none: batched, ``cond`` would run both branches."""


def init(key: jax.Array, config: Config, spec: Spec) -> State:
    """A fresh state for one seed; ``key`` from ``jax.random.key``.

    Raises ``ValueError`` for a bad config, or Box actions without finite bounds.
    """
    config.check()
    actor_key, critic_key, key = jax.random.split(key, 3)
    bounds = _bounds(spec)
    outputs = spec.action.num_outputs
    obs_size = spec.observation_size
    actor_sizes = [obs_size, *config.hidden, 2 * outputs if isinstance(spec.action, Box) else outputs]
    critic_sizes = [obs_size + outputs, *config.hidden, 1]
    if not isinstance(spec.action, Box):
        critic_sizes = [obs_size, *config.hidden, outputs]
    params = {
        "actor": init_mlp(actor_key, actor_sizes, 0.01),
        "critic": init_ensemble(critic_key, NUM_CRITICS, critic_sizes, 1.0),
    }
    groups = prunable_groups(params, config)
    log_alpha = jnp.log(jnp.float32(config.init_alpha if config.alpha is None else config.alpha))
    opt_state = OptState(
        actor=optimizer("actor", groups, config).init(only("actor", params)),
        critic=optimizer("critic", groups, config).init(only("critic", params)),
        alpha=adam(config).init(log_alpha),
    )
    return State(
        # A copy: a state whose leaves share memory cannot be donated.
        networks=Networks(params, jax.tree.map(jnp.copy, params["critic"]), log_alpha, opt_state),
        masks=init_masks(groups),
        gate=Gate.create(),
        replay=replay_buffer.create(config.capacity, spec),
        obs_stats=RunningStatistics.create((obs_size,)),
        bounds=bounds,
        episode=jnp.zeros((2, config.num_envs), jnp.float32),
        running_return=jnp.full((), jnp.nan, jnp.float32),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )


def is_discrete(state: State) -> bool:
    """Whether the actions are Discrete; static."""
    return state.bounds.shape[-1] == 0


def normalize(state: State, obs: jax.Array, config: Config) -> jax.Array:
    """Observations as the networks see them."""
    return state.obs_stats.normalize(obs, config.clip_obs) if config.normalize_obs else obs


def act(state: State, obs: jax.Array, noise: jax.Array, config: Config) -> jax.Array:
    """Sampled actions for raw observations [N, D], uniform ones during warm-up; ``noise`` from ``action_noise``.

    int32[N], or float32[N, size] within the environment's bounds.
    """
    warmup = state.step < config.warmup_updates
    distribution = policy(
        state.params["actor"], normalize(state, obs, config), config.activation, is_discrete(state)
    )
    if isinstance(distribution, Categorical):
        return Categorical(jnp.where(warmup, 0.0, distribution.logits)).sample(noise)
    assert isinstance(distribution, SquashedGaussian)
    sampled, _ = distribution.sample_and_log_prob(noise)
    # The normal noise through twice its own distribution function is uniform on [−1, 1].
    action = jnp.where(warmup, jax.lax.erf(noise / math.sqrt(2.0)), sampled)
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in state.bounds)
    # Clipped, since rounding can put a saturated action beyond its bound.
    return jnp.clip(low + 0.5 * (action + 1.0) * (high - low), low, high)


def action_noise(key: jax.Array, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    """Noise for ``act``, drawn for many steps at once: float32[*shape, num_outputs]."""
    kind = Gaussian if isinstance(spec.action, Box) else Categorical
    return kind.sample_noise(key, (*shape, spec.action.num_outputs))


def squashes(spec: Spec) -> bool:
    """Whether the deterministic action is tanh of the actor's output, scaled to the bounds of the action space."""
    return isinstance(spec.action, Box)


def all_groups(params: Params, config: Config) -> NeuronGroups:
    """The neuron groups of the actor and of the critics, which share theirs: neuron j goes in both critics."""

    def outputs(p: Params, obs: jax.Array, critic_input: jax.Array) -> tuple[jax.Array, jax.Array]:
        actor = apply_mlp(p["actor"], obs, config.activation)
        return actor, apply_ensemble(p["critic"], critic_input, config.activation)

    sizes = [params[name]["layer_0"]["kernel"].shape[-2] for name in NETWORKS]
    inputs = jax.eval_shape(lambda: [jnp.zeros((1, size), jnp.float32) for size in sizes])
    return find_groups(outputs, params, *inputs)


def prunable_groups(params: Params, config: Config) -> NeuronGroups:
    """The groups that may lose neurons: the actor's, and the critics' when asked."""
    if config.prune is None:
        return NeuronGroups(())
    names = NETWORKS if config.prune.critic else ("actor",)
    return all_groups(params, config).select(lambda group: group.name.split("/")[0] in names)


def learning_rate(config: Config) -> optax.Schedule:
    """Linear from ``learning_rate`` to ``learning_rate_end`` over all gradient steps."""
    return optax.linear_schedule(config.learning_rate, config.learning_rate_end, learning_steps(config))


def learning_steps(config: Config) -> int:
    """Gradient steps in the whole of training."""
    return (config.num_updates - config.warmup_updates) * config.gradient_steps


def optimizer(network: str, groups: NeuronGroups, config: Config) -> optax.GradientTransformationExtraArgs:
    """Adam for {network: params}, with the group-sparse proximal step on the actor's neurons."""
    # A dense run neither masks nor scores.
    mine = groups_of(network, groups)
    prune = config.prune or Pruning(strength=0.0)
    inner = adam(config)
    if prune.width_exponent > 0:
        inner = optax.chain(inner, scale_by_width(mine, prune.width_exponent))
    return group_sparse(
        inner,
        mine,
        strength=prune.strength if network == "actor" else 0.0,
        learning_rate=learning_rate(config),
        metric=prune.metric,
        importance="fisher" if prune.score == "fisher" else "taylor",
        decay=prune.importance_decay,
    )


def adam(config: Config) -> optax.GradientTransformation:
    """Adam with the run's schedule, for any of the three losses."""
    return optax.adam(learning_rate(config))


def groups_of(network: str, groups: NeuronGroups) -> NeuronGroups:
    """Those groups that are the actor's, or the critics'."""
    return groups.select(lambda group: group.name.split("/")[0] == network)


def only(network: str, params: Params) -> Params:
    """{network: its params}, the tree that its optimiser and its groups are for."""
    return {network: params[network]}


def _bounds(spec: Spec) -> jax.Array:
    action = spec.action
    if not isinstance(action, Box):
        return jnp.zeros((2, 0), jnp.float32)
    if not all(math.isfinite(bound) for bound in (*action.low, *action.high)):
        raise ValueError(
            f"SAC squashes its actions into their bounds, which must be finite, got low {action.low} and "
            f"high {action.high}; use PPO, or bound the environment's actions"
        )
    return jnp.array([action.low, action.high], jnp.float32)
