"""A batch of EnvPool's environments, stepped by threads, with the semantics of `prune_rl.envs.gymnasium_vector`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from prune_rl.cpu_cores import available_cores
from prune_rl.envs import registry
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_vector import Bools, Floats, stream_seed
from prune_rl.envs.task import Task
from prune_rl.spaces import Spec

# EnvPool's name, where it is another one.
IDS = {"Walker2D-v3": "Walker2d-v3"}


class EnvPoolEnv:
    """``num_envs`` environments of EnvPool, which are written in C++.

    As with ``HostEnv``, an episode that ends is followed by the next one within the same step, every transition is
    a real one, and the same seed and the same actions give the same bits, however many threads there are.
    """

    def __init__(self, task: Task, num_envs: int, num_threads: int | None = None) -> None:
        """Look everything up; the environments are created by ``reset``, because that is when EnvPool is seeded.

        Args:
            task: one whose ``backends`` include "envpool".
            num_envs: how many environments.
            num_threads: that step them; by default one per environment, but no more than this process has cores.

        Raises:
            ValueError: ``num_envs`` or ``num_threads`` is not positive.
            UnsupportedEnvironment: EnvPool does not have the environment, or a package is missing (with the install
                line).
        """
        if num_envs < 1:
            raise ValueError(f"the number of environments must be at least 1, got {num_envs}")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"the number of threads must be at least 1, got {num_threads}")
        if "envpool" not in task.backends:
            raise UnsupportedEnvironment(
                f"EnvPool cannot run {task.env_id!r}; choose another backend: {', '.join(task.backends)}"
            )
        assert task.time_limit is not None  # of all ids that have this backend
        self.num_envs = num_envs
        self.num_threads = min(num_envs, num_threads or available_cores())
        self._env_id = task.env_id
        self._time_limit = task.time_limit
        self._package = registry.import_envpool(task.env_id)
        # Sizes and bounds are Gymnasium's: some of EnvPool's own spaces have wrong bounds.
        self._adapter = task.adapter
        self._pool: Any = None

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""
        return self._adapter.spec

    def reset(self, seed: int) -> Floats:
        """Seed every sub-environment anew and start its first episode.

        Args:
            seed: 0 or more. Different (seed, index of the sub-environment) have different streams, but EnvPool's
                seeds have 32 bits: among 1000 of them, two are the same with a chance of 1 in 10,000.

        Returns:
            Observations, float32[N, D].
        """
        # EnvPool takes seeds only when a pool is made.
        seeds = [_int32(stream_seed(seed, index)) for index in range(self.num_envs)]
        self.close()
        with warnings.catch_warnings():
            # EnvPool describes float32 observations by bounds of float64; the description is made once.
            warnings.filterwarnings("ignore", ".*precision lowered by casting to float32", UserWarning)
            self._pool = self._package.make_gymnasium(
                IDS.get(self._env_id, self._env_id),
                num_envs=self.num_envs,
                num_threads=self.num_threads,
                seed=seeds,
                # Never reached, see step(). EnvPool would call an episode that fails in its last step truncated only.
                max_episode_steps=self._time_limit + 1,
            )
            obs, _ = self._pool.reset()
        return self._adapter.flatten(obs)

    def step(self, action: npt.ArrayLike) -> tuple[Floats, Floats, Bools, Bools, Floats]:
        """Step every sub-environment once.

        Args:
            action: integers [N] for Discrete actions; float [N, size] for Box actions, clipped to the bounds.

        Returns:
            obs: float32[N, D], what to act on next; after the end of an episode the first one of the next
                episode.
            reward: float32[N].
            terminated: bool[N].
            truncated: bool[N], time limit reached (both may be true).
            next_obs: float32[N, D], what the action led to; at the end of an episode its true last
                observation.

        Raises:
            ValueError: actions of a wrong shape or type, out of range, or NaN.
            RuntimeError: there was no ``reset`` before.
        """
        if self._pool is None:
            raise RuntimeError("the environments have to be reset before the first step: call reset(seed)")
        native = self._adapter.native_actions(action)
        expected = (self.num_envs, *(self._adapter.action_space.shape or ()))
        if native.shape != expected:
            raise ValueError(
                f"{self.num_envs} environments need actions of shape {expected}, got {native.shape}"
            )
        stepped, reward, terminated, _, info = self._pool.step(native)
        truncated = info["elapsed_step"] >= self._time_limit
        next_obs = self._adapter.flatten(stepped)
        obs = next_obs.copy()
        (ended,) = np.nonzero(terminated | truncated)
        if ended.size:
            # Left alone, EnvPool would spend the next step on the reset; one that was reset already, it just steps.
            started, _ = self._pool.reset(ended.astype(np.int32))
            obs[ended] = self._adapter.flatten(started)
        return obs, reward.astype(np.float32), terminated, truncated, next_obs

    def close(self) -> None:
        """End the threads and release the environments; closing twice is harmless."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None  # the threads end with the last reference


def _int32(seed: int) -> int:
    """The lowest 32 bits as a signed integer."""
    return (seed & 0xFFFFFFFF) - ((seed & 0x80000000) << 1)
