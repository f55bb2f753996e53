"""Returns of episodes across rollouts against a loop over their steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_rollouts import DISCRETE, SMALL, random_rollout

from prune_rl.learners.rollout import Rollout, track_returns

GAMMA = 0.9
track = jax.jit(track_returns, static_argnums=3)


class Episodes:
    """What is known of the episodes under way, one step at a time."""

    def __init__(self, num_envs: int) -> None:
        self.discounted, self.undiscounted = np.zeros(num_envs), np.zeros(num_envs)

    def follow(self, rollout: Rollout) -> tuple[np.ndarray, list[float]]:
        """Discounted returns up to each step, and the undiscounted ones of episodes that finished."""
        steps, envs = rollout.reward.shape
        discounted, finished = np.zeros((steps, envs)), []
        for t in range(steps):
            for n in range(envs):
                self.discounted[n] = GAMMA * self.discounted[n] + float(rollout.reward[t, n])
                self.undiscounted[n] += float(rollout.reward[t, n])
                discounted[t, n] = self.discounted[n]
                ended = bool(rollout.terminated[t, n]) or bool(rollout.truncated[t, n])
                if ended:
                    finished.append(self.undiscounted[n])
                if ended or (bool(rollout.cut) and t == steps - 1):
                    self.discounted[n] = self.undiscounted[n] = 0.0
        return discounted, finished


def test_returns_equal_a_loop_over_rollouts() -> None:
    loop = Episodes(SMALL.num_envs)
    episode, running = jnp.zeros((2, SMALL.num_envs)), jnp.float32(jnp.nan)
    smoothed: float | None = None
    plan = [(0.0, False), (0.3, False), (0.0, True), (0.2, True), (0.0, False), (1.0, False), (0.3, False)]
    for i, (ends, cut) in enumerate(plan):
        rollout = random_rollout(i, SMALL, DISCRETE, ends=ends, cut=cut)
        returns = track(rollout, episode, running, GAMMA)
        discounted, finished = loop.follow(rollout)
        np.testing.assert_allclose(returns.discounted, discounted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            returns.episode, [loop.discounted, loop.undiscounted], rtol=1e-4, atol=1e-4
        )
        assert int(returns.episodes) == len(finished)
        np.testing.assert_allclose(returns.mean, np.mean(finished) if finished else np.nan, rtol=1e-4)
        if finished:
            now = float(np.mean(finished))
            smoothed = now if smoothed is None else 0.9 * smoothed + 0.1 * now
        np.testing.assert_allclose(returns.running, np.nan if smoothed is None else smoothed, rtol=1e-4)
        episode, running = returns.episode, returns.running
    assert smoothed is not None


@pytest.mark.parametrize("cut", [False, True])
def test_a_cut_truncates_the_last_step_of_every_environment_and_nothing_else(cut: bool) -> None:
    rollout = jax.tree.map(jnp.asarray, random_rollout(0, SMALL, DISCRETE, ends=0.3, cut=cut))
    seen = rollout.with_cut()
    expected = np.asarray(rollout.truncated).copy()
    assert not expected[-1].all()
    expected[-1] |= cut
    np.testing.assert_array_equal(seen.truncated, expected)
    np.testing.assert_array_equal(seen.terminated, rollout.terminated)
    np.testing.assert_array_equal(seen.next_obs, rollout.next_obs)


def test_an_episode_that_was_cut_starts_anew_and_counts_for_nothing() -> None:
    rollout = random_rollout(0, SMALL, DISCRETE, ends=0.0, cut=True)
    returns = track(rollout, jnp.full((2, SMALL.num_envs), 5.0), jnp.float32(3.0), GAMMA)
    np.testing.assert_array_equal(returns.episode, np.zeros((2, SMALL.num_envs)))
    assert int(returns.episodes) == 0
    assert np.isnan(returns.mean)
    assert float(returns.running) == 3.0
