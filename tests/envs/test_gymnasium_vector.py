from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_adapter import Adapter
from prune_rl.envs.gymnasium_vector import HostEnv, stream_seed
from prune_rl.envs.task import resolve_task
from prune_rl.spaces import Box, Discrete, Spec

LIMIT = 4
STAY, END = 0, 1


class Counter(gymnasium.Env[np.ndarray, np.int64]):
    """Counts: observation [[episode, step, random number]], reward 10 · episode + step; action END
    terminates.

    It is as awkward as an environment may be: it writes every observation into the same memory, its actions
    start at 5, and its info changes shape.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1, 3), np.float32)
    action_space = spaces.Discrete(2, start=5)

    def __init__(self) -> None:
        self.episode, self.count = -1, 0
        self.buffer = np.zeros((1, 3), np.float32)

    def _observe(self) -> np.ndarray:
        self.buffer[0] = self.episode, self.count, self.np_random.random()
        return self.buffer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.count = 0
        return self._observe(), {"history": np.zeros(self.count)}

    def step(self, action: np.int64) -> Any:
        assert self.action_space.contains(action), action
        self.count += 1
        info = {"history": np.zeros(self.count), "final_obs": "not what it looks like"}
        return self._observe(), 10.0 * self.episode + self.count, action == 5 + END, False, info


class Echo(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes the action it was given."""

    action_space = spaces.Box(
        np.array([[-1, -2], [-np.inf, 0]], np.float32), np.array([[1, 2], [np.inf, 0.5]], np.float32)
    )
    observation_space = spaces.Box(-np.inf, np.inf, (2, 2), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros((2, 2), np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        assert action.shape == (2, 2)
        assert action.dtype == np.float32
        return action, 0.0, False, False, {}


@pytest.fixture
def ids() -> Iterator[Any]:
    """The two environments above, under ids that exist during one test."""
    names = {"counter": "prune_rl_test/Counter-v0", "echo": "prune_rl_test/Echo-v0"}
    gymnasium.register(names["counter"], cast(Any, Counter), max_episode_steps=LIMIT)
    gymnasium.register(names["echo"], cast(Any, Echo))
    yield names
    for name in names.values():
        del gymnasium.registry[name]


def counter_oracle(actions: Any) -> Any:
    """What the Counter must give in one sub-environment, in plain Python: rows of (obs, r, term, trunc, next)."""
    episode = step = 0
    rows = []
    for action in actions:
        step += 1
        next_obs, reward = (episode, step), 10 * episode + step
        terminated, truncated = action == END, step == LIMIT
        if terminated or truncated:
            episode, step = episode + 1, 0
        rows.append(((episode, step), reward, terminated, truncated, next_obs))
    return rows


def test_ends_and_time_limits_by_hand(ids: Any) -> None:
    env = HostEnv(resolve_task(ids["counter"]), 2)
    np.testing.assert_array_equal(env.reset(0)[:, :2], [[0, 0], [0, 0]])
    env.step(np.array([STAY, STAY]))

    obs, reward, terminated, truncated, next_obs = env.step(np.array([END, STAY]))  # the first one terminates
    np.testing.assert_array_equal(obs[:, :2], [[1, 0], [0, 2]])
    np.testing.assert_array_equal(next_obs[:, :2], [[0, 2], [0, 2]])
    np.testing.assert_array_equal(reward, [2, 2])
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(truncated, [False, False])

    obs, reward, *_ = env.step(np.array([STAY, STAY]))  # the step after the end is a real one
    np.testing.assert_array_equal(obs[:, :2], [[1, 1], [0, 3]])
    np.testing.assert_array_equal(reward, [11, 3])

    obs, reward, terminated, truncated, next_obs = env.step(np.array([STAY, STAY]))  # the second is truncated
    np.testing.assert_array_equal(obs[:, :2], [[1, 2], [1, 0]])
    np.testing.assert_array_equal(next_obs[:, :2], [[1, 2], [0, 4]])
    np.testing.assert_array_equal(terminated, [False, False])
    np.testing.assert_array_equal(truncated, [False, True])
    env.close()


def test_long_rollout_against_an_oracle(ids: Any) -> None:
    rng = np.random.default_rng(0)
    num_envs, num_steps = 5, 300
    actions = (rng.random((num_steps, num_envs)) < 0.25).astype(np.int32)
    env = HostEnv(resolve_task(ids["counter"]), num_envs)
    first = env.reset(7)
    trace = [env.step(jnp.asarray(row)) for row in actions]  # JAX arrays are taken, too
    obs, reward, terminated, truncated, next_obs = (np.stack(column) for column in zip(*trace, strict=True))

    assert (obs.dtype, reward.dtype, next_obs.dtype) == (np.float32,) * 3
    assert (terminated.dtype, truncated.dtype) == (np.bool_,) * 2
    for i in range(num_envs):
        expected = [np.array(column) for column in zip(*counter_oracle(actions[:, i]), strict=True)]
        for got, want in zip(
            (obs[:, i, :2], reward[:, i], terminated[:, i], truncated[:, i], next_obs[:, i, :2]),
            expected,
            strict=True,
        ):
            np.testing.assert_array_equal(got, want)
    done = terminated | truncated
    assert (terminated & truncated).any()
    assert (terminated & ~truncated).any()
    assert (truncated & ~terminated).any()
    np.testing.assert_array_equal(obs[~done], next_obs[~done])
    # Every transition continues from what was acted on: no step is an ignored one.
    acted_on = np.concatenate([first[None], obs[:-1]])
    np.testing.assert_array_equal(next_obs[..., 1], acted_on[..., 1] + 1)
    np.testing.assert_array_equal(next_obs[..., 0], acted_on[..., 0])
    # The last observation keeps its own random number although the environment reused the memory.
    assert (obs[done][:, 2] != next_obs[done][:, 2]).all()
    env.close()


def test_results_are_not_overwritten_by_later_steps(ids: Any) -> None:
    env = HostEnv(resolve_task(ids["counter"]), 2)
    start = env.reset(0)
    results = env.step(np.array([END, STAY]))
    kept = [start.copy(), *(x.copy() for x in results)]
    results[0][:] += 0  # writable
    for _ in range(5):
        env.step(np.array([STAY, END]))
    for before, after in zip(kept, [start, *results], strict=True):
        np.testing.assert_array_equal(before, after)
    env.close()


def test_reset_seeds_every_sub_environment_anew(ids: Any) -> None:
    env = HostEnv(resolve_task(ids["counter"]), 4)

    def play(seed: Any) -> Any:
        return np.stack(
            [env.reset(seed), *(env.step(np.array([STAY, END, STAY, STAY]))[0] for _ in range(9))]
        )

    first, other, again = play(1), play(2), play(1)
    np.testing.assert_array_equal(first, again)
    assert not np.isin(first[..., 2], other[..., 2]).any()
    env.close()


def test_different_seed_and_index_never_share_a_stream(ids: Any) -> None:
    seeds, num_envs = 40, 8
    env = HostEnv(resolve_task(ids["counter"]), num_envs)
    numbers = np.stack([env.reset(seed)[:, 2] for seed in range(seeds)])
    assert len(np.unique(numbers)) == seeds * num_envs
    env.close()
    streams = {stream_seed(seed, i) for seed in range(300) for i in range(64)}
    assert len(streams) == 300 * 64
    assert max(streams) < 2**63
    assert stream_seed(2**40, 0) != stream_seed(0, 0)


def test_box_actions_are_clipped_and_reshaped(ids: Any) -> None:
    env = HostEnv(resolve_task(ids["echo"]), 2)
    assert env.spec == Spec(4, Box((-1.0, -2.0, -np.inf, 0.0), (1.0, 2.0, np.inf, 0.5), (2, 2)), (2, 2))
    env.reset(0)
    obs, *_ = env.step(np.array([[-5, -5, -5, -5], [0.5, 5, 5e3, 0.25]], np.float64))
    np.testing.assert_array_equal(obs, np.array([[-1, -2, -5, 0], [0.5, 2, 5e3, 0.25]], np.float32))
    env.close()


def test_integer_box_actions_are_rounded() -> None:
    space = spaces.Box(0, 10, (2,), np.int32)
    native = Adapter(Spec(1, Box((0.0, 0.0), (10.0, 10.0), (2,))), (1,), space).native_actions([[2.7, 99.0]])
    np.testing.assert_array_equal(native, [[3, 10]])
    assert native.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "action", "message"),
    [
        ("counter", np.array([0, 2]), "must be in 0 … 1, got [0, 2]"),
        ("counter", np.array([-1, 0]), "must be in 0 … 1"),
        ("counter", np.array([0.0, 1.0]), "must be integers, got float64"),
        ("counter", np.array([0, 1, 0]), "2 environments need actions of shape (2,), got (3,)"),
        ("counter", np.array([[0], [1]]), "2 environments need actions of shape (2,), got (2, 1)"),
        ("echo", np.zeros((2, 3)), "need 4 components on the last axis, got shape (2, 3)"),
        ("echo", np.zeros((3, 4)), "2 environments need actions of shape (2, 2, 2), got (3, 2, 2)"),
        ("echo", np.full((2, 4), np.nan), "NaN"),
    ],
)
def test_bad_actions(ids: Any, name: str, action: Any, message: str) -> None:
    env = HostEnv(resolve_task(ids[name]), 2)
    env.reset(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        env.step(action)
    env.close()


def test_bad_arguments(ids: Any) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        HostEnv(resolve_task(ids["counter"]), 0)
    env = HostEnv(resolve_task(ids["counter"]), 1)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        env.reset(-1)
    env.close()


class Shell(gymnasium.Env[Any, Any]):
    """Nothing but its spaces."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


VECTOR = spaces.Box(-1, 1, (3,))
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
GRAY_IMAGE = spaces.Box(0, 255, (8, 8), np.uint8)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (IMAGE, spaces.Discrete(2), "has image observations (uint8, shape (8, 8, 3))"),
        (GRAY_IMAGE, spaces.Discrete(2), "has image observations (uint8, shape (8, 8))"),
        (spaces.Dict({"a": IMAGE}), spaces.Discrete(2), "has image observations (uint8, shape (8, 8, 3))"),
        (
            spaces.Tuple((spaces.Graph(VECTOR, None),)),
            spaces.Discrete(2),
            "observations with a part of type Graph",
        ),
        (spaces.Discrete(4), spaces.Discrete(2), "observations of type Discrete"),
        (spaces.Box(-1, 1, (0,)), spaces.Discrete(2), "empty observations"),
        (VECTOR, spaces.MultiDiscrete([2, 2]), "actions of type MultiDiscrete"),
        (VECTOR, spaces.MultiBinary(2), "actions of type MultiBinary"),
        (VECTOR, spaces.Dict({"a": VECTOR}), "actions of type Dict"),
        (VECTOR, spaces.Box(-1, 1, (0,)), "empty actions"),
    ],
)
def test_unsupported_spaces_are_refused_in_one_sentence(observation: Any, action: Any, message: str) -> None:
    with pytest.raises(UnsupportedEnvironment, match=re.escape(message)) as caught:
        Adapter.of(Shell(observation, action), "Shell-v0")
    assert str(caught.value).startswith("Shell-v0 has ")
    assert "Box observations of numbers and Discrete or Box actions" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_supported_spaces() -> None:
    ram = Adapter.of(Shell(spaces.Box(0, 255, (128,), np.uint8), spaces.Discrete(3)), "Ram-v0")
    assert ram.spec == Spec(128, Discrete(3))
    parts = spaces.Dict({"a": VECTOR, "b": spaces.Tuple((VECTOR, spaces.Discrete(4)))})
    assert Adapter.of(Shell(parts, spaces.Discrete(3)), "Parts-v0").spec == Spec(3 + 3 + 4, Discrete(3))
    grid = Adapter.of(Shell(spaces.Box(-1, 1, (2, 3, 4)), spaces.Box(-1, 1, ())), "Grid-v0")
    assert grid.spec == Spec(24, Box((-1.0,), (1.0,), ()), (2, 3, 4))
    obs = np.arange(48, dtype=np.float64).reshape(2, 2, 3, 4)
    np.testing.assert_array_equal(grid.flatten(obs), obs.reshape(2, 24))
    np.testing.assert_array_equal(grid.flatten(obs[0]), obs[0].reshape(24))
    assert grid.native_actions(np.zeros((5, 1))).shape == (5,)


@pytest.mark.parametrize("env_id", ["LunarLander-v2", "Hopper-v3"])
def test_a_used_environment_replays_bit_for_bit(env_id: str) -> None:
    """What resuming a run relies on: after reset(seed) nothing of what happened before is left."""
    rng = np.random.default_rng(0)
    used, fresh = HostEnv(resolve_task(env_id), 2), HostEnv(resolve_task(env_id), 2)
    action = used.spec.action
    if isinstance(action, Discrete):
        actions: np.ndarray = rng.integers(0, action.n, (400, 2))
    else:
        actions = rng.uniform(-1.5, 1.5, (400, 2, action.size))
    used.reset(5)
    for row in actions[:150]:
        used.step(row[::-1])
    np.testing.assert_array_equal(used.reset(9), fresh.reset(9))
    ends = 0
    for row in actions:
        for left, right in zip(used.step(row), fresh.step(row), strict=True):
            np.testing.assert_array_equal(left, right)
            ends += left.dtype == np.bool_ and int(left.sum())
    assert ends > 2
    used.close()
    fresh.close()


def test_time_limit_of_a_real_environment() -> None:
    env = HostEnv(resolve_task("Pendulum-v1"), 2)
    env.reset(0)
    for t in range(1, 201):
        obs, _, terminated, truncated, next_obs = env.step(np.zeros((2, 1)))
        assert not terminated.any()
        assert truncated.all() == truncated.any() == (t == 200)
    assert (obs != next_obs).any(axis=1).all()
    np.testing.assert_allclose((next_obs[:, :2] ** 2).sum(axis=1), 1, rtol=1e-5)
    env.close()
