"""Evaluation of a policy in the Gymnasium environment, with episode seeds that pair the returns of policies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prune_rl.envs.gymnasium_adapter import Adapter, FlatEnv
from prune_rl.envs.task import Task, resolve_task
from prune_rl.export.artefact import Artefact
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete

# Environments that the command steps together; the number does not change the result.
EVALUATION_ENVS = 25

BatchPolicy = Callable[[npt.NDArray[np.float32]], npt.ArrayLike]

_STREAM = int.from_bytes(b"eval", "big")  # separates evaluation from other streams seeded by (seed, index)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The episodes of an evaluation. Episode i of every evaluation with the same `env_id` and `seed` starts alike.

    Attributes:
        env_id: the environment.
        seed: from which the seeds of the episodes are derived.
        returns: float64[episodes], undiscounted.
        lengths: int64[episodes], in environment steps.
        seeds: int64[episodes], with which the environment was reset.
    """

    env_id: str
    seed: int
    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]


def episode_seed(seed: int, episode: int) -> int:
    """Seed of one episode: 53 bits, which JSON readers that use float64 represent exactly.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"the seed of an evaluation must be 0 or more, got {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_STREAM, episode))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11))


def evaluate_policy(
    policy: BatchPolicy,
    env: str | Task,
    *,
    episodes: int = 100,
    seed: int,
    num_envs: int = 16,
) -> Evaluation:
    """Run complete episodes, each from a reset with its own seed.

    `num_envs` environments advance in lockstep; one whose episode has ended starts the next episode. All episodes are
    counted, so neither short nor long ones are preferred. `num_envs` does not change the result if an action does not
    depend on the rest of the batch: true for `prune_rl.export.Policy`, up to rounding for a jitted network.

    Args:
        policy: a `prune_rl.export.Policy`, whose actions are played exactly as it returns them, or any function from
            observations float32[num_envs, D] to actions, int[num_envs] from 0 on or float[num_envs, *shape], which are
            converted as those of a learner are. Always called with the same number of rows, so that a jitted one
            compiles once; rows of finished environments repeat their last observation. The array is overwritten after
            the call.
        env: an id that `prune_rl.envs.task.resolve_task` knows, or what it returned. Without a time limit and an end,
            this never returns.
        episodes: how many.
        seed: 0 or more.
        num_envs: environments that run at once; at most `episodes` are made.

    Raises:
        ValueError: `episodes` or `num_envs` is not positive, the seed is negative, the environment is not supported,
            the policy's actions have a wrong shape or type, are out of range, or NaN.
    """
    (evaluation,) = evaluate_policies([policy], env, episodes=episodes, seed=seed, num_envs=num_envs)
    return evaluation


def evaluate_policies(
    policies: Iterable[BatchPolicy], env: str | Task, *, episodes: int, seed: int, num_envs: int
) -> list[Evaluation]:
    """``evaluate_policy`` of several policies on the same episodes, in environments that are made once."""
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    task = resolve_task(env) if isinstance(env, str) else env
    envs = [FlatEnv(task.make_gymnasium(), task.adapter) for _ in range(min(num_envs, episodes))]
    try:
        played = [_play(policy, envs, task.adapter, seeds, task.env_id) for policy in policies]
    finally:
        for each in envs:
            each.close()
    return [
        Evaluation(task.env_id, seed, returns, lengths, np.array(seeds, np.int64))
        for returns, lengths in played
    ]


def _play(
    policy: BatchPolicy, envs: Sequence[FlatEnv], adapter: Adapter, seeds: Sequence[int], env_id: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Returns and lengths of the episodes that start from ``seeds``."""
    count, episodes = len(envs), len(seeds)
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    obs = np.zeros((count, adapter.spec.observation_size), np.float32)
    playing = dict(enumerate(range(count)))  # environment -> episode
    begun = count
    for index, episode in playing.items():
        obs[index], _ = envs[index].reset(seed=seeds[episode])
    while playing:
        actions = native_actions(policy, obs, adapter, env_id)
        for index, episode in list(playing.items()):
            obs[index], reward, terminated, truncated, _ = envs[index].step(_one(actions, index))
            if not (np.isfinite(obs[index]).all() and math.isfinite(reward)):
                raise ValueError(
                    f"{env_id} gave a reward or an observation that is not finite in step {lengths[episode] + 1} of "
                    f"evaluation episode {episode} (reset with seed {seeds[episode]}), which therefore has no return: "
                    f"reward {reward}, observation {obs[index].tolist()}"
                )
            returns[episode] += reward
            lengths[episode] += 1
            if terminated or truncated:
                del playing[index]
                if begun < episodes:
                    playing[index] = begun
                    obs[index], _ = envs[index].reset(seed=seeds[begun])
                    begun += 1
    return returns, lengths


def native_actions(
    policy: BatchPolicy, obs: npt.NDArray[np.float32], adapter: Adapter, env_id: str
) -> npt.NDArray[Any]:
    """A policy's actions for observations [N, D], as the environment takes them.

    A `prune_rl.export.Policy` that knows the environment's spaces, and its exported code, get observations of the
    environment's own shape, and what they return is played as it is: an action that the space does not contain is an
    error. Actions of any other function are those of a learner, which the adapter clips, rounds and counts from the
    space's start.

    Raises:
        ValueError: actions of a wrong shape or type, out of range, or NaN.
    """
    count, action = len(obs), adapter.spec.action
    exact = isinstance(policy, Policy | Artefact) and (
        policy.observation_shape is not None or policy.action == adapter.spec.action
    )
    if exact:
        obs = obs.reshape(count, *adapter.observation_shape)
    array = np.asarray(policy(obs))
    shape = (count,) if isinstance(action, Discrete) else (count, *action.shape)
    if array.shape != shape:
        raise ValueError(
            f"for {'one observation' if count == 1 else f'{count} observations'} of {env_id}, as a batch, a policy "
            f"must return an array of shape {shape}, got {array.shape}"
        )
    if not exact:
        return adapter.native_actions(
            array if isinstance(action, Discrete) else array.reshape(count, action.size)
        )
    if not _contained(array, action):
        raise ValueError(
            f"the policy's actions are not those of {env_id}: {array[0].tolist()} is none of {adapter.action_space}"
        )
    return array


def _one(actions: npt.NDArray[Any], index: int) -> Any:
    """A scalar for Discrete actions, else an array, also where its shape is ()."""
    return actions[index] if actions.ndim == 1 and actions.dtype.kind in "iu" else actions[index, ...]


def _contained(actions: npt.NDArray[Any], action: Discrete | Box) -> bool:
    """Whether the action space contains each of them: as Gymnasium's ``contains``, for all of a batch at once."""
    if isinstance(action, Discrete):
        counted = actions - action.start
        return actions.dtype.kind in "iu" and bool((counted >= 0).all() and (counted < action.n).all())
    low, high = (
        np.reshape(np.array(bound, action.dtype), action.shape) for bound in (action.low, action.high)
    )
    return actions.dtype == action.dtype and bool((actions >= low).all() and (actions <= high).all())
