"""Soft actor-critic with neuron masks in the train state, as pure functions: the interface is that of `learners.ppo`.

An update stores a rollout in the replay buffer and makes ``config.gradient_steps`` steps on what the buffer holds.

References:
    Haarnoja et al., `Soft Actor-Critic Algorithms and Applications <https://arxiv.org/abs/1812.05905>`_, 2018

    Christodoulou, `Soft Actor-Critic for Discrete Action Settings <https://arxiv.org/abs/1910.07207>`_, 2019
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.learners import replay_buffer
from prune_rl.learners.actions import to_unit
from prune_rl.learners.gradient_steps import many_gradient_steps
from prune_rl.learners.imitation import BEST_ACTION, CATEGORICAL
from prune_rl.learners.mask_rules import rests
from prune_rl.learners.pruning_step import pruning_step
from prune_rl.learners.replay_buffer import Transitions
from prune_rl.learners.rollout import Metrics, Rollout, track_returns
from prune_rl.learners.running_statistics import update_statistics
from prune_rl.learners.sac.actor import update_actor
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.critic import update_critic
from prune_rl.learners.sac.state import Networks, OptState, State, architecture
from prune_rl.learners.sac.temperature import update_temperature
from prune_rl.learners.sac.values import Architecture, critic_input

# Transitions on which the score and the refit of a mask update look at the networks.
PRUNING_BATCH = 2048


def gradient_noise(key: jax.Array, params: Params, batch_size: int) -> jax.Array:
    """Standard normal noise for the actions at ``obs`` and ``next_obs``, float32[2, B, size]; unused if Discrete."""
    size = params["actor"]["head"]["bias"].shape[0] // 2
    return jax.random.normal(key, (2, batch_size, size), jnp.float32)


def gradient_step(
    networks: Networks, batch: Transitions, noise: jax.Array, masks: Masks, config: Config, arch: Architecture
) -> tuple[Networks, Metrics]:
    """Critics, actor, temperature and target critics, in this order, on one batch of normalised observations.

    ``noise`` from ``gradient_noise``.
    """
    noise, next_noise = noise
    critic, critic_opt, metrics = update_critic(networks, batch, next_noise, masks, config, arch)
    actor, actor_opt, actor_metrics = update_actor(networks, critic, batch.obs, noise, masks, config, arch)
    log_alpha, alpha_opt = update_temperature(networks, actor_metrics["entropy"], config, arch.discrete)
    target = optax.incremental_update(critic, networks.target_critic, config.tau)
    metrics |= {**actor_metrics, "alpha": jnp.exp(networks.log_alpha)}
    opt_state = OptState(actor_opt, critic_opt, alpha_opt)
    return Networks({"actor": actor, "critic": critic}, target, log_alpha, opt_state), metrics


def update(state: State, rollout: Rollout, config: Config) -> tuple[State, Metrics]:
    """Store a rollout, learn from the replay buffer (not during warm-up, nor at rest), then update the masks. Pure.

    Returns the new state and metrics, scalars: those of ``track_returns``, "gradient_steps", those of
    ``gradient_step`` (their mean), both 0 during warm-up and where the learner ``rests``; in a pruned run also
    "prune_progress", the share of the mask schedule that is done, "prune", the report of ``mask_update``, and
    "distillation", see ``pruning_step``.
    """
    chex.assert_shape(rollout.reward, (config.num_steps, config.num_envs))
    rollout = jax.tree.map(jnp.asarray, rollout)
    returns, _, metrics = track_returns(state.returns, rollout, config.gamma)
    acted = state.params["actor"], state.obs_stats
    obs_stats = update_statistics(state.obs_stats, rollout.obs, config)
    replay = replay_buffer.add(state.replay, rollout, to_unit(rollout.action, state.bounds))
    state = dataclasses.replace(state, replay=replay, obs_stats=obs_stats, returns=returns)
    learn_key, batch_key, prune_key, key = jax.random.split(state.key, 4)
    arch = architecture(state, config)

    def draw(key: jax.Array) -> tuple[Transitions, jax.Array]:
        batch_key, noise_key = jax.random.split(key)
        batch = replay_buffer.sample_normalized(replay, batch_key, config.batch_size, obs_stats, config)
        return batch, gradient_noise(noise_key, state.params, config.batch_size)

    def step(networks: Networks, drawn: tuple[Transitions, jax.Array]) -> tuple[Networks, Metrics]:
        return gradient_step(networks, *drawn, state.masks, config, arch)

    resting, count = (state.step < config.warmup_updates) | rests(state.step, config), config.gradient_steps
    networks, losses = many_gradient_steps(step, state.networks, draw, learn_key, count, resting)
    state = dataclasses.replace(state, networks=networks, key=key, step=state.step + 1)
    if config.prune is not None:

        def draw_inputs() -> dict[str, tuple[jax.Array]]:
            batch = replay_buffer.sample_normalized(replay, batch_key, PRUNING_BATCH, obs_stats, config)
            return {"actor": (batch.obs,), "critic": (critic_input(batch.obs, batch.action, arch),)}

        imitated = CATEGORICAL if arch.discrete else BEST_ACTION
        # The target critics lose the neurons of the critics.
        copies = {"critic": networks.params | {"critic": networks.target_critic}}
        done = pruning_step(state, rollout.obs, acted, draw_inputs, imitated, prune_key, config, copies)
        networks = Networks(done.params, done.copies["critic"]["critic"], networks.log_alpha, done.opt_state)
        state = dataclasses.replace(state, networks=networks, **done.fields)
        metrics |= done.metrics
    return state, metrics | losses
