"""Pendulum-v1 in JAX: the physics of Gymnasium's environment, in float32."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.spaces import Box, Spec

GRAVITY = 10.0
MASS = 1.0
LENGTH = 1.0
DT = 0.05  # seconds between two states
MAX_TORQUE = 2.0
MAX_SPEED = 8.0


class PendulumState(NamedTuple):
    """State of one pendulum.

    Attributes:
        physics: float32[2], (theta, theta_dot) in radians and radians per second; theta is 0 when upright, and not
            wrapped.
        steps: int32 scalar, steps since the reset.
    """

    physics: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Pendulum:
    """Swing a pendulum up with a torque that is too weak to lift it, with the constants of Gymnasium's Pendulum-v1.

    Gymnasium computes in float64 and rounds the observation to float32. Here everything is float32, so one step from
    the same state agrees to about 1e-5. Functions are for one environment; ``jax.vmap`` them.
    """

    time_limit: int = 200

    @property
    def spec(self) -> Spec:
        """Three observed numbers, one torque."""
        return Spec(observation_size=3, action=Box((-MAX_TORQUE,), (MAX_TORQUE,), (1,)))

    def reset(self, key: jax.Array) -> tuple[PendulumState, jax.Array]:
        """Start an episode: theta uniform in [-π, π), theta_dot in [-1, 1).

        Returns:
            The state, and the observation (cos theta, sin theta, theta_dot), float32[3].
        """
        high = jnp.array([math.pi, 1.0], jnp.float32)
        physics = high * jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
        return PendulumState(physics, jnp.int32(0)), _observe(physics)

    def step(
        self, env_state: PendulumState, action: jax.Array
    ) -> tuple[PendulumState, jax.Array, jax.Array, jax.Array, jax.Array]:
        """Advance by one semi-implicit Euler step of 0.05 s. Pure and deterministic; it does not reset.

        Args:
            env_state: state of one environment.
            action: float32[1], the torque in N m; clipped to [-2, 2].

        Returns:
            The new state; the observation, float32[3]; the reward, float32, minus the cost
            ``θ² + 0.1 θ̇² + 0.001 u²`` of the old state, with θ in [-π, π); terminated, bool, never true; truncated,
            bool, whether the time limit is reached.
        """
        theta, theta_dot = env_state.physics
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        wrapped = jnp.mod(theta + math.pi, 2 * math.pi) - math.pi
        cost = jnp.square(wrapped) + 0.1 * jnp.square(theta_dot) + 0.001 * jnp.square(torque)
        acceleration = 1.5 * GRAVITY / LENGTH * jnp.sin(theta) + 3.0 / (MASS * LENGTH**2) * torque
        theta_dot = jnp.clip(theta_dot + acceleration * DT, -MAX_SPEED, MAX_SPEED)
        physics = jnp.stack([theta + theta_dot * DT, theta_dot])
        steps = env_state.steps + 1
        return (
            PendulumState(physics, steps),
            _observe(physics),
            -cost,
            jnp.bool(False),
            steps >= self.time_limit,
        )


def _observe(physics: jax.Array) -> jax.Array:
    theta, theta_dot = physics
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), theta_dot])
