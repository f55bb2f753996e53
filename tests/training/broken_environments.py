"""Gymnasium environments that break a rule, registered as "tests.training.broken_environments:NAME-v0"."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from prune_rl.envs.gymnasium_vector import stream_seed
from prune_rl.training.engines import derived_seed

MODULE = __name__


class Walk(gymnasium.Env[Any, Any]):
    """Random observations of three numbers, reward 1, episodes of 7 steps: nothing is broken here."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)
    length = 7

    def __init__(self, gain: float = 1.0, render_mode: str | None = None) -> None:
        self.gain, self.steps = gain, 0

    def observe(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), self.gain, self.steps >= self.length, False, {}


class Faulty(Walk):
    """Gives one bad value: in step ``at`` after a reset with the seed ``seeded``; class attributes say what."""

    seeded: int | None = None
    at = 20
    source = "observation"
    value = np.nan

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed: int | None = None
        self.taken = 0

    @classmethod
    def seed_of(cls, seed: int, update: int, index: int) -> int:
        """What a run resets sub-environment ``index`` of ``seed`` with before ``update``."""
        return stream_seed(derived_seed(seed, update), index)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.seed, self.taken = seed, 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        self.taken += 1
        if self.seed is not None and self.seed == self.seeded and self.taken == self.at:
            if self.source == "observation":
                obs[1] = self.value
            else:
                reward = self.value
        return obs, reward, *rest


class FaultyBox(Faulty):
    """The same with real-valued actions, of which NaN cannot be stepped with."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)


for _class in (Walk, Faulty, FaultyBox):
    gymnasium.register(f"{_class.__name__}-v0", cast(Any, _class))
