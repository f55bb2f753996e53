"""Soft actor-critic (Haarnoja et al. 2018; discrete: Christodoulou 2019) with neuron masks in the train state, as pure
functions with the interface of `prune_rl.learners.ppo.learner`.

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

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners.networks import apply_ensemble, apply_mlp
from prune_rl.learners.pruning_step import prune
from prune_rl.learners.rollout import Rollout as Rollout
from prune_rl.learners.rollout import track_returns
from prune_rl.learners.sac import replay_buffer
from prune_rl.learners.sac.config import Config as Config
from prune_rl.learners.sac.losses import actor_loss, alpha_loss, critic_loss, critic_target, soft_value
from prune_rl.learners.sac.replay_buffer import Transitions
from prune_rl.learners.sac.state import (
    NETWORKS,
    Params,
    adam,
    groups_of,
    is_discrete,
    learning_steps,
    normalize,
    only,
    optimizer,
)
from prune_rl.learners.sac.state import VMAP_AXES as VMAP_AXES
from prune_rl.learners.sac.state import Networks as Networks
from prune_rl.learners.sac.state import OptState as OptState
from prune_rl.learners.sac.state import State as State
from prune_rl.learners.sac.state import act as act
from prune_rl.learners.sac.state import action_noise as action_noise
from prune_rl.learners.sac.state import all_groups as all_groups
from prune_rl.learners.sac.state import init as init
from prune_rl.learners.sac.state import learning_rate as learning_rate
from prune_rl.learners.sac.state import prunable_groups as prunable_groups
from prune_rl.learners.sac.state import squashes as squashes
from prune_rl.pruning.group_sparse import GroupSparseState
from prune_rl.pruning.masks import apply_masks

Metrics = dict[str, Any]

# Transitions on which the score and the refit of a mask update look at the actor.
PRUNING_BATCH = 2048
# At most so many gradient steps have their batches and noise drawn in one go: drawn step by step, random numbers are a
# tenth of the time of training on a CPU; drawn all at once, the batches of a long rollout could fill the memory.
DRAWN_AHEAD = 64
# Two gradient steps per turn of the loop, which copies the parameters half as often: 7 % of the time on a CPU.
UNROLL = 2


def gradient_noise(key: jax.Array, params: Params, batch_size: int) -> jax.Array:
    """Standard normal noise for a gradient step, float32[2, B, size]: for the actions at ``obs`` and ``next_obs``.

    Discrete actors, which are not sampled from, make no use of it.
    """
    size = params["actor"]["head"]["bias"].shape[0] // 2
    return jax.random.normal(key, (2, batch_size, size), jnp.float32)


def gradient_step(
    networks: Networks, batch: Transitions, noise: jax.Array, masks: dict[str, jax.Array], config: Config
) -> tuple[Networks, Metrics]:
    """Critics, actor, temperature and target critics, in this order, on one batch of normalised observations.

    ``noise`` from ``gradient_noise``.
    """
    params, target, opt_state = networks.params, networks.target_critic, networks.opt_state
    groups = prunable_groups(params, config)
    activation, discrete = config.activation, jnp.issubdtype(batch.action.dtype, jnp.integer)
    alpha = jnp.exp(networks.log_alpha)
    noise, next_noise = noise

    # Without the bonus, what follows an action is worth its rewards alone (Yu et al. 2022, SACLite).
    bonus = alpha if config.entropy_backup else jnp.zeros_like(alpha)
    next_value, _ = soft_value(
        params["actor"], target, bonus, batch.next_obs, next_noise, activation, discrete
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
        goal = target_entropy(params, discrete, config)(opt_state.actor.count)
        change, alpha_opt = adam(config).update(
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


def target_entropy(params: Params, discrete: bool, config: Config) -> optax.Schedule:
    """The entropy that the temperature is learned for, in nats, over gradient steps."""
    outputs: int = params["actor"]["head"]["bias"].shape[0]
    default = 0.5 * math.log(outputs) if discrete else -outputs / 2
    first = default if config.target_entropy is None else config.target_entropy
    last = first if config.target_entropy_end is None else config.target_entropy_end
    return optax.linear_schedule(first, last, learning_steps(config))


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

    def draw_step(key: jax.Array) -> tuple[Transitions, jax.Array]:
        batch_key, noise_key = jax.random.split(key)
        size = config.batch_size
        return draw(batch_key, size), gradient_noise(noise_key, state.params, size)

    def step(networks: Networks, drawn: tuple[Transitions, jax.Array]) -> tuple[Networks, Metrics]:
        return gradient_step(networks, *drawn, state.masks, config)

    def steps(networks: Networks, keys: jax.Array) -> tuple[Networks, Metrics]:
        return jax.lax.scan(step, networks, jax.vmap(draw_step)(keys), unroll=math.gcd(UNROLL, len(keys)))

    def learn(networks: Networks) -> tuple[Networks, Metrics]:
        count = config.gradient_steps
        ahead = next(size for size in range(min(count, DRAWN_AHEAD), 0, -1) if count % size == 0)
        keys = jax.random.split(learn_key, count).reshape(-1, ahead)
        networks, metrics = jax.lax.scan(steps, networks, keys)
        return networks, jax.tree.map(jnp.mean, metrics)

    def rest(networks: Networks) -> tuple[Networks, Metrics]:
        shapes = jax.eval_shape(learn, networks)[1]
        return networks, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    learning = state.step >= config.warmup_updates
    networks, losses = jax.lax.cond(learning, learn, rest, state.networks)
    metrics: Metrics = {"return": returns.mean, "episodes": returns.episodes, **losses}
    metrics["running_return"] = returns.running
    state = dataclasses.replace(state, networks=networks, key=key, step=state.step + 1)
    if config.prune is not None:
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
    assert config.prune is not None
    groups = prunable_groups(networks.params, config)
    # Not before the first gradient steps: until then no score says anything.
    begin = max(config.prune.begin, (config.warmup_updates + 1) / config.num_updates)
    options = dataclasses.replace(config.prune, begin=begin, end=max(config.prune.end, begin))
    score: Any = "taylor" if options.score == "surgeon" else options.score
    gentle = dataclasses.replace(options, refit=False, score=score)
    critic_input = batch.obs if is_discrete(state) else jnp.concatenate([batch.obs, batch.action], -1)
    parts = {}
    for name, chosen, inputs in (("actor", options, batch.obs), ("critic", gentle, critic_input)):
        mine = groups_of(name, groups)
        if not mine:
            continue

        def apply(p: Params, x: jax.Array, name: str = name) -> jax.Array:
            network = apply_mlp if name == "actor" else apply_ensemble
            return network(p[name], x, config.activation)

        parts[name] = prune(
            mine,
            only(name, networks.params),
            getattr(networks.opt_state, name),
            {group: state.masks[group] for group in mine},
            state.gate,
            config=chosen,
            apply=apply,
            obs=inputs,
            running_return=state.running_return,
            step=state.step,
            total_updates=config.num_updates,
            key=jax.random.fold_in(key, NETWORKS.index(name)),
        )
    masks = {group: mask for part in parts.values() for group, mask in part.masks.items()}
    params = {name: parts[name].params[name] if name in parts else networks.params[name] for name in NETWORKS}
    target = networks.target_critic
    if "critic" in parts:
        target = apply_masks(groups_of("critic", groups), {"critic": target}, parts["critic"].masks)["critic"]
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
    mine = groups_of(network, groups)
    old = only(network, params)
    changes, new_state = optimizer(network, groups, config).update(
        {network: gradient}, opt_state, old, masks={group: masks[group] for group in mine}
    )
    new: Any = optax.apply_updates(old, changes)
    return new[network], new_state


def _to_unit(state: State, action: jax.Array) -> jax.Array:
    """Box actions [T, N, size] in [−1, 1], where the critics read them; Discrete ones as they are."""
    if is_discrete(state):
        return action
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in state.bounds)
    # A component whose bounds are equal has nothing to choose.
    width = jnp.where(high > low, high - low, 1.0)
    return 2.0 * (action - low) / width - 1.0
