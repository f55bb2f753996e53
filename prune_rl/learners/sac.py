"""Soft actor-critic (Haarnoja et al. 2018; discrete: Christodoulou 2019) with neuron masks in the train state, as pure
functions with the interface of `prune_rl.learners.ppo`.

    state = init(key, config, spec)
    state, metrics = update(state, rollout, config)

An update stores a rollout in the replay buffer and makes ``config.gradient_steps`` steps on what the buffer holds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.learners import replay as replay_buffer
from prune_rl.learners.distributions import Categorical, Gaussian, SquashedGaussian
from prune_rl.learners.networks import apply_ensemble, apply_mlp, init_ensemble, init_mlp
from prune_rl.learners.normalization import RunningStatistics
from prune_rl.learners.pruning_step import prune
from prune_rl.learners.replay import Replay, Transitions
from prune_rl.learners.rollout import Rollout as Rollout
from prune_rl.learners.rollout import track_returns
from prune_rl.learners.sac_config import Config as Config
from prune_rl.learners.sac_losses import (
    actor_loss,
    alpha_loss,
    critic_loss,
    critic_target,
    policy,
    soft_value,
)
from prune_rl.pruning.groups import NeuronGroups, find_groups
from prune_rl.pruning.masks import apply_masks, init_masks
from prune_rl.pruning.proximal import GroupSparseState, group_sparse
from prune_rl.pruning.thresholds import Gate
from prune_rl.pruning.width import scale_by_width
from prune_rl.spaces import Box, Spec

Params = dict[str, Any]
Metrics = dict[str, Any]

NUM_CRITICS = 2
NETWORKS = ("actor", "critic")
# Transitions on which the score and the refit of a mask update look at the actor.
PRUNING_BATCH = 2048


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
        """Running importance of the neurons that may be pruned, {group name: float32[size]}."""
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
        actor=optimizer("actor", groups, config).init(_only("actor", params)),
        critic=optimizer("critic", groups, config).init(_only("critic", params)),
        alpha=_adam(config).init(log_alpha),
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
    names = NETWORKS if config.prune.critic else ("actor",)
    return all_groups(params, config).select(lambda group: group.name.split("/")[0] in names)


def learning_rate(config: Config) -> optax.Schedule:
    """Linear from ``learning_rate`` to ``learning_rate_end`` over all gradient steps."""
    steps = (config.total_updates - config.warmup_updates) * config.gradient_steps
    return optax.linear_schedule(config.learning_rate, config.learning_rate_end, steps)


def optimizer(network: str, groups: NeuronGroups, config: Config) -> optax.GradientTransformationExtraArgs:
    """Adam for {network: params}, with the group-sparse proximal step on the actor's neurons."""
    mine = _of(network, groups)
    proximal = config.prune.enabled and network == "actor"
    inner = _adam(config)
    if config.prune.enabled and config.prune.width_exponent > 0:
        inner = optax.chain(inner, scale_by_width(mine, config.prune.width_exponent))
    return group_sparse(
        inner,
        mine,
        strength=config.prune.strength if proximal else 0.0,
        learning_rate=learning_rate(config),
        metric=config.prune.metric,
        importance="fisher" if config.prune.score == "fisher" else "taylor",
        decay=config.prune.importance_decay,
    )


def gradient_step(
    networks: Networks, batch: Transitions, key: jax.Array, masks: dict[str, jax.Array], config: Config
) -> tuple[Networks, Metrics]:
    """Critics, actor, temperature and target critics, in this order, on one batch of normalised observations."""
    params, target, opt_state = networks.params, networks.target_critic, networks.opt_state
    groups = prunable_groups(params, config)
    activation, discrete = config.activation, jnp.issubdtype(batch.action.dtype, jnp.integer)
    alpha = jnp.exp(networks.log_alpha)
    size = params["actor"]["head"]["bias"].shape[0] // 2
    noise, next_noise = jax.random.normal(key, (2, config.batch_size, size), jnp.float32)

    next_value, _ = soft_value(
        params["actor"], target, alpha, batch.next_obs, next_noise, activation, discrete
    )
    q_target = critic_target(batch, next_value, config.gamma, config.reward_scale)
    q_loss, gradient = jax.value_and_grad(critic_loss)(
        params["critic"], batch, q_target, activation, discrete
    )
    critic, critic_opt = _apply("critic", groups, params, gradient, opt_state.critic, masks, config)

    (pi_loss, entropy), gradient = jax.value_and_grad(actor_loss, has_aux=True)(
        params["actor"], critic, alpha, batch.obs, noise, activation, discrete
    )
    actor, actor_opt = _apply("actor", groups, params, gradient, opt_state.actor, masks, config)

    log_alpha, alpha_opt = networks.log_alpha, opt_state.alpha
    if config.alpha is None:
        goal = target_entropy(params, discrete, config)
        change, alpha_opt = _adam(config).update(
            jax.grad(alpha_loss)(log_alpha, entropy, goal), alpha_opt, log_alpha
        )
        log_alpha = jnp.asarray(optax.apply_updates(log_alpha, change))

    target = optax.incremental_update(critic, target, config.tau)
    metrics = {
        "critic_loss": q_loss,
        "actor_loss": pi_loss,
        "entropy": entropy,
        "alpha": alpha,
        "q_target": jnp.mean(q_target),
    }
    params = {"actor": actor, "critic": critic}
    return Networks(params, target, log_alpha, OptState(actor_opt, critic_opt, alpha_opt)), metrics


def target_entropy(params: Params, discrete: bool, config: Config) -> float:
    """The entropy that the temperature is learned for, in nats."""
    if config.target_entropy is not None:
        return config.target_entropy
    outputs: int = params["actor"]["head"]["bias"].shape[0]
    return 0.5 * math.log(outputs) if discrete else -outputs / 2


def update(state: State, rollout: Rollout, config: Config) -> tuple[State, Metrics]:
    """Store a rollout, learn from the replay buffer (not during warm-up), then update the masks. Pure."""
    rollout = jax.tree.map(jnp.asarray, rollout)
    returns = track_returns(rollout, state.episode, state.running_return, config.gamma)
    obs_stats = state.obs_stats
    if config.normalize_obs:
        obs_stats = obs_stats.update(rollout.obs.reshape(-1, rollout.obs.shape[-1]))
    state = dataclasses.replace(
        state,
        replay=replay_buffer.add(state.replay, rollout, _to_unit(state, rollout.action)),
        obs_stats=obs_stats,
        episode=returns.episode,
        running_return=returns.running,
    )
    learn_key, batch_key, prune_key, key = jax.random.split(state.key, 4)

    def draw(key: jax.Array, size: int) -> Transitions:
        batch = replay_buffer.sample(state.replay, key, size)
        obs, next_obs = (normalize(state, x, config) for x in (batch.obs, batch.next_obs))
        return dataclasses.replace(batch, obs=obs, next_obs=next_obs)

    def step(networks: Networks, key: jax.Array) -> tuple[Networks, Metrics]:
        batch_key, noise_key = jax.random.split(key)
        return gradient_step(networks, draw(batch_key, config.batch_size), noise_key, state.masks, config)

    def learn(networks: Networks) -> tuple[Networks, Metrics]:
        networks, metrics = jax.lax.scan(step, networks, jax.random.split(learn_key, config.gradient_steps))
        return networks, jax.tree.map(jnp.mean, metrics)

    def rest(networks: Networks) -> tuple[Networks, Metrics]:
        shapes = jax.eval_shape(learn, networks)[1]
        return networks, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    learning = state.step >= config.warmup_updates
    networks, losses = jax.lax.cond(learning, learn, rest, state.networks)
    metrics: Metrics = {"return": returns.mean, "episodes": returns.episodes, **losses}
    metrics["running_return"] = returns.running
    state = dataclasses.replace(state, networks=networks, key=key, step=state.step + 1)
    if config.prune.enabled:
        state, metrics["prune"] = _prune(state, draw(batch_key, PRUNING_BATCH), prune_key, config)
    return state, metrics


def _prune(
    state: State, batch: Transitions, key: jax.Array, config: Config
) -> tuple[State, dict[str, dict[str, jax.Array]]]:
    """One mask update, if it is due, of the actor and, when asked, of the critics, target critics included.

    The critics are ranked by importance instead of the surgeon's score and never refitted: members that share their
    neurons would need one least-squares problem each.
    """
    networks = state.networks
    groups = prunable_groups(networks.params, config)
    # Not before the first gradient steps: until then no score says anything.
    begin = max(config.prune.begin, (config.warmup_updates + 1) / config.total_updates)
    options = dataclasses.replace(config.prune, begin=begin, end=max(config.prune.end, begin))
    score: Any = "taylor" if options.score == "surgeon" else options.score
    gentle = dataclasses.replace(options, refit=False, score=score)
    critic_input = batch.obs if is_discrete(state) else jnp.concatenate([batch.obs, batch.action], -1)
    parts = {}
    for name, chosen, inputs in (("actor", options, batch.obs), ("critic", gentle, critic_input)):
        mine = _of(name, groups)
        if not mine:
            continue

        def apply(p: Params, x: jax.Array, name: str = name) -> jax.Array:
            network = apply_mlp if name == "actor" else apply_ensemble
            return network(p[name], x, config.activation)

        parts[name] = prune(
            mine,
            _only(name, networks.params),
            getattr(networks.opt_state, name),
            {group: state.masks[group] for group in mine},
            state.gate,
            config=chosen,
            apply=apply,
            obs=inputs,
            running_return=state.running_return,
            step=state.step,
            total_updates=config.total_updates,
            key=jax.random.fold_in(key, NETWORKS.index(name)),
        )
    masks = {group: mask for part in parts.values() for group, mask in part.masks.items()}
    params = {name: parts[name].params[name] if name in parts else networks.params[name] for name in NETWORKS}
    target = networks.target_critic
    if "critic" in parts:
        target = apply_masks(_of("critic", groups), {"critic": target}, parts["critic"].masks)["critic"]
    opt_state = dataclasses.replace(
        networks.opt_state, **{name: part.opt_state for name, part in parts.items()}
    )
    networks = dataclasses.replace(networks, params=params, target_critic=target, opt_state=opt_state)
    report = {group: row for part in parts.values() for group, row in part.report.items()}
    return dataclasses.replace(state, networks=networks, masks=masks, gate=parts["actor"].gate), report


def _apply(
    network: str,
    groups: NeuronGroups,
    params: Params,
    gradient: Params,
    opt_state: GroupSparseState,
    masks: dict[str, jax.Array],
    config: Config,
) -> tuple[Params, GroupSparseState]:
    """One optimiser step of one network; masked slices stay 0."""
    mine = _of(network, groups)
    old = _only(network, params)
    changes, new_state = optimizer(network, groups, config).update(
        {network: gradient}, opt_state, old, masks={group: masks[group] for group in mine}
    )
    new: Any = optax.apply_updates(old, changes)
    return new[network], new_state


def _adam(config: Config) -> optax.GradientTransformation:
    return optax.adam(learning_rate(config))


def _of(network: str, groups: NeuronGroups) -> NeuronGroups:
    return groups.select(lambda group: group.name.split("/")[0] == network)


def _only(network: str, params: Params) -> Params:
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


def _to_unit(state: State, action: jax.Array) -> jax.Array:
    """Box actions [T, N, size] in [−1, 1], where the critics read them; Discrete ones as they are."""
    if is_discrete(state):
        return action
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in state.bounds)
    # A component whose bounds are equal has nothing to choose.
    width = jnp.where(high > low, high - low, 1.0)
    return 2.0 * (action - low) / width - 1.0
