"""Action distributions against scipy.stats, their samples against their probabilities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from prune_rl.learners.distributions import Categorical, Gaussian, SquashedGaussian

SAMPLES = 20_000


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1.0, 30.0]))
def test_categorical_equals_scipy(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(4, 3, 5))).astype(np.float32)
    action = rng.integers(5, size=(4, 3))
    policy = Categorical(jnp.asarray(logits))
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    expected = np.take_along_axis(log_p, action[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        policy.log_prob(jnp.asarray(action, jnp.int32)), expected, rtol=1e-4, atol=1e-5
    )
    entropy = scipy.stats.entropy(np.exp(log_p), axis=-1)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 3]))
def test_gaussian_equals_scipy(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    mean, action = rng.normal(scale=2.0, size=(2, 6, size)).astype(np.float32)
    log_std = rng.uniform(-2.0, 2.0, size).astype(np.float32)
    policy = Gaussian(jnp.asarray(mean), jnp.asarray(log_std))
    normal = scipy.stats.norm(mean.astype(np.float64), np.exp(log_std.astype(np.float64)))
    np.testing.assert_allclose(
        policy.log_prob(jnp.asarray(action)), normal.logpdf(action).sum(-1), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(policy.entropy(), normal.entropy().sum(-1), rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
def test_kl_divergences_equal_their_definitions(seed: int) -> None:
    """The categorical one by scipy, the Gaussian one as cross-entropy minus entropy, per component."""
    rng = np.random.default_rng(seed)
    logits, others = rng.normal(size=(2, 4, 5)).astype(np.float32)
    p, q = (scipy.special.softmax(x.astype(np.float64), axis=-1) for x in (logits, others))
    divergence = Categorical(jnp.asarray(logits)).kl_divergence(Categorical(jnp.asarray(others)))
    np.testing.assert_allclose(divergence, scipy.special.rel_entr(p, q).sum(-1), rtol=1e-3, atol=1e-6)

    mean, other_mean = rng.normal(size=(2, 6, 3)).astype(np.float32)
    log_std, other_log_std = rng.uniform(-1.0, 1.0, size=(2, 3)).astype(np.float32)
    std, other_std = np.exp(np.array([log_std, other_log_std], np.float64))
    cross = np.log(other_std) + (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2)
    expected = (cross - np.log(std) - 0.5).sum(-1)
    wide = Gaussian(jnp.asarray(mean), jnp.broadcast_to(jnp.asarray(log_std), mean.shape))
    for policy in (wide, Gaussian(jnp.asarray(mean), jnp.asarray(log_std))):
        divergence = policy.kl_divergence(Gaussian(jnp.asarray(other_mean), jnp.asarray(other_log_std)))
        np.testing.assert_allclose(divergence, expected, rtol=1e-3, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    policy = Categorical(jnp.array([1e4, -1e4, 0.0]))
    assert float(policy.log_prob(jnp.int32(1))) == pytest.approx(-2e4)
    assert float(policy.entropy()) == 0.0
    gradient = jax.grad(lambda logits: Categorical(logits).log_prob(jnp.int32(1)))(policy.logits)
    np.testing.assert_allclose(gradient, [-1.0, 1.0, 0.0], atol=1e-6)


def test_the_gradient_of_the_log_probability_is_one_hot_minus_probabilities() -> None:
    logits = jnp.array([0.3, -1.0, 2.0])
    gradient = jax.grad(lambda x: Categorical(x).log_prob(jnp.int32(2)))(logits)
    np.testing.assert_allclose(
        gradient, [0.0, 0.0, 1.0] - scipy.special.softmax(logits), rtol=1e-5, atol=1e-6
    )


def test_categorical_samples_with_its_probabilities() -> None:
    logits = jnp.array([[0.0, 1.0, -1.0, 3.0], [2.0, 2.0, -20.0, 0.0]])
    noise = Categorical.sample_noise(jax.random.key(0), (SAMPLES, *logits.shape))
    actions = jax.vmap(Categorical(logits).sample)(noise)
    assert (actions.dtype, actions.shape) == (jnp.int32, (SAMPLES, 2))
    for row in range(2):
        expected = SAMPLES * scipy.special.softmax(np.asarray(logits[row], np.float64))
        counts = np.bincount(actions[:, row], minlength=4)
        likely = expected > 5
        assert counts[~likely].sum() <= 1
        assert scipy.stats.chisquare(counts[likely], expected[likely], sum_check=False).pvalue > 1e-3


def test_gaussian_samples_with_its_moments() -> None:
    policy = Gaussian(jnp.array([1.0, -2.0]), jnp.array([math.log(0.5), 1.0]))
    noise = Gaussian.sample_noise(jax.random.key(1), (SAMPLES, 2))
    actions = np.asarray(jax.vmap(policy.sample)(noise))
    assert actions.dtype == np.float32
    for column, (mean, std) in enumerate([(1.0, 0.5), (-2.0, math.e)]):
        assert scipy.stats.kstest(actions[:, column], scipy.stats.norm(mean, std).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(actions.T)[0, 1]) < 4 / math.sqrt(SAMPLES)


def test_the_same_noise_gives_the_same_action() -> None:
    for policy in (Categorical(jnp.zeros((3, 4))), Gaussian(jnp.zeros((3, 4)), jnp.zeros(4))):
        noise = policy.sample_noise(jax.random.key(2), (3, 4))
        np.testing.assert_array_equal(policy.sample(noise), policy.sample(noise))
        assert not np.array_equal(noise, policy.sample_noise(jax.random.key(3), (3, 4)))


def squashed_log_density(mean: ArrayLike, log_std: ArrayLike, noise: ArrayLike) -> np.ndarray:
    """The normal density at x over the slope of tanh there, 1 / cosh²x, in float64."""
    mean, log_std, noise = (np.asarray(x, np.float64) for x in (mean, log_std, noise))
    x = mean + np.exp(log_std) * noise
    log_cosh = np.logaddexp(x, -x) - np.log(2.0)
    density: np.ndarray = (scipy.stats.norm(mean, np.exp(log_std)).logpdf(x) + 2.0 * log_cosh).sum(-1)
    return density


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 3]))
def test_squashed_gaussian_equals_the_change_of_variables(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    mean, noise = rng.normal(scale=1.0, size=(2, 6, size)).astype(np.float32)
    log_std = rng.uniform(-2.0, 0.5, (6, size)).astype(np.float32)
    parts = (jnp.asarray(x) for x in (mean, log_std))
    action, log_prob = SquashedGaussian(*parts).sample_and_log_prob(jnp.asarray(noise))
    x = mean + np.exp(log_std.astype(np.float64)) * noise
    np.testing.assert_allclose(action, np.tanh(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_prob, squashed_log_density(mean, log_std, noise), rtol=1e-4, atol=1e-4)
    naive = scipy.stats.norm(mean, np.exp(log_std.astype(np.float64))).logpdf(x) - np.log(1 - np.tanh(x) ** 2)
    moderate = np.all(np.abs(x) < 3.0, axis=-1)
    np.testing.assert_allclose(log_prob[moderate], naive.sum(-1)[moderate], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("x", [-88.0, -20.0, -9.5, 0.0, 9.5, 20.0, 30.0, 88.0])
def test_a_saturated_squash_keeps_its_density_and_gradient(x: float) -> None:
    # In float32 tanh(9.5) is 1, and log(1 − tanh²) would be −inf.
    noise = jnp.array([0.7])

    def log_prob(mean: jax.Array, log_std: jax.Array) -> jax.Array:
        return SquashedGaussian(mean, log_std).sample_and_log_prob(noise)[1]

    mean, log_std = jnp.array([x]), jnp.array([-1.0])
    np.testing.assert_allclose(
        log_prob(mean, log_std), squashed_log_density(mean, log_std, noise), rtol=2e-6, atol=1e-5
    )
    slope, slope_of_std = jax.grad(log_prob, argnums=(0, 1))(mean, log_std)
    spread = math.exp(-1.0) * 0.7
    np.testing.assert_allclose(slope, [2.0 * math.tanh(x + spread)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        slope_of_std, [-1.0 + 2.0 * spread * math.tanh(x + spread)], rtol=1e-5, atol=1e-6
    )


def test_the_squashed_density_integrates_to_one_over_the_actions() -> None:
    x = np.linspace(-8.0, 8.0, 20_001)
    mean, log_std = 0.3, -0.4
    noise = ((x - mean) / math.exp(log_std)).astype(np.float32)[:, None]
    policy = SquashedGaussian(jnp.full((len(x), 1), mean), jnp.full((len(x), 1), log_std))
    action, log_prob = policy.sample_and_log_prob(jnp.asarray(noise))
    density = np.exp(np.asarray(log_prob, np.float64))
    assert np.trapezoid(density, np.asarray(action, np.float64)[:, 0]) == pytest.approx(1.0, abs=1e-3)


def clipped_divergence(
    mean: float, other: float, std: float, low: float, high: float, other_std: float
) -> float:
    """KL of two normal distributions clipped to [low, high], by quadrature in float64."""
    first, second = scipy.stats.norm(mean, std), scipy.stats.norm(other, other_std)
    at_bounds = [
        tail * (log_tail - other_log_tail)
        for tail, log_tail, other_log_tail, bound in (
            (first.cdf(low), first.logcdf(low), second.logcdf(low), low),
            (first.sf(high), first.logsf(high), second.logsf(high), high),
        )
        if math.isfinite(bound)
    ]
    start, end = max(low, mean - 12.0 * std), min(high, mean + 12.0 * std)
    x = np.linspace(start, end, 100_001) if end > start else np.zeros(1)
    return sum(at_bounds) + float(np.trapezoid(first.pdf(x) * (first.logpdf(x) - second.logpdf(x)), x))


@pytest.mark.parametrize(
    ("mean", "other", "std", "low", "high"),
    [
        (0.0, 0.3, 0.4, -1.0, 1.0),
        (0.9, 1.4, 0.3, -1.0, 1.0),
        (1.2, 1.6, 0.3, -1.0, 1.0),
        (3.0, 7.0, 0.3, -1.0, 1.0),
        (3.0, -2.0, 0.3, -1.0, 1.0),
        (-5.0, -1.2, 0.2, -1.0, 1.0),
        (1.0, 0.0, 0.5, -math.inf, math.inf),
        (0.5, 0.1, 0.2, 0.0, math.inf),
        (0.2, 0.4, 0.2, -math.inf, 0.3),
    ],
)
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_the_divergence_of_clipped_actions(
    mean: float, other: float, std: float, low: float, high: float, ratio: float
) -> None:
    policy, bounds = Gaussian(jnp.array([mean]), jnp.log(jnp.array([std]))), jnp.array([[low], [high]])

    def divergence(other: jax.Array, log_std: jax.Array) -> jax.Array:
        return policy.clipped_kl_divergence(Gaussian(other, log_std), bounds)

    def expected(shift: float = 0.0, wider: float = 0.0) -> float:
        return clipped_divergence(mean, other + shift, std, low, high, ratio * std * math.exp(wider))

    at = jnp.array([other]), jnp.log(jnp.array([ratio * std]))
    found = float(divergence(*at))
    assert found == pytest.approx(expected(), rel=1e-4, abs=1e-6)
    normal = float(policy.kl_divergence(Gaussian(*at)))
    assert found <= normal * (1.0 + 1e-6), "clipping can only bring two distributions closer"
    h = 1e-4
    slopes = [(expected(h) - expected(-h)) / (2.0 * h), (expected(0.0, h) - expected(0.0, -h)) / (2.0 * h)]
    gradient = jax.grad(divergence, argnums=(0, 1))(*at)
    assert [float(x[0]) for x in gradient] == pytest.approx(slopes, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("mean", [-1e4, -40.0, 0.0, 40.0, 1e4])
@pytest.mark.parametrize("other", [-1e4, -40.0, 0.0, 40.0, 1e4])
@pytest.mark.parametrize("log_std", [-5.0, -2.0, 2.0])
def test_the_divergence_of_clipped_actions_is_finite_far_beyond_the_bounds(
    mean: float, other: float, log_std: float
) -> None:
    policy, bounds = Gaussian(jnp.array([mean]), jnp.array([-2.0])), jnp.array([[-1.0], [1.0]])
    value, slope = jax.value_and_grad(
        lambda x, y: policy.clipped_kl_divergence(Gaussian(x, y), bounds), argnums=(0, 1)
    )(jnp.array([other]), jnp.array([log_std]))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    if np.sign(mean) == np.sign(other) and log_std == -2.0:
        assert float(value) == pytest.approx(0.0, abs=1e-5)
