"""SAC's losses against their definitions in NumPy, and their gradients against finite differences of those."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from prune_rl.learners import sac
from prune_rl.learners.distributions import Categorical, SquashedGaussian
from prune_rl.learners.replay_buffer import Transitions
from prune_rl.learners.sac import values as sac_values
from prune_rl.learners.sac.actor import actor_loss
from prune_rl.learners.sac.critic import critic_loss, critic_target
from prune_rl.learners.sac.temperature import temperature_loss
from prune_rl.learners.sac.values import Architecture
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, SMALL_SAC, random_batch, random_params
from tests.learners.sac import sac_reference as reference

Array = np.ndarray
KINDS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
ROWS = 12
ALPHA = 0.3


class Case(NamedTuple):
    """Random networks and a random batch; ``noise`` is None for Discrete actions."""

    params: Any
    batch: Transitions
    noise: Array | None
    discrete: bool

    @property
    def behind_the_actor(self) -> tuple[Any, ...]:
        """The arguments of the soft value and of the actor's loss that follow the actor."""
        noise = np.zeros((ROWS, 2)) if self.noise is None else self.noise
        alpha = jnp.float32(ALPHA)
        return (
            self.params["critic"],
            alpha,
            self.batch.obs,
            jnp.asarray(noise, jnp.float32),
            TANH[self.discrete],
        )

    @property
    def obs(self) -> Array:
        return np.asarray(self.batch.obs, np.float64)

    @property
    def actor(self) -> Any:
        return reference.to_numpy(self.params["actor"])

    @property
    def critic(self) -> Any:
        return reference.to_numpy(self.params["critic"])


@functools.cache
def case(spec: Spec) -> Case:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: sac.init(jax.random.key(0), SMALL_SAC, spec).params)
    params = random_params(0, shapes, 0.7)
    discrete = spec is DISCRETE
    batch = random_batch(0, dataclasses.replace(SMALL_SAC, batch_size=ROWS), spec)
    return Case(params, batch, None if discrete else rng.normal(size=(ROWS, 2)), discrete)


STATIC = "arch"
TANH = {kind: Architecture("tanh", kind) for kind in (False, True)}
policy = quick_jit(sac_values.policy, static_argnames=STATIC)
q_values = quick_jit(sac_values.q_values, static_argnames=STATIC)
soft_value = quick_jit(sac_values.soft_value, static_argnames=STATIC)
actor_gradient = quick_jit(jax.value_and_grad(actor_loss, has_aux=True), static_argnames=STATIC)
critic_gradient = quick_jit(jax.value_and_grad(critic_loss), static_argnames=STATIC)


def assert_close(got: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, expected)


def test_a_discrete_policy_reads_logits() -> None:
    chosen = case(DISCRETE)
    distribution = policy(chosen.params["actor"], chosen.batch.obs, TANH[True])
    assert isinstance(distribution, Categorical)
    logits = reference.network(chosen.actor, chosen.obs, "tanh")
    np.testing.assert_allclose(distribution.logits, logits, **CLOSE)


def test_a_box_policy_reads_means_first_and_then_log_stds_within_limits() -> None:
    chosen = case(CONTINUOUS)
    actor = chosen.params["actor"]
    for shift in (0.0, 30.0, -50.0):
        moved = {**actor, "head": {**actor["head"], "bias": actor["head"]["bias"] + shift}}
        distribution = policy(moved, chosen.batch.obs, TANH[False])
        assert isinstance(distribution, SquashedGaussian)
        outputs = reference.network(reference.to_numpy(moved), chosen.obs, "tanh")
        np.testing.assert_allclose(distribution.mean, outputs[:, :2], **CLOSE)
        expected = {0.0: outputs[:, 2:], 30.0: np.full((ROWS, 2), 2.0), -50.0: np.full((ROWS, 2), -20.0)}
        np.testing.assert_allclose(distribution.log_std, expected[shift], **CLOSE)


@KINDS
def test_q_values_are_those_of_each_critic_at_the_action(spec: Spec) -> None:
    chosen = case(spec)
    batch = chosen.batch
    q = q_values(chosen.params["critic"], batch.obs, batch.action, TANH[chosen.discrete])
    expected = reference.q_values(chosen.critic, chosen.obs, np.asarray(batch.action), "tanh")
    assert q.shape == (2, ROWS)
    np.testing.assert_allclose(q, expected, **CLOSE)
    assert np.abs(expected[0] - expected[1]).min() > 1e-3, "two critics, not one twice"


@KINDS
def test_the_soft_value_is_the_lesser_critics_value_plus_the_entropy_bonus(spec: Spec) -> None:
    chosen = case(spec)
    value, entropy = soft_value(chosen.params["actor"], *chosen.behind_the_actor)
    expected = reference.soft_value(chosen.actor, chosen.critic, ALPHA, chosen.obs, chosen.noise, "tanh")
    np.testing.assert_allclose(value, expected[0], **CLOSE)
    np.testing.assert_allclose(entropy, expected[1], **CLOSE)
    if chosen.noise is None:
        first, second = (reference.network(m, chosen.obs, "tanh") for m in reference.both(chosen.critic))
    else:
        mean, std = reference.normal_parts(chosen.actor, chosen.obs, "tanh")
        action = np.tanh(mean + std * chosen.noise)
        first, second = reference.q_values(chosen.critic, chosen.obs, action, "tanh")
    assert 0.0 < np.mean(first < second) < 1.0, "each critic must be the lesser one somewhere in this test"


def test_the_sampled_entropy_is_that_of_the_squashed_distribution_on_average() -> None:
    # One dimension: −∫ p log p over the actions, by quadrature, with the density of the change of variables.
    mean, log_std = 0.4, -0.3
    actor = {"head": {"kernel": jnp.zeros((1, 2)), "bias": jnp.array([mean, log_std])}}
    critic = {"head": {"kernel": jnp.zeros((2, 2, 1)), "bias": jnp.zeros((2, 1))}}

    def integrand(a: float) -> float:
        p = scipy.stats.norm.pdf(np.arctanh(a), mean, np.exp(log_std)) / (1.0 - a**2)
        return float(-p * np.log(p)) if p > 0 else 0.0

    expected, _ = scipy.integrate.quad(integrand, -1.0 + 1e-9, 1.0 - 1e-9, limit=200)
    noise = np.random.default_rng(1).normal(size=(40_000, 1))
    value, entropy = soft_value(
        actor,
        critic,
        jnp.float32(ALPHA),
        jnp.ones((40_000, 1)),
        jnp.asarray(noise, jnp.float32),
        TANH[False],
    )
    error = 4.0 * float(np.std(entropy)) / 200.0
    assert error < 0.03
    assert float(np.mean(entropy)) == pytest.approx(expected, abs=error)
    np.testing.assert_allclose(value, ALPHA * entropy, rtol=1e-5)


@pytest.mark.parametrize(
    ("terminated", "scale", "expected"),
    [(False, 1.0, 3.0 + 0.9 * 10.0), (True, 1.0, 3.0), (False, 0.5, 1.5 + 0.9 * 10.0), (True, 0.5, 1.5)],
)
def test_the_target_bootstraps_unless_the_episode_terminated(
    terminated: bool, scale: float, expected: float
) -> None:
    batch = Transitions(
        obs=jnp.zeros((2, 3)),
        action=jnp.zeros(2, jnp.int32),
        reward=jnp.full(2, 3.0),
        terminated=jnp.array([terminated, False]),
        next_obs=jnp.zeros((2, 3)),
    )
    target = critic_target(batch, jnp.array([10.0, -1.0]), 0.9, scale)
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, [expected, 3.0 * scale - 0.9], rtol=1e-6)


@KINDS
def test_the_critic_loss_and_its_gradient_equal_their_definitions(spec: Spec) -> None:
    chosen = case(spec)
    target = np.random.default_rng(2).normal(size=ROWS)
    action = np.asarray(chosen.batch.action)

    def loss(critic: Any) -> float:
        return reference.critic_loss(critic, chosen.obs, action, target, "tanh")

    value, slope = critic_gradient(
        chosen.params["critic"], chosen.batch, jnp.asarray(target, jnp.float32), TANH[chosen.discrete]
    )
    np.testing.assert_allclose(value, loss(chosen.critic), **CLOSE)
    assert_close(slope, reference.gradient(loss, chosen.critic))


@KINDS
def test_the_actor_loss_and_its_gradient_equal_their_definitions(spec: Spec) -> None:
    chosen = case(spec)

    def loss(actor: Any) -> float:
        return reference.actor_loss(actor, chosen.critic, ALPHA, chosen.obs, chosen.noise, "tanh")

    (value, entropy), slope = actor_gradient(chosen.params["actor"], *chosen.behind_the_actor)
    np.testing.assert_allclose(value, loss(chosen.actor), **CLOSE)
    _, entropies = reference.soft_value(chosen.actor, chosen.critic, ALPHA, chosen.obs, chosen.noise, "tanh")
    np.testing.assert_allclose(entropy, entropies.mean(), **CLOSE)
    assert_close(slope, reference.gradient(loss, chosen.actor))


@pytest.mark.parametrize(
    ("mean", "log_std"), [(30.0, 0.0), (-30.0, 0.0), (12.0, 5.0), (-12.0, -40.0), (0.0, 5.0), (300.0, -1.0)]
)
def test_saturated_actions_keep_a_finite_loss_and_the_right_gradient(mean: float, log_std: float) -> None:
    # In float32 tanh(12) is 1, where log(1 − a²) and the slope of arctanh are infinite.
    chosen = case(CONTINUOUS)
    head = chosen.params["actor"]["head"]
    bias = jnp.array([mean, -mean, log_std, log_std])
    actor = {**chosen.params["actor"], "head": {"kernel": 0.1 * head["kernel"], "bias": bias}}
    (value, _), slope = actor_gradient(actor, *chosen.behind_the_actor)

    def loss(actor: Any) -> float:
        return reference.actor_loss(actor, chosen.critic, ALPHA, chosen.obs, chosen.noise, "tanh")

    np.testing.assert_allclose(value, loss(reference.to_numpy(actor)), rtol=1e-4)
    expected = reference.gradient(loss, reference.to_numpy(actor))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), slope, expected)
    if not -20.0 < log_std < 2.0:
        assert not np.any(slope["head"]["bias"][2:]), "beyond its limits a log_std has no influence"


def test_a_certain_discrete_policy_keeps_a_finite_loss_and_gradient() -> None:
    chosen = case(DISCRETE)
    bias = jnp.array([500.0, 0.0, -500.0, 0.0])
    actor = {**chosen.params["actor"], "head": {**chosen.params["actor"]["head"], "bias": bias}}
    (value, entropy), slope = actor_gradient(actor, *chosen.behind_the_actor)
    q = np.minimum(*(reference.network(m, chosen.obs, "tanh") for m in reference.both(chosen.critic)))
    np.testing.assert_allclose(value, -q[:, 0].mean(), **CLOSE)
    assert float(entropy) == 0.0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize(("entropy", "goal"), [(1.5, 0.5), (0.5, 1.5), (-3.0, -2.0)])
def test_the_temperature_falls_while_the_entropy_is_above_its_target(entropy: float, goal: float) -> None:
    log_alpha = jnp.float32(np.log(ALPHA))
    value, slope = jax.value_and_grad(temperature_loss)(log_alpha, jnp.float32(entropy), goal)
    np.testing.assert_allclose([value, slope], [ALPHA * (entropy - goal)] * 2, rtol=1e-5)
    # The entropy is a number for this loss, so it cannot train the policy.
    assert float(jax.grad(temperature_loss, argnums=1)(log_alpha, jnp.float32(entropy), goal)) == 0.0
