"""Proximal policy optimisation (Schulman et al. 2017) with neuron masks in the train state, as pure functions.

    state = init(key, config, spec)
    state, metrics = update(state, rollout, config)

Written for one seed; ``jax.vmap`` over a state with axes ``VMAP_AXES`` serves many. Hyperparameters are static, shapes
come from the params, so the same ``update`` runs on a wide and on a compacted state.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners import pruning_step
from prune_rl.learners.advantages import generalized_advantages
from prune_rl.learners.distributions import Categorical, Gaussian
from prune_rl.learners.networks import apply_mlp, init_actor_critic
from prune_rl.learners.ppo.config import Config as Config
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.rollout import Rollout as Rollout
from prune_rl.learners.rollout import track_returns
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.pruning.group_sparse import GroupSparseState, group_sparse
from prune_rl.pruning.mask_schedule import Gate
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.scale_by_width import scale_by_width
from prune_rl.spaces import Box, Spec

Params = dict[str, Any]
Metrics = dict[str, Any]


@struct.dataclass
class State:
    """Everything that training changes, for one seed; every leaf is an array.

    ``params`` = {"actor", "critic"}; ``masks`` = {group name: bool[size]} of the groups that may be pruned;
    ``step``: int32[], updates made, the same for all seeds; ``episode``: float32[2, N], discounted and undiscounted
    return of the episodes under way; ``running_return``: mean training return, NaN before the first finished episode.
    """

    params: Params
    opt_state: GroupSparseState
    masks: dict[str, jax.Array]
    gate: Gate
    obs_stats: RunningStatistics
    return_stats: RunningStatistics
    episode: jax.Array
    running_return: jax.Array
    key: jax.Array
    step: jax.Array

    @property
    def importance(self) -> dict[str, jax.Array]:
        """Running importance of the neurons that may be pruned, {group name: float32[size]}."""
        return self.opt_state.importance


VMAP_AXES: Any = State(0, 0, 0, 0, 0, 0, 0, 0, 0, None)  # type: ignore[arg-type]
"""``in_axes`` of a state with a leading seed axis. ``step`` has none: batched, ``cond`` would run both branches."""


def init(key: jax.Array, config: Config, spec: Spec) -> State:
    """A fresh state for one seed; ``key`` from ``jax.random.key``. Raises ``ValueError`` for a bad config."""
    config.check()
    params_key, key = jax.random.split(key)
    params = init_actor_critic(params_key, spec, config.hidden)
    groups = prunable_groups(params, config)
    return State(
        params=params,
        opt_state=optimizer(groups, config).init(params),
        masks=init_masks(groups),
        gate=Gate.create(),
        obs_stats=RunningStatistics.create((spec.observation_size,)),
        return_stats=RunningStatistics.create(()),
        episode=jnp.zeros((2, config.num_envs), jnp.float32),
        running_return=jnp.full((), jnp.nan, jnp.float32),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )


def apply_actor_critic(params: Params, obs: jax.Array, config: Config) -> tuple[jax.Array, jax.Array]:
    """Outputs of the actor […, k] and values […] for normalised observations […, D]."""
    return apply_mlp(params["actor"], obs, config.activation), values(params, obs, config)


def values(params: Params, obs: jax.Array, config: Config) -> jax.Array:
    """V(obs) […] for normalised observations […, D]."""
    return jnp.squeeze(apply_mlp(params["critic"], obs, config.activation), -1)


def distribution(params: Params, obs: jax.Array, config: Config) -> Categorical | Gaussian:
    """The policy's action distribution for normalised observations […, D]."""
    outputs = apply_mlp(params["actor"], obs, config.activation)
    log_std = params["actor"].get("log_std")
    return Categorical(outputs) if log_std is None else Gaussian(outputs, log_std)


def normalize(state: State, obs: jax.Array, config: Config) -> jax.Array:
    """Observations as the networks see them."""
    return state.obs_stats.normalize(obs, config.clip_obs) if config.normalize_obs else obs


def act(state: State, obs: jax.Array, noise: jax.Array, config: Config) -> jax.Array:
    """Sampled actions for raw observations [N, D]; ``noise`` from ``action_noise``. int32[N] or float32[N, size]."""
    return distribution(state.params, normalize(state, obs, config), config).sample(noise)


def action_noise(key: jax.Array, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    """Noise for ``act``, drawn for many steps at once: float32[*shape, num_outputs]."""
    kind = Gaussian if isinstance(spec.action, Box) else Categorical
    return kind.sample_noise(key, (*shape, spec.action.num_outputs))


def squashes(spec: Spec) -> bool:
    """Whether the deterministic action is tanh of the actor's output, scaled to the bounds of the action space."""
    del spec
    return False


def all_groups(params: Params, config: Config) -> NeuronGroups:
    """The neuron groups of actor and critic."""
    size = params["actor"]["layer_0"]["kernel"].shape[0]
    obs = jax.eval_shape(lambda: jnp.zeros((1, size), jnp.float32))
    return find_groups(lambda p, x: apply_actor_critic(p, x, config), params, obs)


def prunable_groups(params: Params, config: Config) -> NeuronGroups:
    """The groups that may lose neurons: the actor's, and the critic's when asked."""
    if config.prune is None:
        return NeuronGroups(())
    networks = ("actor", "critic") if config.prune.critic else ("actor",)
    return all_groups(params, config).select(lambda group: group.name.split("/")[0] in networks)


def learning_rate(config: Config) -> optax.Schedule:
    """Linear from ``learning_rate`` to ``learning_rate_end`` over all gradient steps."""
    steps = config.num_updates * config.update_epochs * config.num_minibatches
    return optax.linear_schedule(config.learning_rate, config.learning_rate_end, steps)


def optimizer(groups: NeuronGroups, config: Config) -> optax.GradientTransformationExtraArgs:
    """Clipped Adam, with the group-sparse proximal step on ``groups``."""
    schedule = learning_rate(config)
    steps = [optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule, eps=1e-5)]
    prune = config.prune or Pruning(strength=0.0)
    if prune.width_exponent > 0:
        steps.append(scale_by_width(groups, prune.width_exponent))
    return group_sparse(
        optax.chain(*steps),
        groups,
        strength=prune.strength,
        learning_rate=schedule,
        metric=prune.metric,
        importance="fisher" if prune.score == "fisher" else "taylor",
        decay=prune.importance_decay,
        eps=1e-5,
    )


@struct.dataclass
class Batch:
    """What the loss needs of each transition, [B, …]; ``obs`` is normalised."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    value: jax.Array


def loss(params: Params, batch: Batch, config: Config) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate + value loss − entropy bonus (Schulman et al. 2017, equations 7 and 9), and its parts."""
    policy = distribution(params, batch.obs, config)
    log_ratio = policy.log_prob(batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = (batch.advantage - jnp.mean(batch.advantage)) / (jnp.std(batch.advantage) + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
    policy_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))

    value, target = values(params, batch.obs, config), batch.advantage + batch.value
    error = jnp.square(value - target)
    if config.clip_range_vf is not None:
        near = batch.value + jnp.clip(value - batch.value, -config.clip_range_vf, config.clip_range_vf)
        error = jnp.maximum(error, jnp.square(near - target))
    value_loss = 0.5 * jnp.mean(error)

    entropy = jnp.mean(policy.entropy())
    total = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
    return total, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        # The low-variance, never negative estimate (ratio − 1) − log ratio.
        "approx_kl": jnp.mean(ratio - 1.0 - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > config.clip_eps),
    }


def prepare(state: State, rollout: Rollout, config: Config) -> tuple[State, Batch, Metrics]:
    """Statistics, normalised rewards, advantages and old log-probabilities: the batch [T·N, …] to learn from."""
    rollout = jax.tree.map(jnp.asarray, rollout)
    returns = track_returns(rollout, state.episode, state.running_return, config.gamma)
    rollout = rollout.with_cut()

    reward, return_stats = rollout.reward, state.return_stats
    if config.normalize_reward:
        return_stats = return_stats.update(returns.discounted.reshape(-1))
        reward = jnp.clip(reward * jax.lax.rsqrt(return_stats.var + 1e-8), -config.clip_obs, config.clip_obs)

    obs = normalize(state, rollout.obs, config)
    value = values(state.params, obs, config)
    next_value = values(state.params, normalize(state, rollout.next_obs, config), config)
    advantage = generalized_advantages(
        reward, value, next_value, rollout.terminated, rollout.truncated, config.gamma, config.gae_lambda
    )
    log_prob = distribution(state.params, obs, config).log_prob(rollout.action)
    batch = Batch(obs, rollout.action, log_prob, advantage, value)
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    obs_stats = state.obs_stats
    if config.normalize_obs:
        obs_stats = obs_stats.update(rollout.obs.reshape(-1, rollout.obs.shape[-1]))
    state = dataclasses.replace(
        state,
        obs_stats=obs_stats,
        return_stats=return_stats,
        episode=returns.episode,
        running_return=returns.running,
    )
    metrics = {"return": returns.mean, "episodes": returns.episodes, "explained_variance": _explained(batch)}
    return state, batch, metrics


def update(state: State, rollout: Rollout, config: Config) -> tuple[State, Metrics]:
    """One iteration of PPO on one rollout: minibatch epochs with the proximal step, then the mask update. Pure.

    Returns the new state and scalars: losses, "approx_kl", "clip_fraction", "entropy", "return" (mean over the
    episodes that ended in the rollout, NaN if none), "running_return", "prune" (per group, see ``pruning_step``).
    """
    groups = prunable_groups(state.params, config)
    tx = optimizer(groups, config)
    key, shuffle_key, prune_key = jax.random.split(state.key, 3)
    state, batch, metrics = prepare(state, rollout, config)
    size = batch.advantage.shape[0]

    def minibatch(carry: tuple[Params, Any], part: Batch) -> tuple[tuple[Params, Any], Metrics]:
        params, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(params, part, config)
        updates, opt_state = tx.update(grads, opt_state, params, masks=state.masks)
        return (optax.apply_updates(params, updates), opt_state), parts

    def epoch(carry: tuple[Params, Any], epoch_key: jax.Array) -> tuple[tuple[Params, Any], Metrics]:
        order = jax.random.permutation(epoch_key, size)
        parts = jax.tree.map(lambda x: x[order].reshape(config.num_minibatches, -1, *x.shape[1:]), batch)
        return jax.lax.scan(minibatch, carry, parts)

    carry, losses = jax.lax.scan(
        epoch, (state.params, state.opt_state), jax.random.split(shuffle_key, config.update_epochs)
    )
    params, opt_state = carry
    metrics |= jax.tree.map(jnp.mean, losses) | {"running_return": state.running_return}
    state = dataclasses.replace(state, params=params, opt_state=opt_state, key=key, step=state.step + 1)
    if config.prune is not None:
        pruned = pruning_step.prune(
            groups,
            params,
            opt_state,
            state.masks,
            state.gate,
            config=config.prune,
            apply=lambda p, x: apply_actor_critic(p, x, config),
            obs=batch.obs,
            running_return=state.running_return,
            step=state.step,
            total_updates=config.num_updates,
            key=prune_key,
        )
        state = dataclasses.replace(
            state, params=pruned.params, opt_state=pruned.opt_state, masks=pruned.masks, gate=pruned.gate
        )
        metrics["prune"] = pruned.report
    return state, metrics


def _explained(batch: Batch) -> jax.Array:
    """Share of the variance of the return target that the value explains."""
    target = batch.advantage + batch.value
    return 1.0 - jnp.var(batch.advantage) / jnp.maximum(jnp.var(target), 1e-12)
