"""Gymnasium's spaces seen as flat float32 observations and flat actions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.spaces import Box, Discrete, Spec

SUPPORTED = "prune_rl takes Box observations of numbers and Discrete or Box actions"


def check_observation_space(space: spaces.Space[Any], env_id: str) -> int:
    """Size of a flattened observation.

    Raises:
        UnsupportedEnvironment: the space is not a Box, has no component, or holds images (uint8 with 2 or 3
            axes).
    """
    if not isinstance(space, spaces.Box):
        raise UnsupportedEnvironment(f"{env_id} has observations of type {type(space).__name__}; {SUPPORTED}")
    if space.dtype == np.uint8 and len(space.shape) in (2, 3):
        raise UnsupportedEnvironment(
            f"{env_id} has image observations (uint8, shape {space.shape}), which are not supported; "
            f"{SUPPORTED}"
        )
    size = math.prod(space.shape)
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

    @classmethod
    def of(cls, env: gymnasium.Env[Any, Any], env_id: str) -> Adapter:
        """Check the spaces of ``env``; raises UnsupportedEnvironment with ``env_id`` in the message."""
        size = check_observation_space(env.observation_space, env_id)
        action = check_action_space(env.action_space, env_id)
        shape = env.observation_space.shape
        assert shape is not None  # a Box has one
        return cls(Spec(size, action, shape), shape, env.action_space)

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
    """

    def __init__(self, env: gymnasium.Env[Any, Any], adapter: Adapter) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (adapter.spec.observation_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode."""
        obs, _ = self.env.reset(seed=seed, options=options)
        return np.array(obs, np.float32).reshape(-1), {}

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Advance by one step; the action is one of the wrapped environment."""
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return np.array(obs, np.float32).reshape(-1), float(reward), terminated, truncated, {}
