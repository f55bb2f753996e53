"""A step of a JAX-native environment that starts the next episode in the step that ends the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp

from prune_rl.spaces import Spec

StateT = TypeVar("StateT")
AnyT = TypeVar("AnyT")

once: Callable[[AnyT], AnyT] = jax.lax.optimization_barrier  # which has no types in jax


class JaxEnv(Protocol[StateT]):
    """What a JAX-native environment offers: pure functions for one environment, to be vmapped."""

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated."""

    def reset(self, key: jax.Array) -> tuple[StateT, jax.Array]:
        """Return (env_state, obs float32[D])."""

    def step(
        self, env_state: StateT, action: jax.Array
    ) -> tuple[StateT, jax.Array, jax.Array, jax.Array, jax.Array]:
        """Return (env_state, obs float32[D], reward float32, terminated bool, truncated bool); no reset."""


def autoreset_step(
    env: JaxEnv[StateT],
    env_state: StateT,
    action: jax.Array,
    reset_state: StateT,
    reset_obs: jax.Array,
) -> tuple[StateT, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Step one environment and, where the episode ended, go on from the given start of the next one.

    The start is drawn by the caller, for all steps of a rollout at once and outside its ``lax.scan``: drawing
    it here would run the random number generator at every step, since under ``vmap`` a ``lax.cond`` evaluates
    both branches.

    Args:
        env: the environment.
        env_state: state of one environment.
        action: the action of one environment.
        reset_state: a fresh state, used if the episode ends in this step.
        reset_obs: the observation that belongs to it, float32[D].

    Returns:
        env_state: the state to step from next.
        obs: float32[D], the observation to act on next; after the end of an episode, the first one of the
            next episode.
        reward: float32 scalar.
        terminated: bool scalar.
        truncated: bool scalar.
        next_obs: float32[D], what the action led to; at the end of an episode its true last observation, from
            which a truncated episode is bootstrapped.
    """
    # Without the barrier XLA may compute the step once for each of its uses and round each differently: then obs
    # would not be next_obs within an episode, only nearly.
    stepped, next_obs, reward, terminated, truncated = once(env.step(env_state, action))
    done = terminated | truncated
    env_state, obs = jax.tree.map(
        lambda fresh, old: jnp.where(done, fresh, old), (reset_state, reset_obs), (stepped, next_obs)
    )
    return env_state, obs, reward, terminated, truncated, next_obs
