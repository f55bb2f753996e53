from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from prune_rl.envs.autoreset import autoreset_step
from prune_rl.envs.cartpole import THETA_LIMIT, X_LIMIT, CartPole, CartPoleState
from prune_rl.spaces import Discrete, Spec

ENV = CartPole()


def gymnasium_steps(physics: Any, actions: Any) -> Any:
    """Gymnasium's answer to each (state, action) on its own: the reference for single steps."""
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    cartpole = env.unwrapped
    assert isinstance(cartpole, CartPoleEnv)
    rows = []
    for state, action in zip(physics, actions, strict=True):
        env.reset()
        cartpole.state = state.astype(np.float64)
        obs, reward, terminated, _, _ = env.step(int(action))
        rows.append((obs, reward, terminated))
    env.close()
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def test_every_step_equals_gymnasium_from_the_same_state() -> None:
    rng = np.random.default_rng(0)
    count = 6000
    physics = rng.uniform([-2.5, -3, -0.25, -3.5], [2.5, 3, 0.25, 3.5], (count, 4)).astype(np.float32)
    actions = rng.integers(0, 2, count)
    states = CartPoleState(jnp.asarray(physics), jnp.zeros(count, jnp.int32))

    _, obs, reward, terminated, truncated = jax.jit(jax.vmap(ENV.step))(states, jnp.asarray(actions))

    expected_obs, expected_reward, expected_terminated = gymnasium_steps(physics, actions)
    np.testing.assert_allclose(obs, expected_obs, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(reward, expected_reward)
    margin = np.minimum(
        np.abs(np.abs(expected_obs[:, 0]) - X_LIMIT), np.abs(np.abs(expected_obs[:, 2]) - THETA_LIMIT)
    )
    clear = margin > 1e-5
    assert clear.sum() > 0.99 * count
    assert 0.1 < expected_terminated[clear].mean() < 0.9
    np.testing.assert_array_equal(np.asarray(terminated)[clear], expected_terminated[clear])
    assert not np.asarray(truncated).any()


def test_whole_episodes_follow_gymnasium() -> None:
    """Episodes, not only steps: the counter, the flags and the state that is carried on."""
    rng = np.random.default_rng(1)
    reference = gymnasium.make("CartPole-v1", disable_env_checker=True)
    step = jax.jit(ENV.step)
    for seed in range(20):
        obs, _ = reference.reset(seed=seed)
        state = CartPoleState(jnp.asarray(obs), jnp.int32(0))
        done = False
        while not done:
            action = int(rng.integers(2))
            expected, _, terminated, truncated, _ = reference.step(action)
            state, got, _, jax_terminated, jax_truncated = step(state, jnp.int32(action))
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
            assert (bool(jax_terminated), bool(jax_truncated)) == (terminated, truncated)
            done = terminated or truncated
    reference.close()


def test_reset_is_uniform_and_independent_per_key() -> None:
    states, obs = jax.vmap(ENV.reset)(jax.random.split(jax.random.key(0), 20_000))
    sample = np.asarray(obs)
    np.testing.assert_array_equal(sample, states.physics)
    np.testing.assert_array_equal(states.steps, 0)
    assert sample.dtype == np.float32
    assert np.asarray(states.steps).dtype == np.int32
    assert len(np.unique(sample)) > 0.98 * sample.size
    assert sample.min() >= np.float32(-0.05)
    assert sample.max() <= np.float32(0.05)
    assert sample.max() - sample.min() > 0.0999
    for column in sample.T:
        assert scipy.stats.kstest(column, scipy.stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(sample.T) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize(("steps", "expected"), [(498, False), (499, True)])
def test_time_limit_truncates_at_step_500(steps: int, expected: bool) -> None:
    upright = CartPoleState(jnp.zeros(4), jnp.int32(steps))
    _, _, reward, terminated, truncated = ENV.step(upright, jnp.int32(1))
    assert (bool(terminated), bool(truncated), float(reward)) == (False, expected, 1.0)


def test_falling_at_the_time_limit_is_both_terminated_and_truncated() -> None:
    """As Gymnasium's TimeLimit reports it, which does not look at terminated."""
    physics = np.array([0, 0, 0.209, 2.0], np.float32)
    state = CartPoleState(jnp.asarray(physics), jnp.int32(499))
    _, _, reward, terminated, truncated = ENV.step(state, jnp.int32(0))
    assert (bool(terminated), bool(truncated), float(reward)) == (True, True, 1.0)

    reference = gymnasium.make("CartPole-v1", max_episode_steps=1, disable_env_checker=True)
    reference.reset(seed=0)
    cartpole = reference.unwrapped
    assert isinstance(cartpole, CartPoleEnv)
    cartpole.state = physics.astype(np.float64)
    assert reference.step(0)[2:4] == (True, True)
    reference.close()


def test_types_are_the_same_before_and_after_a_step() -> None:
    """Otherwise a scan over steps refuses its carry, or compiles twice."""
    state, obs = ENV.reset(jax.random.key(0))
    stepped, new_obs, reward, terminated, truncated = ENV.step(state, jnp.int32(1))

    def aval(x: Any) -> Any:
        return (x.shape, x.dtype, x.weak_type)

    assert jax.tree.map(aval, state) == jax.tree.map(aval, stepped)
    assert aval(obs) == aval(new_obs) == ((4,), jnp.float32, False)
    assert aval(reward) == ((), jnp.float32, False)
    assert aval(terminated) == aval(truncated) == ((), jnp.bool_, False)


def test_the_state_names_its_parts() -> None:
    state = CartPoleState(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.int32(0))
    assert (float(state.x), float(state.x_dot), float(state.theta), float(state.theta_dot)) == (1, 2, 3, 4)
    assert ENV.spec == Spec(observation_size=4, action=Discrete(2))


def test_gymnasium_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "from prune_rl.envs.task import UnsupportedEnvironment, resolve_task\n"
        "task = resolve_task('CartPole-v1')\n"
        "assert task.backend == 'jax'\n"
        "assert task.jax_env() is not None\n"
        "assert task.spec.observation_size == 4\n"
        "try: resolve_task('Acrobot-v1')\n"
        "except UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install gymnasium" in result.stdout


# --- the step that also resets ---


def rollout(env: Any, key: Any, num_steps: Any, num_envs: Any, policy: Any) -> Any:
    """The way a learner uses it: starts drawn beforehand, one scan, vmapped; returns what each step saw."""
    start_key, reset_key = jax.random.split(key)
    resets = jax.vmap(jax.vmap(env.reset))(jax.random.split(reset_key, (num_steps, num_envs)))
    step = jax.vmap(functools.partial(autoreset_step, env))

    def body(carry: Any, reset: Any) -> Any:
        state, obs = carry
        action = policy(obs)
        state, new_obs, reward, terminated, truncated, next_obs = step(state, action, *reset)
        return (state, new_obs), (obs, new_obs, reward, terminated, truncated, next_obs, state.steps)

    start = jax.vmap(env.reset)(jax.random.split(start_key, num_envs))
    _, trace = jax.jit(lambda s: jax.lax.scan(body, s, resets))(start)
    return resets, [np.asarray(x) for x in trace]


def always_right(obs: Any) -> Any:
    return jnp.ones(obs.shape[:-1], jnp.int32)


def balance(obs: Any) -> Any:
    """A linear policy that keeps the pole up for 500 steps."""
    return (obs @ jnp.array([0.1, 0.3, 3.0, 1.0]) > 0).astype(jnp.int32)


@pytest.mark.parametrize(
    ("env", "policy", "terminates", "truncates"),
    [
        (CartPole(), always_right, True, False),
        (CartPole(time_limit=7), always_right, False, True),
        (CartPole(time_limit=10), always_right, True, True),
        (CartPole(), balance, False, True),
    ],
)
def test_rollout_with_resets(env: Any, policy: Any, terminates: bool, truncates: bool) -> None:
    num_steps, num_envs = 1100, 4
    resets, trace = rollout(env, jax.random.key(3), num_steps, num_envs, policy)
    (reset_states, reset_obs), (obs, new_obs, reward, terminated, truncated, next_obs, steps) = resets, trace
    done = terminated | truncated
    assert (terminated.any(), truncated.any()) == (terminates, truncates)
    np.testing.assert_array_equal(reward, 1.0)

    # What was led to is the plain step's observation, at the end of an episode too: the true last one.
    action = jax.vmap(policy)(obs)
    plain_states = CartPoleState(jnp.asarray(obs), jnp.zeros(done.shape, jnp.int32))
    _, plain, _, plain_terminated, _ = jax.vmap(jax.vmap(env.step))(plain_states, action)
    np.testing.assert_allclose(next_obs, plain, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(terminated, plain_terminated)
    outside = (np.abs(next_obs[..., 0]) > X_LIMIT) | (np.abs(next_obs[..., 2]) > THETA_LIMIT)
    np.testing.assert_array_equal(outside, terminated)

    # What is acted on next: the same one within an episode, the given start after its end, counter at 0.
    np.testing.assert_array_equal(new_obs, np.where(done[..., None], reset_obs, next_obs))
    np.testing.assert_array_equal(new_obs[:-1], obs[1:])
    np.testing.assert_array_equal(reset_states.steps, 0)

    # Episode lengths: the counter goes up by one in every step, and only the limit truncates.
    count = np.zeros(num_envs, np.int64)
    for t in range(num_steps):
        count += 1
        np.testing.assert_array_equal(truncated[t], count >= env.time_limit)
        count[done[t]] = 0
        np.testing.assert_array_equal(steps[t], count)


def test_autoreset_takes_the_environment_as_an_unmapped_argument_of_vmap() -> None:
    states, obs = jax.vmap(ENV.reset)(jax.random.split(jax.random.key(0), 3))
    step = jax.vmap(autoreset_step, in_axes=(None, 0, 0, 0, 0))
    out = step(ENV, states, jnp.ones(3, jnp.int32), states, obs)
    assert out[1].shape == (3, 4)
