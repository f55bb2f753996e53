"""Episodes that select among many policies of a run: as fast as they can be had, and never reported as its result."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from prune_rl.envs.task import Task
from prune_rl.envs.vector import VectorEnv, make_vector
from prune_rl.evaluation.evaluate import EVALUATION_ENVS, BatchPolicy, evaluate_policies, native_actions


def selection_returns(
    policies: Iterable[BatchPolicy], task: Task, *, episodes: int, seed: int
) -> list[npt.NDArray[np.float64]]:
    """The undiscounted returns of each policy in the same episodes.

    Where the run trains on EnvPool they are played there, all at once; else in Gymnasium, by ``evaluate_policies``.

    Args:
        policies: as in ``evaluate_policy``, of float32[N, D] for any N.
        task: what the run trains on.
        episodes: how many, at least 1.
        seed: 0 or more, from which the seeds of the episodes are derived.

    Returns:
        float64[episodes] for each policy.

    Raises:
        ValueError: see ``evaluate_policy``.
    """
    if task.backend != "envpool":
        count = min(EVALUATION_ENVS, episodes)
        played = evaluate_policies(policies, task, episodes=episodes, seed=seed, num_envs=count)
        return [evaluation.returns for evaluation in played]
    pool = make_vector(task, episodes)
    try:
        return [_first_returns(policy, pool, task, episodes, seed) for policy in policies]
    finally:
        pool.close()


def _first_returns(
    policy: BatchPolicy, pool: VectorEnv, task: Task, episodes: int, seed: int
) -> npt.NDArray[np.float64]:
    """The return of the first episode in each environment of the pool; those that have ended go on unseen."""
    returns, playing = np.zeros(episodes), np.ones(episodes, bool)
    obs = pool.reset(seed)
    while playing.any():
        obs, reward, terminated, truncated, next_obs = pool.step(
            native_actions(policy, obs, task.adapter, task.env_id)
        )
        known = np.isfinite(reward) & np.isfinite(next_obs).all(axis=1)
        if not known[playing].all():
            raise ValueError(
                f"{task.env_id} gave a reward or an observation that is not finite in an episode that selects among "
                f"policies (seed {seed}, episode {int(np.argmax(playing & ~known))}), which therefore has no return"
            )
        returns[playing] += reward[playing]
        playing &= ~(terminated | truncated)
    return returns
