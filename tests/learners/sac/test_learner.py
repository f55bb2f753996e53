"""SAC acting and updating: warm-up, how many gradient steps an update makes, and what becomes of its data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prune_rl.learners import gradient_steps, sac
from prune_rl.learners.replay_buffer import Transitions
from prune_rl.spaces import Box, Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import (
    DISCRETE,
    LOPSIDED,
    SMALL_SAC,
    random_rollout,
    random_sac_state,
)
from tests.learners.sac import sac_reference as reference

LOSSES = {"critic_loss", "actor_loss", "entropy", "alpha", "q_target"}
KINDS = pytest.mark.parametrize("spec", [DISCRETE, LOPSIDED], ids=["discrete", "box"])
MANY = 5000
update = quick_jit(sac.update, static_argnames="config")
act = quick_jit(sac.act, static_argnames="config")


def assert_trees_close(got: Any, expected: Any, *, rtol: float, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, expected)


@pytest.mark.parametrize("step", [0, 1])
def test_during_warm_up_box_actions_are_uniform_between_their_bounds(step: int) -> None:
    state = random_sac_state(SMALL_SAC, LOPSIDED, step=step)
    obs = jax.random.normal(jax.random.key(1), (MANY, 3))
    noise = sac.action_noise(jax.random.key(2), (MANY,), LOPSIDED)
    action = np.asarray(act(state, obs, noise, SMALL_SAC))
    low, high = np.array([-3.0, 0.5]), np.array([1.0, 0.75])
    assert np.all((low <= action) & (action <= high))
    for unit in ((action - low) / (high - low)).T:
        assert scipy.stats.kstest(unit, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([action, np.asarray(obs)], axis=1).T) - np.eye(5)
    assert np.abs(correlation[:2]).max() < 4.0 / math.sqrt(MANY)


@pytest.mark.parametrize("step", [0, 1])
def test_during_warm_up_discrete_actions_are_uniform(step: int) -> None:
    state = random_sac_state(SMALL_SAC, DISCRETE, step=step)
    obs = jax.random.normal(jax.random.key(1), (MANY, 3))
    action = act(state, obs, sac.action_noise(jax.random.key(2), (MANY,), DISCRETE), SMALL_SAC)
    assert scipy.stats.chisquare(np.bincount(action, minlength=4)).pvalue > 1e-3


@KINDS
def test_after_warm_up_actions_are_those_of_the_policy(spec: Spec) -> None:
    state = random_sac_state(SMALL_SAC, spec, step=2)
    actor = reference.to_numpy(state.params["actor"])
    obs = np.random.default_rng(1).normal(size=(MANY, 3)).astype(np.float32)
    noise = sac.action_noise(jax.random.key(1), (2, MANY), spec)
    assert noise.shape == (2, MANY, spec.action.num_outputs)
    for each in noise:
        action = act(state, jnp.asarray(obs), each, SMALL_SAC)
        if spec is DISCRETE:
            assert action.dtype == jnp.int32
            # Float64 and float32 may disagree where two actions are as good as equal.
            perturbed = reference.network(actor, obs, "tanh") + np.asarray(each)
            assert np.all(perturbed[np.arange(MANY), action] > perturbed.max(axis=1) - 1e-4)
        else:
            mean, std = reference.normal_parts(actor, obs, "tanh")
            share = 0.5 * (1.0 + np.tanh(mean + std * np.asarray(each)))
            expected = np.array([-3.0, 0.5]) + share * np.array([4.0, 0.25])
            np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)


def test_warm_up_changes_no_network_and_reports_no_loss_and_then_learning_begins() -> None:
    state = random_sac_state(SMALL_SAC, DISCRETE)
    for i in range(4):
        before = state
        state, metrics = update(state, random_rollout(i, SMALL_SAC, DISCRETE), SMALL_SAC)
        assert int(state.step) == i + 1
        assert set(metrics) == LOSSES | {
            "return",
            "episodes",
            "running_return",
            "total_episodes",
            "gradient_steps",
        }
        assert np.isfinite(metrics["return"])
        assert int(metrics["gradient_steps"]) == (0 if i < 2 else SMALL_SAC.gradient_steps)
        for name in LOSSES:
            assert (float(metrics[name]) == 0.0) == (i < 2), name
        leaves = zip(jax.tree.leaves(before.networks), jax.tree.leaves(state.networks), strict=True)
        same = [np.array_equal(a, b) for a, b in leaves]
        assert all(same) if i < 2 else not any(same)


# 6 steps on 24 environment steps, and 12 steps on 6: then the batch is larger than what the buffer holds at first.
RARE = SMALL_SAC
OFTEN = dataclasses.replace(SMALL_SAC, num_steps=2, utd_ratio=2.0, learning_starts=12)


@pytest.mark.parametrize(("config", "steps"), [(RARE, 6), (OFTEN, 12)], ids=["rare", "often"])
def test_an_update_is_as_many_gradient_steps_as_the_ratio_says(config: sac.Config, steps: int) -> None:
    # Whatever is drawn from a buffer whose rows are all alike, the batch is the same; Discrete steps draw no noise.
    rollout = random_rollout(0, config, DISCRETE, ends=0.0)
    rollout = jax.tree.map(lambda x: np.broadcast_to(x[:1, :1], x.shape) if x.ndim else x, rollout)
    batch = jax.tree.map(
        lambda x: x[0, :1],
        Transitions(rollout.obs, rollout.action, rollout.reward, rollout.terminated, rollout.next_obs),
    )
    state = random_sac_state(config, DISCRETE)
    for _ in range(2):
        state, _ = update(state, rollout, config)
    learner = reference.Learner(
        state.networks, [0.01] * steps, activation="tanh", gamma=0.99, tau=0.1, scale=1.0
    )
    rows, actors = [], []
    for _ in range(steps):
        rows.append(learner(batch, None, 0.5 * math.log(4.0)))
        actors.append(learner.actor)
    state, metrics = update(state, rollout, config)
    close: dict[str, float] = {"rtol": 2e-3, "atol": 2e-4}
    assert_trees_close(state.networks.params, {"actor": learner.actor, "critic": learner.critic}, **close)
    assert_trees_close(state.networks.target_critic, learner.target, **close)
    for name in LOSSES:
        expected = np.mean([row[name] for row in rows])
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)
    last = np.abs(actors[-1]["head"]["bias"] - actors[-2]["head"]["bias"]).max()
    assert last > 2e-3, "one step more or less must matter in this test"


@pytest.mark.parametrize(("steps", "ahead", "unroll"), [(12, 5, 2), (12, 1, 1), (7, 3, 2)])
def test_how_many_gradient_steps_are_drawn_ahead_or_unrolled_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, steps: int, ahead: int, unroll: int
) -> None:
    config = dataclasses.replace(SMALL_SAC, utd_ratio=steps / 24.0, learning_starts=0)
    assert config.gradient_steps == steps
    state, rollout = random_sac_state(config, LOPSIDED), random_rollout(0, config, LOPSIDED)
    expected, losses = update(state, rollout, config)
    monkeypatch.setattr(gradient_steps, "DRAWN_AHEAD", ahead)
    monkeypatch.setattr(gradient_steps, "UNROLL", unroll)
    # A function of its own, so that it is traced anew.
    got, metrics = quick_jit(lambda s, r: sac.update(s, r, config))(state, rollout)
    assert_trees_close(got.networks, expected.networks, rtol=1e-3, atol=1e-5)
    assert_trees_close(metrics, losses, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got.params, state.params)
    assert min(jax.tree.leaves(moved)) > 5e-3, "the comparison must be of something that was trained"


def test_each_gradient_step_draws_its_own_transitions_and_scales_their_rewards() -> None:
    # With rewards 2⁰ … 2¹¹ and no future, the mean target tells whether one row was drawn at all of the 6 steps.
    scale = 2.0**-30
    config = dataclasses.replace(SMALL_SAC, batch_size=1, gamma=0.0, learning_starts=0, reward_scale=scale)
    reward = 2.0 ** (np.arange(24, dtype=np.float32) // 2).reshape(8, 3)
    rollout = dataclasses.replace(random_rollout(0, config, DISCRETE, ends=0.0), reward=jnp.asarray(reward))
    rollout.terminated[-1] = True
    _, metrics = update(random_sac_state(config, DISCRETE), rollout, config)
    total = 6.0 * float(metrics["q_target"]) / scale
    assert total == pytest.approx(round(total), abs=0.01)
    assert 6 <= round(total) < 6 * 2**11
    assert round(total) not in 6 * 2 ** np.arange(12)
    np.testing.assert_allclose(metrics["return"], reward.sum(0).mean(), rtol=1e-6)


def test_observations_are_normalised_by_all_that_was_seen_wherever_networks_read_them() -> None:
    config = dataclasses.replace(SMALL_SAC, normalize_obs=True, clip_obs=1.2)
    rollouts = [random_rollout(i, config, DISCRETE) for i in range(3)]
    seen = np.concatenate([rollout.obs.reshape(-1, 3) for rollout in rollouts]).astype(np.float64)

    def normal(obs: Any) -> jax.Array:
        standardised = np.clip((np.asarray(obs) - seen.mean(0)) / seen.std(0), -1.2, 1.2)
        return jnp.asarray(standardised.astype(np.float32))

    state, by_hand = random_sac_state(config, DISCRETE), random_sac_state(SMALL_SAC, DISCRETE)
    for rollout in rollouts:
        state, _ = update(state, rollout, config)
        treated = dataclasses.replace(rollout, obs=normal(rollout.obs), next_obs=normal(rollout.next_obs))
        by_hand, _ = update(by_hand, treated, SMALL_SAC)
    np.testing.assert_allclose(state.obs_stats.mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state.obs_stats.var, seen.var(0), rtol=1e-4)
    assert_trees_close(state.networks.params, by_hand.networks.params, rtol=1e-3, atol=2e-4)
    assert float(by_hand.obs_stats.count) == 0.0
    obs = rollouts[0].next_obs.reshape(-1, 3)
    noise = sac.action_noise(jax.random.key(0), obs.shape[:1], DISCRETE)
    by_hand = dataclasses.replace(by_hand, networks=state.networks)
    expected = act(by_hand, normal(obs), noise, SMALL_SAC)
    np.testing.assert_array_equal(act(state, obs, noise, config), expected)
    assert np.any(act(by_hand, obs, noise, SMALL_SAC) != expected)


def test_saturated_actions_stay_within_bounds_that_float32_rounds() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-3.0, 1.0, 100).astype(np.float32)
    high = (low + rng.uniform(0.1, 4.0, 100)).astype(np.float32)
    spec = Spec(observation_size=3, action=Box(tuple(low.tolist()), tuple(high.tolist()), (100,)))
    state = random_sac_state(SMALL_SAC, spec, step=2)
    for noise in (-1e5, 1e5):
        action = np.asarray(act(state, jnp.zeros((1, 3)), jnp.full((1, 100), noise), SMALL_SAC))[0]
        assert np.all((low <= action) & (action <= high))


def test_a_component_with_equal_bounds_does_no_harm() -> None:
    spec = Spec(observation_size=3, action=Box((-1.0, 0.5), (1.0, 0.5), (2,)))
    state = random_sac_state(SMALL_SAC, spec)
    for i in range(3):
        rollout = random_rollout(i, SMALL_SAC, spec)
        rollout.action[..., 1] = 0.5
        state, metrics = update(state, rollout, SMALL_SAC)
    assert np.isfinite(metrics["critic_loss"])
