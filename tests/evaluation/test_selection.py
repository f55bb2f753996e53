"""Episodes that select among policies, on the backend of training."""

from __future__ import annotations

import numpy as np
import pytest

from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector
from prune_rl.evaluation.evaluate import evaluate_policy
from prune_rl.evaluation.selection import selection_returns
from tests.evaluation.test_evaluate import CONSTANT, CONTROLLER


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_every_policy_plays_the_same_whole_episodes(backend: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")
    task = resolve_task("CartPole-v1", backend=backend)
    good, bad, again = selection_returns([CONTROLLER, CONSTANT, CONTROLLER], task, episodes=20, seed=3)
    np.testing.assert_array_equal(good, again)
    assert good.dtype == np.float64
    assert good.shape == bad.shape == (20,)
    assert good.min() > 400
    assert 5 < bad.min() <= bad.max() < 100
    assert len(set(bad.tolist())) > 1
    (other,) = selection_returns([CONSTANT], task, episodes=20, seed=4)
    assert other.tolist() != bad.tolist()


def test_in_gymnasium_they_are_those_of_an_evaluation() -> None:
    task = resolve_task("CartPole-v1", backend="jax")
    (returns,) = selection_returns([CONSTANT], task, episodes=5, seed=3)
    expected = evaluate_policy(CONSTANT, "CartPole-v1", episodes=5, seed=3)
    np.testing.assert_array_equal(returns, expected.returns)


def test_in_envpool_only_the_first_episode_of_each_environment_counts() -> None:
    pytest.importorskip("envpool")
    task = resolve_task("CartPole-v1", backend="envpool")
    (returns,) = selection_returns([CONSTANT], task, episodes=4, seed=3)
    pool = make_vector(task, 4)
    obs, ends = pool.reset(3), np.zeros(4)
    for step in range(1, 100):
        obs, _, terminated, _, _ = pool.step(np.asarray(CONSTANT(obs)))
        ends[terminated & (ends == 0)] = step
    pool.close()
    np.testing.assert_array_equal(returns, ends)  # CartPole pays 1 per step
