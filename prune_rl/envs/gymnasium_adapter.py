"""Gymnasium's spaces seen as flat float32 observations and flat actions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from prune_rl.envs.errors import EnvironmentCrashed, UnsupportedEnvironment
from prune_rl.spaces import Box, Discrete, Spec

SUPPORTED = (
    "prune_rl takes Box observations of numbers and Discrete or Box actions; observations may be a Dict or Tuple of "
    "parts"
)
# What may be part of a Dict or Tuple; Gymnasium flattens Discrete and MultiDiscrete to one-hot vectors.
_PARTS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_observation_space(space: spaces.Space[Any], env_id: str) -> int:
    """Size of a flattened observation.

    Raises:
        UnsupportedEnvironment: the space is neither a Box nor a Dict or Tuple of parts of fixed size, has no component,
            or holds images (uint8 with 2 or 3 axes).
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else list(space.spaces)
        for part in parts:
            if not isinstance(part, (*_PARTS, spaces.Dict, spaces.Tuple)):
                raise UnsupportedEnvironment(
                    f"{env_id} has observations with a part of type {type(part).__name__}; {SUPPORTED}"
                )
            if isinstance(part, spaces.Box | spaces.Dict | spaces.Tuple):
                check_observation_space(part, env_id)
        size = spaces.flatdim(space)
    elif isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) in (2, 3):
            raise UnsupportedEnvironment(
                f"{env_id} has image observations (uint8, shape {space.shape}), which are not supported; "
                f"{SUPPORTED}"
            )
        size = math.prod(space.shape)
    else:
        raise UnsupportedEnvironment(f"{env_id} has observations of type {type(space).__name__}; {SUPPORTED}")
    if size == 0:
        raise UnsupportedEnvironment(f"{env_id} has empty observations (shape {space.shape}); {SUPPORTED}")
    return size


def check_action_space(space: spaces.Space[Any], env_id: str) -> Discrete | Box:
    """The action space in our own terms.

    Raises:
        UnsupportedEnvironment: the space is neither Discrete nor Box, or has no component.
    """
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n), int(space.start))
    if not isinstance(space, spaces.Box):
        raise UnsupportedEnvironment(f"{env_id} has actions of type {type(space).__name__}; {SUPPORTED}")
    if math.prod(space.shape) == 0:
        raise UnsupportedEnvironment(f"{env_id} has empty actions (shape {space.shape}); {SUPPORTED}")
    number = int if space.dtype.kind in "iu" else float
    low, high = (tuple(number(bound) for bound in bounds.ravel()) for bounds in (space.low, space.high))
    return Box(low, high, space.shape, space.dtype.name)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Translates between the flat arrays of a learner and the spaces of one Gymnasium environment.

    Works on single values and on batches: leading axes are kept.
    """

    spec: Spec
    observation_shape: tuple[int, ...]
    action_space: spaces.Space[Any]
    env_id: str = "the environment"

    @classmethod
    def of(cls, env: gymnasium.Env[Any, Any], env_id: str) -> Adapter:
        """Check the spaces of ``env``; raises UnsupportedEnvironment with ``env_id`` in the message."""
        size = check_observation_space(env.observation_space, env_id)
        action = check_action_space(env.action_space, env_id)
        # A Dict or Tuple has none: `FlatEnv` flattens it.
        shape = env.observation_space.shape if isinstance(env.observation_space, spaces.Box) else (size,)
        assert shape is not None
        return cls(Spec(size, action, shape), shape, env.action_space, env_id)

    def flatten(self, obs: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Observations [..., *observation_shape] of any dtype as a new array, float32[..., D]."""
        array = np.array(obs, dtype=np.float32)
        batch = array.shape[: array.ndim - len(self.observation_shape)]
        return array.reshape(*batch, self.spec.observation_size)

    def native_actions(self, action: npt.ArrayLike) -> npt.NDArray[Any]:
        """Actions of a learner as the environment wants them.

        Args:
            action: integers [...] in 0 … n − 1 for Discrete, numbers [..., size] for Box.

        Returns:
            int64[...] counted from the space's own start; or [..., *shape] in the space's dtype, clipped to
            its bounds (and rounded, where the space holds integers).

        Raises:
            ValueError: wrong dtype or size, an action out of range, or NaN.
        """
        array = np.asarray(action)
        if isinstance(self.action_space, spaces.Discrete):
            if array.dtype.kind not in "iu":
                raise ValueError(f"Discrete actions must be integers, got {array.dtype}")
            count = int(self.action_space.n)
            if array.size and (array.min() < 0 or array.max() >= count):
                raise ValueError(f"Discrete actions must be in 0 … {count - 1}, got {array.tolist()}")
            return array.astype(np.int64) + int(self.action_space.start)
        space = self.action_space
        assert isinstance(space, spaces.Box)
        size = math.prod(space.shape)
        if array.ndim == 0 or array.shape[-1] != size:
            raise ValueError(f"Box actions need {size} components on the last axis, got shape {array.shape}")
        if np.isnan(array).any():
            raise ValueError("an action is NaN; the policy or its normalisation has diverged")
        clipped = np.clip(array.reshape(array.shape[:-1] + space.shape), space.low, space.high)
        if space.dtype.kind in "iu":
            clipped = np.rint(clipped)
        return np.asarray(clipped, dtype=space.dtype)


class FlatEnv(gymnasium.Wrapper[npt.NDArray[np.float32], Any, Any, Any]):
    """A single environment with flat float32 observations and without info.

    Every observation is a new array: an environment may write the next one into the same memory, and the last
    observation of an episode has to survive the reset. Info is dropped, because gathering it over a batch
    costs time and fails where its shapes change.

    Raises ``UnsupportedEnvironment`` where the environment does not return what Gymnasium asks, and
    ``EnvironmentCrashed`` from what its own code raises.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], adapter: Adapter) -> None:
        super().__init__(env)
        self._env_id, self._shape = adapter.env_id, adapter.observation_shape
        nested = isinstance(env.observation_space, spaces.Dict | spaces.Tuple)
        self._nested = env.observation_space if nested else None
        self.observation_space = spaces.Box(-np.inf, np.inf, (adapter.spec.observation_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode."""
        with crashes_of(self._env_id, "reset"):
            obs, _ = self.env.reset(seed=seed, options=options)
        return self._flat(obs, "reset"), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Advance by one step; the action is one of the wrapped environment."""
        try:  # no context manager, which would take a tenth of a fast environment's time
            obs, reward, terminated, truncated, _ = self.env.step(action)
        except (Exception, SystemExit) as error:
            raise _crash(self._env_id, "step", error) from error
        scalar: Any = reward[()] if isinstance(reward, np.ndarray) and reward.ndim == 0 else reward
        if not isinstance(scalar, int | float | np.floating | np.integer | np.bool_):
            raise UnsupportedEnvironment(
                f"step() of {self._env_id} returned the reward {reward!r}, where Gymnasium asks for one number: "
                "return float(reward)"
            )
        return self._flat(obs, "step"), float(scalar), bool(terminated), bool(truncated), {}

    def _flat(self, obs: Any, method: str) -> npt.NDArray[np.float32]:
        try:
            if self._nested is not None:
                obs = spaces.flatten(self._nested, obs)
            array = np.array(obs, np.float32)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise UnsupportedEnvironment(
                f"{method}() of {self._env_id} returned an observation that does not belong to its observation_space "
                f"({type(error).__name__}: {error}): {obs!r}"
            ) from error
        if array.shape != self._shape:
            raise UnsupportedEnvironment(
                f"{method}() of {self._env_id} returned an observation of shape {array.shape}, but its "
                f"observation_space has shape {self._shape}: both must be the same"
            )
        return array.reshape(-1)


def check_interface(env: gymnasium.Env[Any, Any], adapter: Adapter) -> None:
    """Reset and step an environment once as training does, and check what its methods return.

    Raises:
        UnsupportedEnvironment: it is not what Gymnasium asks; names environment and method.
        EnvironmentCrashed: from an exception of the environment's own code.
    """
    # Below Gymnasium's wrappers, which unpack what the methods return.
    bare = env.unwrapped
    # A class of the old interface may not know these arguments at all.
    try:
        with crashes_of(adapter.env_id, "reset"):
            begun: Any = bare.reset(seed=0)
    except EnvironmentCrashed as crash:
        if isinstance(crash.__cause__, TypeError) and "unexpected keyword argument" in str(crash.__cause__):
            raise UnsupportedEnvironment(
                f"reset() of {adapter.env_id} does not take the arguments that Gymnasium gives it "
                f"({crash.__cause__}): define reset(self, *, seed=None, options=None)"
            ) from crash
        raise
    _check_tuple(begun, adapter.env_id, "reset", "(observation, info)", 2)
    with crashes_of(adapter.env_id, "step"):
        stepped: Any = bare.step(env.action_space.sample())
    five = "(observation, reward, terminated, truncated, info)"
    _check_tuple(stepped, adapter.env_id, "step", five, 5)
    env.action_space.seed(0)
    flat = FlatEnv(env, adapter)
    flat.reset(seed=0)
    flat.step(env.action_space.sample())


def _check_tuple(result: Any, env_id: str, method: str, wanted: str, length: int) -> None:
    old = " (four values are the interface of Gym before 0.26)" if method == "step" else ""
    if not isinstance(result, tuple) or len(result) != length or not isinstance(result[-1], dict):
        what = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        if isinstance(result, tuple) and len(result) == length:
            what = f"a {type(result[-1]).__name__} in place of info, which is a dict"
        raise UnsupportedEnvironment(
            f"{method}() of {env_id} returned {what}, where Gymnasium asks for {wanted}{old}"
        )


@contextlib.contextmanager
def crashes_of(env_id: str, method: str) -> Iterator[None]:
    """Turns what an environment's own code raises inside into ``EnvironmentCrashed``; SystemExit too."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise _crash(env_id, method, error) from error


def _crash(env_id: str, method: str, error: BaseException) -> EnvironmentCrashed:
    return EnvironmentCrashed(
        f"{method}() of {env_id} raised {type(error).__name__}{f': {error}' if str(error) else ''}"
    )
