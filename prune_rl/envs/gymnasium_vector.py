"""A batch of Gymnasium environments with the semantics that the learners rely on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from prune_rl.envs.gymnasium_adapter import FlatEnv
from prune_rl.envs.task import Task
from prune_rl.spaces import Spec

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def stream_seed(seed: int, index: int) -> int:
    """Seed of sub-environment ``index`` under ``seed``: 63 bits of NumPy's SeedSequence([seed, index]).

    Plain ``seed + index`` would give the runs of neighbouring seeds the same environments. 63 bits fit a
    signed integer of any environment written in C.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"an environment seed must be 0 or more, got {seed}")
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class HostEnv:
    """``num_envs`` copies of a Gymnasium environment, stepped one after the other in this process.

    An episode that ends is followed by the next one within the same step, so every transition is a real one.
    The same seed and the same actions give the same bits.
    """

    def __init__(self, task: Task, num_envs: int) -> None:
        """Create the environments.

        Raises:
            ValueError: ``num_envs`` is not positive.
            UnsupportedEnvironment: see ``Task.adapter``.
        """
        if num_envs < 1:
            raise ValueError(f"the number of environments must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self._adapter = task.adapter

        def make() -> FlatEnv:
            return FlatEnv(task.make_gymnasium(), task.adapter)

        # copy=False: step() and reset() below copy what they hand out.
        self._envs: SyncVectorEnv[Floats, npt.NDArray[np.generic]] = SyncVectorEnv(
            [make] * num_envs,
            copy=False,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action."""
        return self._adapter.spec

    def reset(self, seed: int) -> Floats:
        """Seed every sub-environment anew and start its first episode.

        Args:
            seed: 0 or more. Different (seed, index of the sub-environment) have different streams.

        Returns:
            Observations, float32[N, D].
        """
        obs, _ = self._envs.reset(seed=[stream_seed(seed, index) for index in range(self.num_envs)])
        return obs.copy()

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
        """
        native = self._adapter.native_actions(action)
        if native.shape != self._envs.action_space.shape:
            raise ValueError(
                f"{self.num_envs} environments need actions of shape {self._envs.action_space.shape}, "
                f"got {native.shape}"
            )
        stepped, reward, terminated, truncated, info = self._envs.step(native)
        obs = stepped.copy()
        next_obs = obs.copy()
        if "final_obs" in info:
            ended = info["_final_obs"]
            next_obs[ended] = np.stack(info["final_obs"][ended])
        return obs, reward.astype(np.float32), terminated, truncated, next_obs

    def close(self) -> None:
        """Release the environments; closing twice is harmless."""
        self._envs.close()
