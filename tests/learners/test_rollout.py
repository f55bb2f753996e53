"""Returns of episodes across rollouts against a loop over their steps."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners.rollout import EpisodeReturns, Rollout, track_returns
from tests.learners.random_rollouts import DISCRETE, SMALL, random_rollout

GAMMA = 0.9
track = jax.jit(track_returns, static_argnums=2)


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
    returns, total = EpisodeReturns.create(SMALL.num_envs), 0
    smoothed: float | None = None
    plan = [(0.0, False), (0.3, False), (0.0, True), (0.2, True), (0.0, False), (1.0, False), (0.3, False)]
    for i, (ends, cut) in enumerate(plan):
        rollout = random_rollout(i, SMALL, DISCRETE, ends=ends, cut=cut)
        returns, up_to_each, metrics = track(returns, rollout, GAMMA)
        discounted, finished = loop.follow(rollout)
        np.testing.assert_allclose(up_to_each, discounted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            returns.under_way, [loop.discounted, loop.undiscounted], rtol=1e-4, atol=1e-4
        )
        total += len(finished)
        assert (int(metrics["episodes"]), int(metrics["total_episodes"])) == (len(finished), total)
        assert int(returns.finished) == total
        np.testing.assert_allclose(metrics["return"], np.mean(finished) if finished else 0.0, rtol=1e-4)
        if finished:
            now = float(np.mean(finished))
            smoothed = now if smoothed is None else 0.9 * smoothed + 0.1 * now
        np.testing.assert_allclose(returns.running, smoothed or 0.0, rtol=1e-4)
        assert returns.running == metrics["running_return"]
        np.testing.assert_allclose(returns.performance, -np.inf if smoothed is None else smoothed, rtol=1e-4)
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
    before = dataclasses.replace(
        EpisodeReturns.create(SMALL.num_envs), under_way=jnp.full((2, SMALL.num_envs), 5.0),
        running=jnp.float32(3.0), finished=jnp.int32(4),
    )  # fmt: skip
    returns, _, metrics = track(before, rollout, GAMMA)
    np.testing.assert_array_equal(returns.under_way, np.zeros((2, SMALL.num_envs)))
    assert (int(metrics["episodes"]), float(metrics["return"]), int(returns.finished)) == (0, 0.0, 4)
    assert float(returns.running) == 3.0


def test_episodes_that_began_before_the_masks_changed_do_not_count_as_fresh() -> None:
    """Of each environment, the first end is that of a stale episode; whatever begins after it is fresh."""
    rollout = random_rollout(3, SMALL, DISCRETE, ends=0.3)
    before = EpisodeReturns.create(SMALL.num_envs)
    stale = np.arange(SMALL.num_envs) % 2 == 0
    after, _, metrics = track(dataclasses.replace(before, fresh=jnp.asarray(~stale)), rollout, GAMMA)
    ends = np.asarray(rollout.terminated | rollout.truncated)
    reward, returns = np.asarray(rollout.reward, np.float64), []
    for env in range(SMALL.num_envs):
        fresh, total = not stale[env], 0.0
        for t in range(SMALL.num_steps):
            total += reward[t, env]
            if ends[t, env]:
                returns += [total] if fresh else []
                fresh, total = True, 0.0
        assert bool(after.fresh[env]) == fresh
    assert 0 < len(returns) < int(metrics["episodes"])
    assert float(after.fresh_episodes) == len(returns)
    assert float(after.fresh_return) == pytest.approx(np.mean(returns), rel=1e-5)
