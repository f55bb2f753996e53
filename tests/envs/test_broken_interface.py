"""Environments that do not return what Gymnasium asks, or whose own code fails: who is told what, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from prune_rl.cli import main
from prune_rl.envs.errors import EnvironmentCrashed, UnsupportedEnvironment
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import LONGEST_EPISODE, resolve_task
from prune_rl.evaluation.evaluate import evaluate_policy
from prune_rl.exit_status import ENVIRONMENT_CRASHED

ID = "PruneRlBroken-v0"


class Good(gymnasium.Env[Any, Any]):
    """Observes three numbers, never ends."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain, self.steps = gain, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(3, self.steps, np.float32), self.gain, False, False, {}


class OldStep(Good):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class OldReset(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class OldSignature(Good):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoInfo(Good):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], None)


class Narrow(Good):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs[:1], *rest


class NarrowStart(Good):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}


class Words(Good):
    def step(self, action: Any) -> Any:
        return "nothing", *super().step(action)[1:]


class ArrayReward(Good):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, np.array([reward]), *rest


class NoReward(Good):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, None, *rest


class NarrowEnd(Good):
    """Breaks in its fifth step, too late for a look before training."""

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (obs[:1], rest[0], True, *rest[2:]) if self.steps == 5 else (obs, *rest)


class Raises(Good):
    error: BaseException = ValueError("my own mistake")

    def step(self, action: Any) -> Any:
        raise self.error


@pytest.fixture
def register() -> Iterator[Any]:
    """`register(class)` under the id."""

    def under_the_id(kind: Any, **options: Any) -> str:
        gymnasium.register(ID, cast(Any, kind), **options)
        return ID

    yield under_the_id
    gymnasium.registry.pop(ID, None)


@pytest.mark.parametrize("limit", [None, 50], ids=["bare", "in a TimeLimit"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OldStep, r"step\(\) of {id} returned 4 values, where Gymnasium asks for \(observation, reward, terminated, "),
        (OldReset, r"reset\(\) of {id} returned a ndarray, where Gymnasium asks for \(observation, info\)"),
        (OldSignature, r"reset\(\) of {id} does not take the arguments .* define reset\(self, \*, seed=None"),
        (NoInfo, r"step\(\) of {id} returned a NoneType in place of info"),
        (Narrow, r"step\(\) of {id} returned an observation of shape \(1,\), but its observation_space has .* \(3,\)"),
        (NarrowStart, r"reset\(\) of {id} returned an observation of shape \(1,\), but its"),
        (Words, r"step\(\) of {id} returned an observation that does not belong to its observation_space"),
        (ArrayReward, r"step\(\) of {id} returned the reward array\(\[1.\]\), where Gymnasium asks for one number"),
        (NoReward, r"step\(\) of {id} returned the reward None, where Gymnasium asks for one number"),
    ],
)  # fmt: skip
def test_what_is_not_gymnasiums_interface_is_refused_before_training(
    kind: Any, said: str, limit: int | None, register: Any
) -> None:
    task = resolve_task(register(kind, max_episode_steps=limit))
    with pytest.raises(UnsupportedEnvironment, match=said.format(id=ID)):
        task.check()


def test_what_breaks_later_is_refused_where_it_happens(register: Any) -> None:
    env = HostEnv(resolve_task(register(NarrowEnd)), 2)
    env.reset(0)
    for _ in range(4):
        env.step(np.zeros(2, int))
    with pytest.raises(
        UnsupportedEnvironment, match=rf"step\(\) of {ID} returned an observation of shape \(1,\)"
    ):
        env.step(np.zeros(2, int))


@pytest.mark.parametrize(
    "error", [ValueError("my own mistake"), SystemExit(0)], ids=["ValueError", "SystemExit"]
)
def test_an_exception_of_the_environments_own_code_keeps_its_traceback(
    error: BaseException,
    register: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Raises, "error", error)
    assert main(["train", register(Raises)]) == ENVIRONMENT_CRASHED
    told = capsys.readouterr().err
    assert "in step\n    raise self.error\n" in told
    assert told.rstrip().endswith(f"step() of {ID} raised {type(error).__name__}: {error}")
    env = HostEnv(resolve_task(ID), 1)
    env.reset(0)
    with pytest.raises(EnvironmentCrashed) as caught:
        env.step([0])
    assert caught.value.__cause__ is error


def test_an_environment_without_a_limit_is_capped_and_that_is_said(register: Any) -> None:
    task = resolve_task(register(Good))
    assert (
        f"registered without a time limit: episodes are truncated after {LONGEST_EPISODE:,}"
        in task.limit_note()
    )
    played = evaluate_policy(lambda obs: np.zeros(len(obs), int), task, episodes=1, seed=0)
    assert played.lengths.tolist() == [LONGEST_EPISODE]
    given = resolve_task(ID, "auto", ("max_episode_steps=30", "gain=2"))
    assert (given.limit_note(), given.time_limit) == ("", 30)
    played = evaluate_policy(lambda obs: np.zeros(len(obs), int), given, episodes=2, seed=0)
    assert (played.lengths.tolist(), played.returns.tolist()) == ([30, 30], [60.0, 60.0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gain",), "NAME=VALUE, such as gain=2, got 'gain'"),
        (("gain=1", "gain=2"), "names 'gain' twice"),
        (("gravity=1",), f"{ID} does not take --env-kwargs gravity=1"),
        (("max_episode_steps=0",), "max_episode_steps must be a whole number >= 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_passed_on_are_refused(
    words: tuple[str, ...], said: str, register: Any
) -> None:
    register(Good)
    with pytest.raises(ValueError, match=said):
        resolve_task(ID, "auto", words).check()


def test_arguments_are_for_gymnasiums_environment() -> None:
    assert resolve_task("CartPole-v1", "auto", ("sutton_barto_reward=true",)).backend == "gymnasium"
    with pytest.raises(ValueError, match=r"env_kwargs .* are for backend 'gymnasium', got 'jax'"):
        resolve_task("CartPole-v1", "jax", ("sutton_barto_reward=true",))


class Nested(Good):
    """Observes a Dict of a Tuple and a number among three."""

    observation_space = spaces.Dict(
        {
            "which": spaces.Discrete(3),
            "both": spaces.Tuple((spaces.Box(-9, 9, (1, 2)), spaces.MultiBinary(2))),
        }
    )

    def see(self) -> Any:
        both = (np.array([[1.5, self.steps]], np.float32), np.array([1, 0], np.int8))
        return {"which": self.steps % 3, "both": both}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.see(), super().reset(seed=seed)[1]

    def step(self, action: Any) -> Any:
        rest = super().step(action)[1:]
        return self.see(), *rest


def test_dict_and_tuple_observations_are_flattened_as_gymnasium_does(register: Any) -> None:
    task = resolve_task(register(Nested, max_episode_steps=4))
    task.check()
    assert task.spec.observation_size == 7
    env = HostEnv(task, 1)
    first = env.reset(0)
    # In the order of the keys, a Discrete as a one-hot vector.
    np.testing.assert_array_equal(first, [[1.5, 0, 1, 0, 1, 0, 0]])
    np.testing.assert_array_equal(env.step([0])[0], [[1.5, 1, 1, 0, 0, 1, 0]])
    bare = gymnasium.make(ID)
    obs, _ = bare.reset()
    np.testing.assert_array_equal(spaces.flatten(bare.observation_space, obs), first[0])
    bare.close()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (spaces.Text(3), "a part of type Text"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "image observations"),
    ],
    ids=["text", "image"],
)
def test_parts_that_cannot_be_flattened_are_refused(
    part: Any, said: str, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nested, "observation_space", spaces.Dict({"part": part}))
    with pytest.raises(UnsupportedEnvironment, match=said):
        _ = resolve_task(register(Nested)).spec
