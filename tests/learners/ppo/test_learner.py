"""PPO's losses, returns and one update against plain NumPy, and the properties of its state."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from prune_rl.learners import ppo
from prune_rl.spaces import Spec
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, SMALL, random_rollout

Array = np.ndarray
prepare = jax.jit(ppo.prepare, static_argnames="config")
gradient = jax.jit(jax.grad(ppo.loss, has_aux=True), static_argnames=("config", "discrete"))


def perturbed(params: Any, seed: int, scale: float) -> Any:
    """``params`` with noise, so that no ratio is 1 and no head is near 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(0.0, scale, leaf.shape), jnp.float32), params
    )


def network(params: Any, x: Array) -> Array:
    for name in ("layer_0", "layer_1"):
        x = np.tanh(x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"]))
    head = params["head"]
    return np.asarray(x @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"]))


def policy_terms(params: Any, obs: Array, action: Array) -> tuple[Array, Array]:
    """Log-probabilities and entropies, by SciPy."""
    outputs = network(params["actor"], obs)
    if "log_std" in params["actor"]:
        normal = scipy.stats.norm(outputs, np.exp(np.asarray(params["actor"]["log_std"], np.float64)))
        return normal.logpdf(action).sum(-1), normal.entropy().sum(-1)
    log_p = scipy.special.log_softmax(outputs, axis=-1)
    chosen = np.take_along_axis(log_p, action[..., None], -1)[..., 0]
    return chosen, scipy.stats.entropy(np.exp(log_p), axis=-1)


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
def test_the_losses_equal_their_definitions(spec: Spec, clip_range_vf: float | None) -> None:
    config = dataclasses.replace(
        SMALL, clip_eps=0.15, clip_range_vf=clip_range_vf, ent_coef=0.03, vf_coef=0.7
    )
    before = perturbed(ppo.init(jax.random.key(0), config, spec).params, 0, 0.2)
    params = perturbed(before, 1, 0.1)
    rng = np.random.default_rng(2)
    obs = rng.normal(size=(40, 3))
    advantage = rng.normal(0.5, 2.0, size=40)
    action = rng.integers(4, size=40) if spec is DISCRETE else rng.normal(size=(40, 2))
    old_log_prob, old_value = policy_terms(before, obs, action)[0], network(before["critic"], obs)[:, 0]

    log_prob, entropy = policy_terms(params, obs, action)
    normed = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = np.exp(log_prob - old_log_prob)
    surrogate, outside = np.zeros(40), np.zeros(40, bool)
    for i in range(40):
        limited = min(max(ratio[i], 1 - 0.15), 1 + 0.15)
        surrogate[i] = min(ratio[i] * normed[i], limited * normed[i])
        outside[i] = not 1 - 0.15 <= ratio[i] <= 1 + 0.15
    value, target = network(params["critic"], obs)[:, 0], advantage + old_value
    error = (value - target) ** 2
    if clip_range_vf is not None:
        moved = np.clip(value, old_value - clip_range_vf, old_value + clip_range_vf)
        assert np.any((moved - target) ** 2 > error), "the clipping must matter in this test"
        error = np.maximum(error, (moved - target) ** 2)
    expected = {
        "policy_loss": -surrogate.mean(),
        "value_loss": 0.5 * error.mean(),
        "entropy": entropy.mean(),
        "approx_kl": ((ratio - 1) - np.log(ratio)).mean(),
        "clip_fraction": outside.mean(),
    }
    assert 0.0 < expected["clip_fraction"] < 1.0

    parts = (obs, action, old_log_prob, advantage, old_value)
    batch = ppo.Batch(*(jnp.asarray(x, jnp.int32 if x.dtype == int else jnp.float32) for x in parts))
    total, metrics = ppo.loss(params, batch, config, spec is DISCRETE)
    assert set(metrics) == set(expected)
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-3, atol=1e-6, err_msg=name)
    weighted = expected["policy_loss"] + 0.7 * expected["value_loss"] - 0.03 * expected["entropy"]
    np.testing.assert_allclose(total, weighted, rtol=1e-3, atol=1e-5)


class EpisodeLoop:
    """Returns of episodes across rollouts, step by step; the discounted ones normalise the reward."""

    def __init__(self, config: ppo.Config) -> None:
        self.config = config
        self.discounted, self.undiscounted = np.zeros((2, config.num_envs))
        self.seen: list[float] = []

    def rollout(self, rollout: ppo.Rollout) -> tuple[list[float], Array]:
        """Returns of the episodes that finished, and the normalised rewards."""
        finished: list[float] = []
        for t in range(self.config.num_steps):
            for n in range(self.config.num_envs):
                reward = float(rollout.reward[t, n])
                self.discounted[n] = self.config.gamma * self.discounted[n] + reward
                self.undiscounted[n] += reward
                self.seen.append(self.discounted[n])
                ended = bool(rollout.terminated[t, n]) or bool(rollout.truncated[t, n])
                if ended:
                    finished.append(self.undiscounted[n])
                if ended or (bool(rollout.cut) and t == self.config.num_steps - 1):
                    self.discounted[n] = self.undiscounted[n] = 0.0
        scaled = np.asarray(rollout.reward, np.float64) / np.sqrt(np.var(self.seen))
        return finished, np.clip(scaled, -self.config.clip_obs, self.config.clip_obs)


def advantages(
    config: ppo.Config, rollout: ppo.Rollout, reward: Array, value: Array, next_value: Array
) -> Array:
    result, following = np.zeros(reward.shape), np.zeros(config.num_envs)
    for t in reversed(range(config.num_steps)):
        cut = bool(rollout.cut) and t == config.num_steps - 1
        ended = np.asarray(rollout.terminated[t]) | np.asarray(rollout.truncated[t]) | cut
        delta = reward[t] + config.gamma * np.where(rollout.terminated[t], 0.0, next_value[t]) - value[t]
        result[t] = following = delta + np.where(ended, 0.0, config.gamma * config.gae_lambda * following)
    return result


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
def test_preparing_rollouts_equals_a_loop(spec: Spec) -> None:
    # clip_obs is small enough that it clips both observations and rewards.
    config = dataclasses.replace(SMALL, gamma=0.9, clip_obs=1.2)
    state = ppo.init(jax.random.key(0), config, spec)
    state = dataclasses.replace(state, params=perturbed(state.params, 0, 0.3))
    loop, seen_obs = EpisodeLoop(config), np.zeros((0, 3))
    plan = [(0.2, False), (0.0, False), (0.2, True), (0.0, True), (0.3, False)]
    for i, (ends, cut) in enumerate(plan):
        rollout = random_rollout(i, config, spec, ends=ends, cut=cut)
        mean, std = (seen_obs.mean(0), seen_obs.std(0)) if i else (np.zeros(3), np.ones(3))
        obs, next_obs = (
            np.clip((np.asarray(o) - mean) / std, -1.2, 1.2) for o in (rollout.obs, rollout.next_obs)
        )
        finished, reward = loop.rollout(rollout)
        value, next_value = (network(state.params["critic"], o)[..., 0] for o in (obs, next_obs))
        seen_obs = np.concatenate([seen_obs, np.asarray(rollout.obs).reshape(-1, 3)])

        state, batch, metrics = prepare(state, rollout, config)
        close: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}
        np.testing.assert_allclose(batch.obs, obs.reshape(-1, 3), **close)
        np.testing.assert_allclose(batch.value, value.reshape(-1), **close)
        np.testing.assert_array_equal(batch.action, np.asarray(rollout.action).reshape(24, *spec_shape(spec)))
        expected = advantages(config, rollout, reward, value, next_value)
        np.testing.assert_allclose(batch.advantage, expected.reshape(-1), **close)
        log_prob, _ = policy_terms(state.params, obs, np.asarray(rollout.action))
        np.testing.assert_allclose(batch.log_prob, log_prob.reshape(-1), **close)
        np.testing.assert_allclose(state.obs_stats.mean, seen_obs.mean(0), **close)
        np.testing.assert_allclose(state.obs_stats.var, seen_obs.var(0), **close)
        np.testing.assert_allclose(state.return_stats.var, np.var(loop.seen), **close)
        np.testing.assert_allclose(state.returns.under_way, [loop.discounted, loop.undiscounted], **close)
        assert int(metrics["episodes"]) == len(finished)
        np.testing.assert_allclose(metrics["return"], np.mean(finished) if finished else 0.0, **close)
        target = expected + value
        explained = 1 - np.var(expected) / np.var(target)
        np.testing.assert_allclose(metrics["explained_variance"], explained, rtol=1e-2, atol=1e-2)


def spec_shape(spec: Spec) -> tuple[int, ...]:
    return () if spec is DISCRETE else (2,)


def test_the_running_return_begins_with_the_first_finished_episode_and_follows_their_mean() -> None:
    state = ppo.init(jax.random.key(0), SMALL, DISCRETE)
    assert int(state.returns.finished) == 0
    assert float(state.returns.performance) == -np.inf
    state, _, _ = prepare(state, random_rollout(0, SMALL, DISCRETE, ends=0.0, cut=True), SMALL)
    assert int(state.returns.finished) == 0, "an episode that was cut short says nothing about the policy"
    assert float(state.returns.performance) == -np.inf
    state, _, metrics = prepare(state, random_rollout(1, SMALL, DISCRETE, ends=0.3), SMALL)
    assert state.returns.running == metrics["return"]
    before = float(state.returns.running)
    state, _, metrics = prepare(state, random_rollout(2, SMALL, DISCRETE, ends=0.3), SMALL)
    low, high = sorted((before, float(metrics["return"])))
    assert low < float(state.returns.running) < high
    before = float(state.returns.running)
    state, _, _ = prepare(state, random_rollout(3, SMALL, DISCRETE, ends=0.0), SMALL)
    assert float(state.returns.running) == before


def test_switched_off_normalisation_leaves_numbers_alone() -> None:
    config = dataclasses.replace(SMALL, normalize_obs=False, normalize_reward=False, gae_lambda=0.0)
    state = ppo.init(jax.random.key(0), config, DISCRETE)
    rollout = random_rollout(0, config, DISCRETE, ends=0.0)
    rollout = dataclasses.replace(rollout, terminated=jnp.ones_like(rollout.terminated))
    after, batch, _ = prepare(state, rollout, config)
    np.testing.assert_array_equal(batch.obs, np.asarray(rollout.obs).reshape(-1, 3))
    np.testing.assert_allclose(
        batch.advantage + batch.value, np.asarray(rollout.reward).reshape(-1), rtol=1e-5, atol=1e-5
    )
    assert float(after.obs_stats.count) == float(after.return_stats.count) == 0.0


def test_one_minibatch_of_one_epoch_is_one_step_of_clipped_adam() -> None:
    config = dataclasses.replace(
        SMALL,
        update_epochs=1,
        num_minibatches=1,
        total_timesteps=2 * SMALL.steps_per_update,
        learning_rate=0.01,
        max_grad_norm=0.05,
    )
    state = ppo.init(jax.random.key(0), config, CONTINUOUS)
    update = jax.jit(ppo.update, static_argnames="config")
    # optax is the reference for Adam; half of the updates are done after the first, so half of the rate is left.
    moments = optax.scale_by_adam(eps=1e-5).init(state.params)
    for i, rate in enumerate([0.01, 0.005]):
        rollout = random_rollout(i, config, CONTINUOUS)
        batch = prepare(state, rollout, config)[1]
        grads, _ = gradient(state.params, batch, config, discrete=False)
        norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
        assert norm > config.max_grad_norm
        grads = jax.tree.map(lambda g, norm=norm: g * (config.max_grad_norm / norm), grads)
        steps, moments = optax.scale_by_adam(eps=1e-5).update(grads, moments)
        expected = jax.tree.map(lambda p, s, rate=rate: p - rate * s, state.params, steps)
        state, metrics = update(state, rollout, config)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state.params, expected
        )
        np.testing.assert_allclose(metrics["approx_kl"], 0.0, atol=1e-5)
        assert metrics["clip_fraction"] == 0.0
    assert int(state.step) == 2


def test_the_learning_rate_falls_linearly_over_all_gradient_steps() -> None:
    config = dataclasses.replace(
        SMALL, learning_rate=1.0, learning_rate_end=0.5, total_timesteps=5 * SMALL.steps_per_update
    )
    schedule = ppo.learning_rate(config)
    steps = 5 * config.update_epochs * config.num_minibatches
    np.testing.assert_allclose(
        [schedule(0), schedule(steps // 2), schedule(steps), schedule(2 * steps)], [1, 0.75, 0.5, 0.5]
    )


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
def test_actions_are_those_of_the_policy_for_normalised_observations(spec: Spec) -> None:
    state = ppo.init(jax.random.key(0), SMALL, spec)
    params = perturbed(state.params, 3, 1.0)
    stats = state.obs_stats.update(jnp.asarray(random_rollout(0, SMALL, spec).obs.reshape(-1, 3)))
    state = dataclasses.replace(state, params=params, obs_stats=stats)
    obs = np.random.default_rng(1).normal(2.0, 3.0, size=(3, 3)).astype(np.float32)
    noise = ppo.action_noise(jax.random.key(1), (5, 3), spec)
    assert noise.shape == (5, 3, spec.action.num_outputs)
    outputs = network(
        params["actor"], np.clip((obs - np.asarray(stats.mean)) / np.sqrt(np.asarray(stats.var)), -10, 10)
    )
    for each in noise:
        action = ppo.act(state, jnp.asarray(obs), each, SMALL)
        if spec is DISCRETE:
            np.testing.assert_array_equal(action, np.argmax(outputs + np.asarray(each), -1))
        else:
            expected = outputs + np.exp(np.asarray(params["actor"]["log_std"])) * np.asarray(each)
            np.testing.assert_allclose(action, expected, rtol=1e-3, atol=1e-4)
