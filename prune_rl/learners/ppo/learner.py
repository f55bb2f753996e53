"""Proximal policy optimisation (Schulman et al. 2017) with neuron masks in the train state, as pure functions.

    state = init(key, config, spec)
    state, metrics = update(state, rollout, config)

Written for one seed; ``jax.vmap`` over a state with axes ``VMAP_AXES`` serves many. Hyperparameters are static, shapes
come from the params, so the same ``update`` runs on a wide and on a compacted state.

References:
    Schulman et al., `Proximal Policy Optimization Algorithms <https://arxiv.org/abs/1707.06347>`_, 2017
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.actions import action_bounds, gaussian_bounds, gaussian_range, is_discrete
from prune_rl.learners.actor_critic import prunable_groups, pruning_rules
from prune_rl.learners.advantages import generalized_advantages
from prune_rl.learners.distillation import Distillation, init_distillation
from prune_rl.learners.gradient_steps import learn_unless
from prune_rl.learners.imitation import CATEGORICAL, Imitated, clipped_divergence
from prune_rl.learners.mask_rules import rests
from prune_rl.learners.networks import init_actor_critic
from prune_rl.learners.ppo.config import Config
from prune_rl.learners.ppo.surrogate import Batch, actor_distribution, minibatch_epochs, optimizer, values
from prune_rl.learners.pruning_step import pruning_step
from prune_rl.learners.rollout import EpisodeReturns, Metrics, Rollout, track_returns
from prune_rl.learners.running_statistics import RunningStatistics, normalize, update_statistics
from prune_rl.pruning.rules import PruningState, init_pruning
from prune_rl.pruning.shrinking import gather
from prune_rl.pruning.transforms.group_sparse import GroupSparseState
from prune_rl.spaces import Spec


@struct.dataclass
class State:
    """Everything that training changes, for one seed; every leaf is an array.

    ``params`` = {"actor", "critic"}; ``pruning``: masks {group name: bool[size]} of the groups that may be pruned, and
    how far the schedule is; ``bounds`` float32[2, size] of the actions; ``step`` int32[], updates made, the same for
    all seeds; ``distillation``: None where nothing is distilled.
    """

    params: Params
    opt_state: GroupSparseState
    pruning: PruningState
    obs_stats: RunningStatistics
    return_stats: RunningStatistics
    returns: EpisodeReturns
    bounds: jax.Array
    key: jax.Array
    step: jax.Array
    distillation: Distillation | None = None

    @property
    def masks(self) -> dict[str, jax.Array]:
        """{group name: bool[size]}, True: kept; {} in a dense run."""
        return self.pruning.masks

    @property
    def importance(self) -> dict[str, jax.Array]:
        """Running importance of the neurons that may be pruned, {group name: float32[size]}."""
        return self.opt_state.importance


VMAP_AXES: Any = State(0, 0, 0, 0, 0, 0, 0, 0, None, 0)  # type: ignore[arg-type]
"""``in_axes`` of a state with a leading seed axis. ``step`` has none: batched, ``cond`` would run both branches."""


def init(key: jax.Array, config: Config, spec: Spec) -> State:
    """A fresh state for one seed; ``key`` from ``jax.random.key``. Raises ``ValueError`` for a bad config."""
    config.check()
    params_key, key = jax.random.split(key)
    options = {"skip": config.skip, "layer_norm": config.critic_layer_norm}
    params = init_actor_critic(params_key, spec, config.hidden, config.critic_widths, **options)
    groups = prunable_groups(params, config)
    obs_stats = RunningStatistics.create((spec.observation_size,))
    return State(
        params=params,
        opt_state=optimizer(groups, config).init(params),
        pruning=init_pruning(groups, pruning_rules(params, config), params),
        obs_stats=obs_stats,
        return_stats=RunningStatistics.create(()),
        returns=EpisodeReturns.create(config.num_envs),
        bounds=action_bounds(spec),
        key=key,
        step=jnp.zeros((), jnp.int32),
        distillation=init_distillation(params["actor"], obs_stats, config),
    )


def act(state: State, obs: jax.Array, noise: jax.Array, config: Config) -> jax.Array:
    """Sampled actions for raw observations [N, D]; ``noise`` from ``action_noise``. int32[N] or float32[N, size].

    The best ones where the learner ``rests``. ``environment_actions`` takes them to the environment; a ``Rollout`` has
    them as they are.
    """
    obs = normalize(state.obs_stats, obs, config)
    noise = jnp.where(rests(state.step, config), 0.0, noise)
    return actor_distribution(state.params, obs, config, is_discrete(state.bounds)).sample(noise)


def environment_actions(action: Any, spec: Spec) -> Any:
    """Actions of ``act`` as the environment takes them (and clips them): Box actions moved by ``gaussian_range``.

    JAX or NumPy, any leading axes.
    """
    mapped = gaussian_range(spec)
    if mapped is None:
        return action
    lead = (1,) * (action.ndim - 1)
    centre, scale = (x.reshape(*lead, -1) for x in mapped)
    return action * scale + centre


def shrink(state: State, widths: Mapping[str, int], config: Config) -> State:
    """The state in smaller arrays: hidden layers of ``widths``, {group name: neurons}, at least as many as are kept.

    Training goes on as it would with masked neurons in the larger arrays, up to rounding. Pure.
    """
    groups, whole = prunable_groups(state.params, config), (state.params, state.opt_state, state.pruning)
    params, opt_state, pruning = gather(groups, state.params, whole, state.pruning.needed, widths)
    return dataclasses.replace(state, params=params, opt_state=opt_state, pruning=pruning)


def squashes(spec: Spec) -> bool:
    """Whether the deterministic action is tanh of the actor's output, scaled to the bounds of the action space."""
    del spec
    return False


def prepare(state: State, rollout: Rollout, config: Config) -> tuple[State, Batch, Metrics]:
    """Statistics, normalised rewards, advantages and old log-probabilities: the batch [T·N, …] to learn from."""
    chex.assert_shape(rollout.reward, (config.num_steps, config.num_envs))
    rollout = jax.tree.map(jnp.asarray, rollout)
    returns, discounted, metrics = track_returns(state.returns, rollout, config.gamma)
    rollout = rollout.with_cut()

    reward, return_stats = rollout.reward, state.return_stats
    if config.normalize_reward:
        return_stats = return_stats.update(discounted.reshape(-1))
        reward = jnp.clip(reward * jax.lax.rsqrt(return_stats.var + 1e-8), -config.clip_obs, config.clip_obs)

    obs, next_obs = (normalize(state.obs_stats, x, config) for x in (rollout.obs, rollout.next_obs))
    value, next_value = values(state.params, obs, config), values(state.params, next_obs, config)
    advantage = generalized_advantages(
        reward, value, next_value, rollout.terminated, rollout.truncated, config.gamma, config.gae_lambda
    )
    policy = actor_distribution(state.params, obs, config, is_discrete(state.bounds))
    batch = Batch(
        obs,
        rollout.action,
        policy.log_prob(rollout.action),
        advantage,
        value,
    )
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    target = batch.advantage + batch.value
    metrics["explained_variance"] = 1.0 - jnp.var(batch.advantage) / jnp.maximum(jnp.var(target), 1e-12)

    obs_stats = update_statistics(state.obs_stats, rollout.obs, config)
    state = dataclasses.replace(state, obs_stats=obs_stats, return_stats=return_stats, returns=returns)
    return state, batch, metrics


def update(state: State, rollout: Rollout, config: Config) -> tuple[State, Metrics]:
    """One iteration of PPO on one rollout: minibatch epochs with the proximal step, then the mask update. Pure.

    Where the learner ``rests`` there are no epochs. Returns the new state and metrics, scalars: those of
    ``track_returns``, "explained_variance", the parts of ``loss`` and "gradient_steps" (0 where it rests); in a pruned
    run also "prune_progress", the share of the mask schedule that is done, "prune", the report of ``mask_update``, and
    "distillation", see ``pruning_step``.
    """
    groups = prunable_groups(state.params, config)
    tx, discrete = optimizer(groups, config), is_discrete(state.bounds)
    key, shuffle_key, prune_key = jax.random.split(state.key, 3)
    acted = state.params["actor"], state.obs_stats
    state, batch, metrics = prepare(state, rollout, config)

    def learn(learned: tuple[Params, Any]) -> tuple[tuple[Params, Any], Metrics]:
        params, opt_state, losses = minibatch_epochs(
            *learned, batch, state.masks, tx, shuffle_key, config, discrete
        )
        steps = jnp.int32(config.update_epochs * config.num_minibatches)
        return (params, opt_state), {**losses, "gradient_steps": steps}

    learned = state.params, state.opt_state
    (params, opt_state), losses = learn_unless(rests(state.step, config), learn, learned)
    metrics |= losses
    state = dataclasses.replace(state, params=params, opt_state=opt_state, key=key, step=state.step + 1)
    if config.prune is not None:
        inputs = {"actor": (batch.obs,), "critic": (batch.obs,)}
        imitated = (
            CATEGORICAL
            if discrete
            else Imitated(clipped_divergence(params["actor"]["log_std"], gaussian_bounds(state.bounds)))
        )
        done = pruning_step(state, rollout.obs, acted, lambda: inputs, imitated, prune_key, config)
        state = dataclasses.replace(state, params=done.params, opt_state=done.opt_state, **done.fields)
        metrics |= done.metrics
    return state, metrics
