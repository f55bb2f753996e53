"""Pendulum in JAX against Gymnasium's."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from prune_rl.envs.pendulum import Pendulum, PendulumState
from prune_rl.envs.task import resolve_task
from prune_rl.spaces import Box, Spec

ENV = Pendulum()


def test_every_step_equals_gymnasium_from_the_same_state() -> None:
    rng, count = np.random.default_rng(0), 3000
    physics = rng.uniform([-9.0, -8.0], [9.0, 8.0], (count, 2)).astype(np.float32)
    actions = rng.uniform(-3.0, 3.0, (count, 1)).astype(np.float32)  # beyond the bounds too
    states = PendulumState(jnp.asarray(physics), jnp.zeros(count, jnp.int32))
    _, obs, reward, terminated, truncated = jax.jit(jax.vmap(ENV.step))(states, jnp.asarray(actions))

    reference = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    pendulum = reference.unwrapped
    assert isinstance(pendulum, PendulumEnv)
    for i in range(count):
        reference.reset()
        pendulum.state = physics[i].astype(np.float64)
        expected, expected_reward, ended, _, _ = reference.step(actions[i])
        np.testing.assert_allclose(obs[i], expected, rtol=0, atol=1e-5)
        # At θ = ±π the cost jumps from one side to the other, and so may the rounding.
        if abs(math.remainder(float(physics[i, 0]), 2 * math.pi)) < math.pi - 1e-5:
            np.testing.assert_allclose(reward[i], float(expected_reward), rtol=0, atol=1e-4)
        assert not ended
    assert not np.any(terminated)
    assert not np.any(truncated)
    reference.close()


def test_whole_episodes_follow_gymnasium() -> None:
    """Hanging down the motion is not chaotic, so that episodes stay together to their time limit."""
    rng, step = np.random.default_rng(1), jax.jit(ENV.step)
    reference = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    pendulum = reference.unwrapped
    assert isinstance(pendulum, PendulumEnv)
    reference.reset(seed=0)
    pendulum.state = np.array([math.pi - 0.5, 0.1])
    state = PendulumState(jnp.array([math.pi - 0.5, 0.1], jnp.float32), jnp.int32(0))
    for t in range(200):
        action = rng.uniform(-1.0, 1.0, 1).astype(np.float32)
        expected, reward, *flags, _ = reference.step(action)
        state, obs, got, terminated, truncated = step(state, jnp.asarray(action))
        np.testing.assert_allclose(obs, expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(got, float(reward), rtol=0, atol=1e-2)
        assert [bool(terminated), bool(truncated)] == flags == [False, t == 199]
    reference.close()


def test_reset_has_gymnasiums_distribution() -> None:
    states, obs = jax.vmap(ENV.reset)(jax.random.split(jax.random.key(0), 20_000))
    for column, bound in ((states.physics[:, 0], math.pi), (states.physics[:, 1], 1.0)):
        uniform = scipy.stats.uniform(-bound, 2 * bound)
        assert scipy.stats.kstest(np.asarray(column), uniform.cdf).pvalue > 1e-3
    theta, theta_dot = np.asarray(states.physics).T
    np.testing.assert_allclose(obs, np.stack([np.cos(theta), np.sin(theta), theta_dot], 1), atol=1e-6)
    assert abs(np.corrcoef(theta, theta_dot)[0, 1]) < 0.03
    np.testing.assert_array_equal(states.steps, 0)


@pytest.mark.parametrize(("steps", "expected"), [(198, False), (199, True)])
def test_the_time_limit_truncates(steps: int, expected: bool) -> None:
    _, _, _, terminated, truncated = ENV.step(PendulumState(jnp.zeros(2), jnp.int32(steps)), jnp.zeros(1))
    assert (bool(terminated), bool(truncated)) == (False, expected)


def test_types_are_the_same_before_and_after_a_step() -> None:
    """Otherwise a scan over steps refuses its carry, or compiles twice."""
    state, obs = ENV.reset(jax.random.key(0))
    stepped, new_obs, reward, terminated, truncated = ENV.step(state, jnp.zeros(1))

    def aval(x: Any) -> Any:
        return (x.shape, x.dtype, x.weak_type)

    assert jax.tree.map(aval, state) == jax.tree.map(aval, stepped)
    assert aval(obs) == aval(new_obs) == ((3,), jnp.float32, False)
    assert aval(reward) == ((), jnp.float32, False)
    assert aval(terminated) == aval(truncated) == ((), jnp.bool_, False)


def test_it_is_the_default_of_its_id_and_has_the_spaces_of_gymnasium() -> None:
    task = resolve_task("Pendulum-v1")
    assert task.backend == "jax"
    assert task.spec == ENV.spec == Spec(3, Box((-2.0,), (2.0,), (1,)))
    assert resolve_task("Pendulum-v1", backend="gymnasium").spec == ENV.spec
