"""Rollouts: from environments that live on the device, and from environments on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.envs.autoreset import JaxEnv, autoreset_step
from prune_rl.envs.vector import VectorEnv
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import State, environment_actions, learner_of
from prune_rl.learners.rollout import Rollout
from prune_rl.training.engines.env_devices import EnvDevices

# Steps in one turn of the compiled loop: a tenth less time than 1 on a CPU, and little more to compile.
UNROLL = 4


def reset_envs(env: JaxEnv[Any], key: jax.Array, num_envs: int) -> tuple[Any, jax.Array]:
    """States and observations [N, …] of ``num_envs`` fresh environments."""
    return jax.vmap(env.reset)(jax.random.split(key, num_envs))


def rollout(
    env: JaxEnv[Any],
    state: State,
    env_state: Any,
    obs: jax.Array,
    key: jax.Array,
    config: LearnerConfig,
    devices: EnvDevices | None = None,
) -> tuple[Any, jax.Array, Rollout]:
    """``num_steps`` steps of ``num_envs`` device environments under the current policy. Pure.

    With ``devices``, ``env_state`` and ``obs`` are those of the environments of one of them, and so is the result.

    All randomness is drawn before the loop: key derivation inside it would cost more than the environment.
    Returns the environments' states, the observations [N, D] to act on next, and the rollout.
    """
    learner = learner_of(config)
    noise_key, reset_key = jax.random.split(key)
    shape = (config.num_steps, config.num_envs)
    noise = learner.action_noise(noise_key, shape, env.spec)
    reset_keys = jax.random.split(reset_key, shape)
    if devices is not None:
        noise, reset_keys = devices.own((noise, reset_keys))
        acting = getattr(learner, "acting", None)
        state = devices.of_the_first(state if acting is None else acting(state))
    resets = jax.vmap(jax.vmap(env.reset))(reset_keys)
    step_env = jax.vmap(autoreset_step, in_axes=(None, 0, 0, 0, 0))

    def step(carry: tuple[Any, jax.Array], drawn: Any) -> tuple[tuple[Any, jax.Array], Any]:
        env_state, obs = carry
        step_noise, (reset_state, reset_obs) = drawn
        action = learner.act(state, obs, step_noise, config)
        taken = environment_actions(config, action, env.spec)
        env_state, new_obs, reward, terminated, truncated, next_obs = step_env(
            env, env_state, taken, reset_state, reset_obs
        )
        cut = jnp.zeros((), bool)
        return (env_state, new_obs), Rollout(obs, action, reward, terminated, truncated, next_obs, cut)

    carry = (env_state, obs)
    (env_state, obs), transitions = jax.lax.scan(step, carry, (noise, resets), unroll=UNROLL)
    return env_state, obs, dataclasses.replace(transitions, cut=jnp.any(transitions.cut))


def host_rollout(
    envs: Sequence[VectorEnv],
    act: Callable[[np.ndarray, int], jax.Array],
    obs: np.ndarray,
    config: LearnerConfig,
    cut: bool,
    frozen: np.ndarray | None = None,
) -> tuple[np.ndarray, Rollout]:
    """The same for host environments, one batch per seed: observations [S, N, D] to act on next, rollout [S, T, N, …].

    ``act(obs, t)`` returns the actions [S, N, …] of step t: one transfer each way per step. The environments of seeds
    that are ``frozen``, bool[S], are not stepped, nor are those of a seed from an action on that is not finite; what is
    not stepped is 0.
    """
    seeds, num_envs, size = obs.shape
    lead = (seeds, config.num_steps, num_envs)
    all_obs, all_next = (np.zeros((*lead, size), np.float32) for _ in range(2))
    rewards = np.zeros(lead, np.float32)
    terminated, truncated = (np.zeros(lead, bool) for _ in range(2))
    stopped = np.zeros(seeds, bool) if frozen is None else frozen.copy()
    actions: np.ndarray | None = None
    for t in range(config.num_steps):
        action = np.asarray(act(obs, t))
        if actions is None:
            actions = np.zeros((*lead, *action.shape[2:]), action.dtype)
        going = np.flatnonzero(~stopped)
        all_obs[going, t], actions[going, t] = obs[going], action[going]
        if action.ndim > 2:
            stopped |= ~np.isfinite(action).reshape(seeds, -1).all(-1)
        obs, taken = np.zeros_like(obs), environment_actions(config, action, envs[0].spec)
        for s in np.flatnonzero(~stopped).tolist():
            obs[s], rewards[s, t], terminated[s, t], truncated[s, t], all_next[s, t] = envs[s].step(taken[s])
    cuts = np.full(seeds, cut)
    assert actions is not None
    return obs, Rollout(all_obs, actions, rewards, terminated, truncated, all_next, cuts)  # type: ignore[arg-type]
