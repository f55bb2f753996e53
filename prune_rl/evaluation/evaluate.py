"""Returns of a policy in the real Gymnasium environment, paired over policies by the seed of each episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from prune_rl.envs.gymnasium_adapter import Adapter, FlatEnv
from prune_rl.envs.task import Task, resolve_task
from prune_rl.spaces import Discrete

_STREAM = int.from_bytes(b"eval", "big")  # keeps evaluation apart from anything else seeded by (seed, index)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Every episode of an evaluation; episode i of any other one with the same `env_id` and `seed` starts alike.

    Attributes:
        env_id: the environment.
        seed: what the episodes' seeds were derived from.
        returns: float64[episodes], undiscounted.
        lengths: int64[episodes], steps.
        seeds: int64[episodes], what the environment was reset with.
    """

    env_id: str
    seed: int
    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over these episodes (divided by their number)."""
        return float(self.returns.std())

    @property
    def min(self) -> float:
        """Least return."""
        return float(self.returns.min())

    @property
    def max(self) -> float:
        """Greatest return."""
        return float(self.returns.max())

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the summary and every episode."""
        return {
            "env_id": self.env_id,
            "seed": self.seed,
            "episodes": len(self.returns),
            "mean": self.mean,
            "std": self.std,
            "min": self.min,
            "max": self.max,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "seeds": self.seeds.tolist(),
        }


def episode_seed(seed: int, episode: int) -> int:
    """Seed of one episode: 53 bits, so that JSON readers without integers keep it.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"the seed of an evaluation must be 0 or more, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_STREAM, episode))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11))


def evaluate_policy(
    policy: Callable[[npt.NDArray[np.float32]], npt.ArrayLike],
    env: str | Task,
    *,
    episodes: int = 100,
    seed: int,
    num_envs: int = 16,
) -> Evaluation:
    """Run whole episodes, each from a reset with its own seed.

    `num_envs` environments advance in lockstep; one that ends its episode takes the next that is not begun. Which one
    plays an episode, and beside which others, does not matter to it, so neither short nor long ones are preferred, and
    `num_envs` changes the time only (for a policy whose action does not depend on the rest of the batch: a
    `prune_rl.export.Policy` does not, a jitted network may in the last bit).

    Args:
        policy: observations float32[num_envs, D] to actions, int[num_envs] or float[num_envs, *shape]. Always called
            with the same number of rows, so that a jitted one compiles once; rows of finished environments repeat
            their last observation. The array is overwritten after the call.
        env: an id that `prune_rl.envs.task.resolve_task` knows, or what it returned. Without a time limit and an end,
            this never returns.
        episodes: how many.
        seed: 0 or more.
        num_envs: at most as many as there are episodes are made.

    Raises:
        ValueError: `episodes` or `num_envs` is not positive, the seed is negative, the environment is not supported,
            the policy's actions have a wrong shape or type, are out of range, or NaN.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    task = resolve_task(env) if isinstance(env, str) else env
    adapter = task.adapter
    count = min(num_envs, episodes)
    envs = [FlatEnv(task.make_gymnasium(), adapter) for _ in range(count)]
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    obs = np.zeros((count, adapter.spec.observation_size), np.float32)
    playing = dict(enumerate(range(count)))  # environment -> episode
    begun = count
    try:
        for index, episode in playing.items():
            obs[index], _ = envs[index].reset(seed=seeds[episode])
        while playing:
            actions = _native_actions(adapter, policy(obs), count)
            for index, episode in list(playing.items()):
                obs[index], reward, terminated, truncated, _ = envs[index].step(actions[index])
                returns[episode] += reward
                lengths[episode] += 1
                if terminated or truncated:
                    del playing[index]
                    if begun < episodes:
                        playing[index] = begun
                        obs[index], _ = envs[index].reset(seed=seeds[begun])
                        begun += 1
    finally:
        for each in envs:
            each.close()
    return Evaluation(task.env_id, seed, returns, lengths, np.array(seeds, np.int64))


def _native_actions(adapter: Adapter, actions: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """One action per environment, checked and in the environment's own terms."""
    array = np.asarray(actions)
    action = adapter.spec.action
    shape = (count,) if isinstance(action, Discrete) else (count, *action.shape)
    if array.shape != shape:
        raise ValueError(
            f"for {count} observations of this environment a policy must return an array of shape {shape}, "
            f"got {array.shape}"
        )
    return adapter.native_actions(
        array if isinstance(action, Discrete) else array.reshape(count, action.size)
    )
