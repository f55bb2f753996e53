"""Rollouts against what the environments themselves do, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike

from prune_rl.envs.cartpole import RESET_RANGE, CartPole, CartPoleState
from prune_rl.learners import ppo
from prune_rl.learners.running_statistics import normalize
from prune_rl.spaces import Discrete, Spec
from prune_rl.training.engines.rollouts import host_rollout, reset_envs, rollout
from tests.learners import probe_environments as probes

# Short enough that some episodes reach the limit and some fall before it.
ENV = CartPole(time_limit=12)
CONFIG = ppo.Config(hidden=(8,), num_envs=8, num_steps=40, prune=None)
T, N = CONFIG.num_steps, CONFIG.num_envs


@dataclasses.dataclass(frozen=True)
class Collected:
    state: ppo.State
    start: tuple[Any, jax.Array]
    parts: list[tuple[Any, Any, ppo.Rollout]]


@pytest.fixture(scope="module")
def collected() -> Collected:
    """Two rollouts in a row, by a policy that pushes mostly to one side."""
    state = ppo.init(jax.random.key(0), CONFIG, ENV.spec)
    actor = {**state.params["actor"], "head": jax.tree.map(lambda x: x + 0.5, state.params["actor"]["head"])}
    stats = state.obs_stats.update(jax.random.normal(jax.random.key(1), (50, 4)))
    state = dataclasses.replace(state, params={**state.params, "actor": actor}, obs_stats=stats)
    run = jax.jit(rollout, static_argnums=(0, 5))
    start = reset_envs(ENV, jax.random.key(2), N)
    first = run(ENV, state, *start, jax.random.key(3), CONFIG)
    second = run(ENV, state, first[0], first[1], jax.random.key(4), CONFIG)
    return Collected(state, start, [jax.device_get(first), jax.device_get(second)])


def joined(collected: Collected) -> ppo.Rollout:
    """Both rollouts as one of 2 T steps."""
    first, second = (part[2] for part in collected.parts)
    whole: ppo.Rollout = jax.tree.map(lambda x, y: np.concatenate([x, y]) if x.ndim else x | y, first, second)
    return whole


def test_shapes_and_types(collected: Collected) -> None:
    expected = {
        "obs": ((T, N, 4), np.float32),
        "action": ((T, N), np.int32),
        "reward": ((T, N), np.float32),
        "terminated": ((T, N), np.bool_),
        "truncated": ((T, N), np.bool_),
        "next_obs": ((T, N, 4), np.float32),
        "cut": ((), np.bool_),
    }
    for part in collected.parts:
        found = {f.name: getattr(part[2], f.name) for f in dataclasses.fields(part[2])}
        assert {name: (x.shape, x.dtype) for name, x in found.items()} == expected
        assert not part[2].cut


def test_every_transition_is_one_of_the_environment(collected: Collected) -> None:
    whole = joined(collected)
    steps = np.zeros(N, np.int32)
    step = jax.jit(jax.vmap(ENV.step))
    kinds = set()
    for t in range(2 * T):
        _, next_obs, reward, terminated, truncated = step(
            CartPoleState(whole.obs[t], jnp.asarray(steps)), whole.action[t]
        )
        np.testing.assert_allclose(whole.next_obs[t], next_obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(whole.reward[t], reward)
        np.testing.assert_array_equal(whole.terminated[t], terminated)
        np.testing.assert_array_equal(whole.truncated[t], truncated)
        ends = whole.terminated[t] | whole.truncated[t]
        kinds |= set(zip(whole.terminated[t].tolist(), whole.truncated[t].tolist(), strict=True))
        steps = np.where(ends, 0, steps + 1).astype(np.int32)
    assert {(False, False), (True, False), (False, True)} <= kinds


def test_what_is_acted_on_next_is_the_successor_or_a_fresh_start(collected: Collected) -> None:
    whole, last = joined(collected), collected.parts[1]
    following = np.concatenate([whole.obs[1:], last[1][None]])
    ends = whole.terminated | whole.truncated
    np.testing.assert_array_equal(whole.obs[0], collected.start[1])
    np.testing.assert_array_equal(following[~ends], whole.next_obs[~ends])
    assert np.all(np.abs(following[ends]) <= RESET_RANGE)
    assert not np.any(np.all(whole.next_obs[ends] == following[ends], axis=-1)), (
        "next_obs is that of the old episode"
    )
    np.testing.assert_array_equal(last[0].physics, last[1])
    starts = np.concatenate([np.asarray(collected.start[1]), following[ends]])
    assert len(np.unique(starts, axis=0)) == len(starts) > 30, "every episode starts elsewhere"


def test_actions_follow_the_policy_and_vary(collected: Collected) -> None:
    whole = joined(collected)
    obs = normalize(collected.state.obs_stats, jnp.asarray(whole.obs), CONFIG)
    policy = ppo.actor_distribution(collected.state.params, obs, CONFIG, discrete=True)
    log_prob = policy.log_prob(jnp.ones((2 * T, N), jnp.int32))
    probability = np.exp(np.asarray(log_prob, np.float64))
    variance = np.sum(probability * (1 - probability))
    assert abs(np.sum(whole.action - probability)) < 4 * np.sqrt(variance)
    # At equal time the environments have their own noise, and so have two rollouts in one environment.
    assert len(np.unique(whole.action.T, axis=0)) == N
    assert not np.array_equal(whole.action[:T], whole.action[T:])


def test_the_same_key_gives_the_same_rollout() -> None:
    env = probes.ContinuousTarget()
    config = dataclasses.replace(CONFIG, num_steps=3)
    state = ppo.init(jax.random.key(0), config, env.spec)
    start = reset_envs(env, jax.random.key(1), N)
    run = jax.jit(rollout, static_argnums=(0, 5))
    first, again, other = (run(env, state, *start, jax.random.key(k), config)[2] for k in (2, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert first.action.shape == (3, N, 1)
    assert not np.any(np.asarray(first.action) == np.asarray(other.action))


class Countdown:
    """Two host environments that observe (offset, step of the episode) and end after 3 steps, by turns in each way."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    @property
    def spec(self) -> Spec:
        return Spec(observation_size=2, action=Discrete(5))

    def reset(self, seed: int) -> np.ndarray:
        self.steps, self.episodes = np.array([0, 1]), np.zeros(2, int)
        return self.observe()

    def observe(self) -> np.ndarray:
        return np.stack([np.full(2, self.offset), self.steps], axis=1).astype(np.float32)

    def step(self, action: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self.steps = self.steps + 1
        ends, next_obs = self.steps == 3, self.observe()
        even = self.episodes % 2 == 0
        self.episodes, self.steps = self.episodes + ends, np.where(ends, 0, self.steps)
        return self.observe(), np.asarray(action, np.float32), ends & even, ends & ~even, next_obs

    def close(self) -> None: ...


@pytest.mark.parametrize("cut", [False, True])
def test_host_rollouts_are_in_order_of_seeds_and_steps(cut: bool) -> None:
    config = dataclasses.replace(CONFIG, num_envs=2, num_steps=7)
    envs = [Countdown(10), Countdown(20), Countdown(30)]
    seen: list[tuple[int, np.ndarray]] = []

    def act(obs: np.ndarray, t: int) -> jax.Array:
        seen.append((t, obs.copy()))
        return jnp.asarray((obs.sum(-1) + t) % 5, jnp.int32)

    start = np.stack([env.reset(0) for env in envs])
    obs, whole = host_rollout(envs, act, start, config, cut)
    steps = np.array([[0, 1], [1, 2], [2, 0], [0, 1], [1, 2], [2, 0], [0, 1], [1, 2]], np.float32)
    expected = np.stack([np.stack([np.full((8, 2), offset), steps], -1) for offset in (10, 20, 30)])
    np.testing.assert_array_equal(whole.obs, expected[:, :7])
    np.testing.assert_array_equal(obs, expected[:, 7])
    assert [t for t, _ in seen] == list(range(7))
    np.testing.assert_array_equal(np.stack([each for _, each in seen], 1), expected[:, :7])
    np.testing.assert_array_equal(whole.action, (expected[:, :7].sum(-1) + np.arange(7)[:, None]) % 5)
    np.testing.assert_array_equal(whole.reward, whole.action)
    np.testing.assert_array_equal(whole.next_obs[..., 1], np.broadcast_to(steps[:7] + 1, (3, 7, 2)))
    terminated, truncated = np.zeros((2, 7, 2), bool)
    terminated[2, 0] = terminated[1, 1] = True
    truncated[5, 0] = truncated[4, 1] = True
    np.testing.assert_array_equal(whole.terminated, np.broadcast_to(terminated, (3, 7, 2)))
    np.testing.assert_array_equal(whole.truncated, np.broadcast_to(truncated, (3, 7, 2)))
    np.testing.assert_array_equal(whole.cut, np.full(3, cut))
    kinds = (whole.obs, whole.action, whole.reward, whole.terminated, whole.cut)
    assert [x.dtype for x in kinds] == [np.float32, np.int32, np.float32, np.bool_, np.bool_]
