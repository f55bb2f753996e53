"""SAC's gradient step against NumPy, Polyak averaging, and which way the temperature goes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from prune_rl.learners import sac
from prune_rl.learners.optimizer import learning_rate
from prune_rl.learners.sac import learner, temperature
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import (
    CONTINUOUS,
    DISCRETE,
    SMALL_SAC,
    arch_of,
    random_batch,
    random_noise,
    random_sac_state,
)
from tests.learners.sac import sac_reference as reference

Array = np.ndarray
LOSSES = {"critic_loss", "actor_loss", "entropy", "alpha", "q_target"}
gradient_step = quick_jit(learner.gradient_step, static_argnames=("config", "arch"))


def assert_trees_close(got: Any, expected: Any, *, rtol: float, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, expected)


FALLING = dataclasses.replace(SMALL_SAC, learning_rate_end=0.004, reward_scale=1.5, init_alpha=0.2)


def assert_averaged(networks: sac.Networks, before: sac.Networks) -> None:
    """The target critics are those of before and the new critics, 9 : 1."""
    expected = jax.tree.map(
        lambda q, t: 0.1 * np.asarray(q, np.float64) + 0.9 * np.asarray(t),
        networks.params["critic"],
        before.target_critic,
    )
    assert_trees_close(networks.target_critic, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "targets"),
    [
        ({}, [0.5 * math.log(4.0)] * 3),
        ({"entropy_backup": False}, [0.5 * math.log(4.0)] * 3),
        # From the default to a third of it, and from 0.9 to 0.3, over 30 steps.
        ({"target_entropy_end": math.log(4.0) / 6.0}, [math.log(4.0) * (0.5 - i / 90.0) for i in range(3)]),
        ({"target_entropy": 0.9, "target_entropy_end": 0.3}, [0.9, 0.88, 0.86]),
    ],
    ids=["defaults", "no entropy backup", "falling entropy target", "given falling entropy target"],
)
def test_discrete_gradient_steps_equal_adam_in_numpy(changes: dict[str, Any], targets: list[float]) -> None:
    config = dataclasses.replace(FALLING, **changes)
    state = random_sac_state(config, DISCRETE)
    networks = state.networks
    # The rate falls from 0.01 to 0.004 over the 30 gradient steps of the updates after warm-up.
    rates = [0.01 - 0.0002 * i for i in range(3)]
    learner = reference.Learner(
        networks,
        rates,
        activation="tanh",
        gamma=0.99,
        tau=0.1,
        scale=1.5,
        entropy_backup=config.entropy_backup,
    )
    for i in range(3):
        batch = random_batch(i, config, DISCRETE)
        expected = learner(batch, None, targets[i])
        before = networks
        networks, metrics = gradient_step(
            networks, batch, random_noise(i, networks, config), state.masks, config, arch_of(config, DISCRETE)
        )
        assert set(metrics) == LOSSES
        for name in LOSSES:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        close: dict[str, float] = {"rtol": 1e-3, "atol": 5e-5}
        assert_trees_close(networks.params, {"actor": learner.actor, "critic": learner.critic}, **close)
        assert_trees_close(networks.target_critic, learner.target, **close)
        assert_averaged(networks, before)
        np.testing.assert_allclose(networks.log_alpha, learner.log_alpha, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 0.9), (0.3, 0.0)], ids=["no temperature", "no future"])
def test_box_gradient_steps_equal_adam_in_numpy_where_noise_does_not_matter(
    alpha: float, gamma: float
) -> None:
    # The least log_std makes the action certain. The noise is left in the value by way of log π only.
    config = dataclasses.replace(SMALL_SAC, alpha=alpha, gamma=gamma)
    state = random_sac_state(config, CONTINUOUS)
    networks = state.networks
    head = networks.params["actor"]["head"]
    actor = {
        **networks.params["actor"],
        "head": {**head, "bias": head["bias"] - jnp.array([0.0, 0.0, 40.0, 40.0])},
    }
    networks = dataclasses.replace(networks, params={**networks.params, "actor": actor})
    learner = reference.Learner(networks, [0.01] * 3, activation="tanh", gamma=gamma, tau=0.1, scale=1.0)
    for i in range(3):
        batch = random_batch(i, config, CONTINUOUS)
        expected = learner(batch, np.zeros((config.batch_size, 2)), None)
        before = networks
        networks, metrics = gradient_step(
            networks,
            batch,
            random_noise(i, networks, config),
            state.masks,
            config,
            arch_of(config, CONTINUOUS),
        )
        for name in ("critic_loss", "q_target"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        close: dict[str, float] = {"rtol": 1e-3, "atol": 5e-5}
        assert_trees_close(networks.params, {"actor": learner.actor, "critic": learner.critic}, **close)
        assert_trees_close(networks.target_critic, learner.target, **close)
        assert_averaged(networks, before)
        assert float(metrics["alpha"]) == pytest.approx(alpha)
        assert networks.log_alpha == before.log_alpha, "a fixed temperature stays"


def certain(state: sac.State, bias: Array) -> sac.Networks:
    """Networks whose actor puts out ``bias``, whatever it observes."""
    head = state.params["actor"]["head"]
    actor = {
        **state.params["actor"],
        "head": {"kernel": jnp.zeros_like(head["kernel"]), "bias": jnp.asarray(bias, jnp.float32)},
    }
    return dataclasses.replace(state.networks, params={**state.params, "actor": actor})


def logits_of_entropy(entropy: float) -> Array:
    def gap(x: float) -> float:
        return float(scipy.stats.entropy(scipy.special.softmax([x, 0.0, 0.0, 0.0]))) - entropy

    return np.array([scipy.optimize.brentq(gap, 0.0, 20.0), 0.0, 0.0, 0.0])


# The defaults are −2 for the two components of a Box, and 0.69 for four actions.
@pytest.mark.parametrize(
    ("spec", "target", "entropy", "rises"),
    [
        (CONTINUOUS, None, -1.5, False),
        (CONTINUOUS, None, -2.5, True),
        (DISCRETE, None, 0.74, False),
        (DISCRETE, None, 0.64, True),
        (DISCRETE, 0.3, 0.35, False),
        (DISCRETE, 0.3, 0.25, True),
    ],
    ids=["box above", "box below", "discrete above", "discrete below", "given above", "given below"],
)
def test_the_temperature_moves_the_entropy_towards_its_target(
    spec: Spec, target: float | None, entropy: float, rises: bool
) -> None:
    config = dataclasses.replace(FALLING, target_entropy=target)
    if spec is CONTINUOUS:
        config = dataclasses.replace(config, batch_size=256)
    state = random_sac_state(config, spec)
    if spec is DISCRETE:
        bias = logits_of_entropy(entropy)
    else:  # that of a normal of two components, narrow enough for the squashing to matter little
        bias = np.array([0.0, 0.0] + [entropy / 2.0 - 0.5 * math.log(2.0 * math.pi * math.e)] * 2)
    networks = certain(state, bias)
    after, metrics = gradient_step(
        networks,
        random_batch(0, config, spec),
        random_noise(rises, networks, config),
        state.masks,
        config,
        arch_of(config, spec),
    )
    # Of 256 samples of its own noise each; one noise for all would miss by 1.
    assert float(metrics["entropy"]) == pytest.approx(entropy, abs=1e-4 if spec is DISCRETE else 0.25)
    # Adam's first step is of the size of the learning rate.
    expected = math.log(0.2) + (0.01 if rises else -0.01)
    np.testing.assert_allclose(after.log_alpha, expected, rtol=1e-4)


@pytest.mark.parametrize("entropy_backup", [True, False])
def test_box_targets_hold_the_entropy_of_later_actions_only_when_asked(entropy_backup: bool) -> None:
    config = dataclasses.replace(SMALL_SAC, alpha=0.3, entropy_backup=entropy_backup)
    state = random_sac_state(config, CONTINUOUS)
    networks = state.networks
    batch, noise = random_batch(0, config, CONTINUOUS), random_noise(0, networks, config)
    _, metrics = gradient_step(networks, batch, noise, state.masks, config, arch_of(config, CONTINUOUS))
    actor, target = (reference.to_numpy(x) for x in (networks.params["actor"], networks.target_critic))
    value, _ = reference.soft_value(
        actor,
        target,
        0.3 if entropy_backup else 0.0,
        np.asarray(batch.next_obs, np.float64),
        np.asarray(noise[1], np.float64),
        "tanh",
    )
    expected = np.mean(batch.reward + 0.99 * np.where(batch.terminated, 0.0, value))
    np.testing.assert_allclose(metrics["q_target"], expected, rtol=1e-4, atol=1e-5)


def test_the_entropy_target_changes_linearly_and_then_stays() -> None:
    config = dataclasses.replace(SMALL_SAC, target_entropy=1.0, target_entropy_end=0.4)
    schedule = temperature.target_entropy(random_sac_state(config, DISCRETE).params, True, config)
    np.testing.assert_allclose([schedule(i) for i in (0, 15, 30, 60)], [1.0, 0.7, 0.4, 0.4], rtol=1e-6)


def test_the_learning_rate_changes_linearly_over_the_gradient_steps_after_warm_up() -> None:
    config = dataclasses.replace(SMALL_SAC, learning_rate=1.0, learning_rate_end=0.5)
    schedule = learning_rate(config)
    np.testing.assert_allclose([schedule(i) for i in (0, 15, 30, 60)], [1.0, 0.75, 0.5, 0.5])
