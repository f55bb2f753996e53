from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.pruning.importance import magnitude_importance
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.proximal import diagonal_prox, euclidean_prox, penalty_weights
from prune_rl.pruning.transforms.group_sparse import group_sparse

Array = np.ndarray[Any, Any]
INPUTS, WIDTH, OUTPUTS = 4, 8, 2  # 5 entries per group, bias included
ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus}


def make_params(seed: int = 0, inputs: int = INPUTS, width: int = WIDTH) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "hidden": {"kernel": normal(inputs, width), "bias": normal(width)},
        "out": {"kernel": normal(width, OUTPUTS), "bias": normal(OUTPUTS)},
    }


def forward(params: Any, x: jax.Array, act: Callable[[jax.Array], jax.Array] = jnp.tanh) -> jax.Array:
    hidden = act(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None, :])
    outputs: jax.Array = hidden @ params["out"]["kernel"] + params["out"]["bias"][None, :]
    return outputs


X = jnp.asarray(np.random.default_rng(1).normal(size=(32, INPUTS)), jnp.float32)
Y = jnp.sin(2.0 * X[:, :OUTPUTS]) + 0.5 * X[:, 1:2] * jnp.ones((1, OUTPUTS))
GROUPS = find_groups(forward, make_params(), X)
(NAME,) = GROUPS


def loss(params: Any, act: Callable[[jax.Array], jax.Array] = jnp.tanh) -> jax.Array:
    return jnp.mean(jnp.square(forward(params, X, act) - Y))


def trainer(tx: Any, act: Any = jnp.tanh) -> Any:
    """run(params, state, steps, **extra) -> (params, state), compiled once for any number of steps."""

    def run(params: Any, state: Any, steps: jax.Array, **extra: Any) -> Any:
        def step(_: jax.Array, carry: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, act), state, params, **extra)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, step, (params, state))

    # The programs run for milliseconds and compile for seconds, so they are compiled without much optimisation.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def train(tx: Any, params: Any, steps: int) -> tuple[Any, Any]:
    trained: tuple[Any, Any] = trainer(tx)(params, tx.init(params), steps)
    return trained


def columns(params: Any) -> Array:
    """[entries, neurons], float64."""
    return np.vstack([np.asarray(params["hidden"][leaf], np.float64) for leaf in ("kernel", "bias")])


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


# --- the two proximal operators ------------------------------------------------------------------------------

euclidean = jax.jit(lambda params, t: euclidean_prox(GROUPS, params, {NAME: t}))
diagonal = jax.jit(lambda params, t, scale: diagonal_prox(GROUPS, params, {NAME: t}, scale))


def random_problem(seed: int, low: int, high: int, d_low: int, d_high: int) -> tuple[Any, Any, jax.Array]:
    """Entries of z of magnitude 10^low … 10^high, of D 10^d_low … 10^d_high; t from 0.01 to 2 times ‖Dz‖."""
    rng = np.random.default_rng(seed)

    def spread(leaf: Any, least: int, most: int) -> Array:
        magnitudes: Array = 10.0 ** rng.uniform(least, most, np.shape(leaf))
        return magnitudes

    z = jax.tree.map(lambda p: jnp.asarray(spread(p, low, high) * np.sign(p), jnp.float32), make_params(seed))
    d = jax.tree.map(lambda p: jnp.asarray(spread(p, d_low, d_high), jnp.float32), z)
    norm = np.linalg.norm(columns(d) * columns(z), axis=0)
    return z, d, jnp.asarray(norm * 10.0 ** rng.uniform(-2.0, 0.3, WIDTH), jnp.float32)


def assert_kkt(x: Array, z: Array, d: Array, t: Array, tolerance: float) -> None:
    """0 ∈ D(x − z) + t ∂‖x‖ for every column."""
    for j in range(x.shape[1]):
        force = np.linalg.norm(d[:, j] * z[:, j])
        norm = np.linalg.norm(x[:, j])
        if norm == 0:
            assert force <= t[j] * (1 + tolerance)
        else:
            residual = d[:, j] * (x[:, j] - z[:, j]) + t[j] * x[:, j] / norm
            assert np.linalg.norm(residual) <= tolerance * max(force, t[j])


def spans(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    ends = st.integers(least, most)
    return st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair)))


exponents = spans(-6, 3)
scales = spans(-8, 2)


@given(st.integers(0, 2**31), exponents)
def test_euclidean_step_meets_its_kkt_conditions(seed: int, magnitudes: tuple[int, int]) -> None:
    z, _, t = random_problem(seed, *magnitudes, 0, 0)
    x = euclidean(z, t)
    assert_kkt(columns(x), columns(z), np.ones((INPUTS + 1, WIDTH)), np.asarray(t, np.float64), 1e-5)
    assert_same(x["out"], z["out"])


@given(st.integers(0, 2**31), exponents, scales)
def test_diagonal_step_meets_its_kkt_conditions(
    seed: int, magnitudes: tuple[int, int], scale: tuple[int, int]
) -> None:
    z, d, t = random_problem(seed, *magnitudes, *scale)
    x = diagonal(z, t, d)
    assert_kkt(columns(x), columns(z), columns(d), np.asarray(t, np.float64), 1e-5)
    assert_same(x["out"], z["out"])


@given(st.integers(0, 2**31), exponents)
def test_diagonal_step_meets_its_kkt_conditions_where_small_entries_have_large_scales(
    seed: int, magnitudes: tuple[int, int]
) -> None:
    """Then ‖x‖ is far below ‖z‖, and has to be found with relative precision."""
    z, noise, _ = random_problem(seed, *magnitudes, -1, 1)
    d = jax.tree.map(lambda z, d: jnp.clip(1e-6 * d / jnp.abs(z) ** 1.5, 1e-8, 1e3), z, noise)
    force = np.linalg.norm(columns(d) * columns(z), axis=0)
    t = jnp.asarray(force * 10.0 ** np.random.default_rng(seed).uniform(-2.0, 0.1, WIDTH), jnp.float32)
    assert_kkt(columns(diagonal(z, t, d)), columns(z), columns(d), np.asarray(t, np.float64), 1e-3)


@given(st.integers(0, 2**31), exponents)
@settings(max_examples=30)
def test_diagonal_step_with_a_unit_scale_is_the_euclidean_one(seed: int, magnitudes: tuple[int, int]) -> None:
    z, _, t = random_problem(seed, *magnitudes, 0, 0)
    one = jax.tree.map(jnp.ones_like, z)
    x, expected = columns(diagonal(z, t, one)), columns(euclidean(z, t))
    # Both are exact within float32 rounding of z, not of the shrunk x.
    assert np.all(np.abs(x - expected) <= 1e-6 * np.linalg.norm(columns(z), axis=0))


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
@settings(max_examples=30)
def test_diagonal_step_depends_on_t_over_d_alone(seed: int, factor: float) -> None:
    z, d, t = random_problem(seed, -2, 1, -3, 0)
    scaled = jax.tree.map(lambda leaf: leaf * jnp.float32(factor), d)
    x, same = columns(diagonal(z, t, d)), columns(diagonal(z, t * jnp.float32(factor), scaled))
    np.testing.assert_allclose(x, same, rtol=1e-3, atol=1e-6 * float(np.abs(columns(z)).max()))


@given(st.integers(0, 2**31), spans(-30, 3), scales)
def test_no_strength_is_the_identity(seed: int, magnitudes: tuple[int, int], scale: tuple[int, int]) -> None:
    z, d, _ = random_problem(seed, *magnitudes, *scale)
    zero = jnp.zeros(WIDTH)
    assert_same(euclidean(z, zero), z)
    assert_same(diagonal(z, zero, d), z)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_zero_stays_zero_without_nan(t: float) -> None:
    zero = jax.tree.map(jnp.zeros_like, make_params())
    thresholds = jnp.full(WIDTH, t)
    for scale in (0.0, 1e-8, 1.0):
        d = jax.tree.map(lambda leaf, value=scale: jnp.full_like(leaf, value), zero)
        assert_same(diagonal(zero, thresholds, d), zero)
    assert_same(euclidean(zero, thresholds), zero)


def test_one_nan_neuron_does_not_spread() -> None:
    z, d, t = random_problem(0, -1, 0, -1, 0)
    bad = {**z, "hidden": {**z["hidden"], "bias": z["hidden"]["bias"].at[3].set(jnp.nan)}}
    others = [j for j in range(WIDTH) if j != 3]
    for after_bad, after in ((euclidean(bad, t), euclidean(z, t)), (diagonal(bad, t, d), diagonal(z, t, d))):
        np.testing.assert_array_equal(columns(after_bad)[:, others], columns(after)[:, others])


@pytest.mark.parametrize("seed", range(3))
def test_both_steps_against_a_general_minimiser(seed: int) -> None:
    z, d, t = random_problem(seed, -1, 1, -2, 1)
    for x, scale in ((euclidean(z, t), np.ones((INPUTS + 1, WIDTH))), (diagonal(z, t, d), columns(d))):
        for j in range(WIDTH):
            zj, dj, tj, xj = columns(z)[:, j], scale[:, j], float(t[j]), columns(x)[:, j]

            def objective(v: Array, zj: Array = zj, dj: Array = dj, tj: float = tj) -> float:
                return float(0.5 * np.sum(dj * (v - zj) ** 2) + tj * np.linalg.norm(v))

            best = scipy.optimize.minimize(
                objective, 0.5 * zj, method="Powell", options={"xtol": 1e-9, "ftol": 1e-14}
            )
            size = objective(np.zeros_like(zj))
            assert objective(xj) <= min(best.fun, size) + 1e-6 * size
            # Strong convexity: ½ min(D) ‖x − v‖² ≤ f(v) − f(x).
            gap = max(best.fun - objective(xj), 0.0) + 1e-6 * size
            assert 0.5 * dj.min() * np.sum((xj - best.x) ** 2) <= gap


def test_both_steps_batch_over_a_leading_axis() -> None:
    problems = [random_problem(seed, -2, 1, -3, 0) for seed in range(3)]
    zs, ds, ts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    batched_e, batched_d = jax.jit(jax.vmap(euclidean))(zs, ts), jax.jit(jax.vmap(diagonal))(zs, ts, ds)
    for i, (z, d, t) in enumerate(problems):
        for batched, one in ((batched_e, euclidean(z, t)), (batched_d, diagonal(z, t, d))):
            jax.tree.map(
                lambda b, o, i=i: np.testing.assert_allclose(b[i], o, rtol=1e-4, atol=1e-5), batched, one
            )


# --- the weights c_j -----------------------------------------------------------------------------------------


def weights_of(importance: Any, **options: Any) -> Array:
    return np.asarray(penalty_weights(GROUPS, {NAME: jnp.asarray(importance, jnp.float32)}, **options)[NAME])


def test_unimportant_neurons_get_large_weights() -> None:
    importance = np.array([0.5, 1.0, 2.0, 4.0, 0.25, 1.0, 2.0, 1.25])
    weights = weights_of(importance)
    np.testing.assert_allclose(weights, importance.mean() / importance, rtol=1e-6)
    assert np.all(np.diff(weights[np.argsort(importance, kind="stable")]) <= 0)
    np.testing.assert_allclose(
        weights_of(importance * 1e-6), weights, rtol=1e-5
    )  # normalised within the layer
    np.testing.assert_allclose(weights_of(np.full(WIDTH, 3.0)), np.ones(WIDTH), rtol=1e-6)


def test_weights_are_clipped_and_finite() -> None:
    spread = weights_of([1e6, 1, 0, 1e-30, 1, 1, 1, 1], weight_range=(0.5, 4.0))
    np.testing.assert_allclose(spread, [0.5, 4, 4, 4, 4, 4, 4, 4])
    np.testing.assert_array_equal(weights_of(np.zeros(WIDTH)), np.ones(WIDTH))
    with_nan = weights_of([np.nan, 1, 3, 1, 3, 1, 3, np.inf])
    np.testing.assert_allclose(with_nan, [1, 2, 2 / 3, 2, 2 / 3, 2, 2 / 3, 1], rtol=1e-6)


def test_masked_neurons_do_not_count_in_the_mean() -> None:
    importance = np.array([2.0, 4.0, 0, 0, 0, 0, 0, 0])
    mask = jnp.asarray([True, True, *[False] * 6])
    np.testing.assert_allclose(weights_of(importance, masks={NAME: mask})[:2], [1.5, 0.75], rtol=1e-6)


def test_weights_are_constants_for_differentiation() -> None:
    slope = jax.grad(lambda s: jnp.sum(penalty_weights(GROUPS, {NAME: s})[NAME]))(jnp.arange(1.0, WIDTH + 1))
    np.testing.assert_array_equal(slope, np.zeros(WIDTH))


# --- the transformation --------------------------------------------------------------------------------------


def numpy_run(
    steps: int, metric: str, strength: float, rate: float, decay: float = 0.9
) -> tuple[dict[str, Any], Array]:
    """Adam and proximal step, written out in float64; gradients from jax. Returns params and importance."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), make_params())
    first = jax.tree.map(np.zeros_like, params)
    second = jax.tree.map(np.zeros_like, params)
    importance = np.zeros(WIDTH)
    slope = jax.jit(jax.grad(loss))
    for step in range(1, steps + 1):
        grads = slope(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params))
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
        gate = np.abs(np.sum(params["out"]["kernel"] * grads["out"]["kernel"], axis=1))
        importance = decay * importance + (1 - decay) * gate
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        metric_of = jax.tree.map(lambda v, step=step: np.sqrt(v / (1 - 0.999**step)) + 1e-8, second)
        params = jax.tree.map(
            lambda p, m, d, step=step: p - rate * (m / (1 - 0.9**step)) / d, params, first, metric_of
        )
        weights = np.clip(importance.mean() / importance, 0.1, 10.0)
        for j in range(WIDTH):
            z = np.append(params["hidden"]["kernel"][:, j], params["hidden"]["bias"][j])
            d = np.append(metric_of["hidden"]["kernel"][:, j], metric_of["hidden"]["bias"][j])
            if metric == "euclidean":
                d = np.ones_like(d)
            penalty = strength * weights[j] * np.sqrt(INPUTS + 1)
            d = d / rate  # d = D/η
            if np.linalg.norm(d * z) <= penalty:
                x = np.zeros_like(z)
            else:
                theta = scipy.optimize.brentq(
                    lambda s, d=d, z=z, penalty=penalty: np.sum((d * z / (d * s + penalty)) ** 2) - 1,
                    0.0,
                    2 * np.linalg.norm(z),
                    xtol=1e-14,
                )
                x = d * z * theta / (d * theta + penalty)
            params["hidden"]["kernel"][:, j], params["hidden"]["bias"][j] = x[:-1], x[-1]
    return params, importance


ADAM: dict[str, Any] = {"b2": 0.999, "eps": 1e-8}


@pytest.mark.parametrize(("metric", "strength"), [("euclidean", 0.5), ("adam", 0.2)])
def test_against_adam_and_prox_in_numpy(metric: Any, strength: float) -> None:
    steps, rate = 12, 0.03
    tx = group_sparse(optax.adam(rate), GROUPS, strength, rate, metric=metric, **ADAM, decay=0.9)
    params, state = train(tx, make_params(), steps)
    expected, importance = numpy_run(steps, metric, strength, rate)
    zeros = np.all(columns(expected) == 0, axis=0)
    assert 0 < zeros.sum() < WIDTH  # some neurons vanish, some live
    np.testing.assert_array_equal(np.all(columns(params) == 0, axis=0), zeros)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, expected)
    np.testing.assert_allclose(state.importance[NAME], importance, rtol=1e-3, atol=1e-5)
    assert int(state.num_updates) == steps


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_the_step_size_is_said_once_in_the_inner_transformation(metric: Any) -> None:
    schedule = optax.linear_schedule(3e-2, 3e-3, 12)
    adam: dict[str, Any] = {"b2": 0.9, "eps": 1e-3}
    repeated = group_sparse(optax.adam(schedule, **adam), GROUPS, 0.2, schedule, metric=metric, **adam)
    once = group_sparse(optax.inject_hyperparams(optax.adam)(schedule, **adam), GROUPS, 0.2, metric=metric)
    (expected, _), (params, _) = (train(tx, make_params(), 12) for tx in (repeated, once))
    assert not np.array_equal(expected["hidden"]["kernel"], make_params()["hidden"]["kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, expected)


@pytest.mark.parametrize(
    ("given", "missing"),
    [({}, "learning_rate"), ({"learning_rate": 0.1}, "b2"), ({"learning_rate": 0.1, "b2": 0.9}, "eps")],
)
def test_what_the_inner_transformation_does_not_say_is_asked_for_before_training(
    given: dict[str, Any], missing: str
) -> None:
    tx = group_sparse(optax.adam(0.1), GROUPS, metric="adam", **given)
    with pytest.raises(ValueError, match=rf"needs the {missing} of the inner.*inject_hyperparams"):
        tx.init(make_params())
    group_sparse(optax.adam(0.1), GROUPS, 0.0, metric="adam").init(make_params())  # no step, no step size


def test_the_bias_correction_uses_the_count_of_adam_itself() -> None:
    """With apply_if_finite inside, Adam counts fewer updates than the transformation around it."""
    rate, broken = 0.05, jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), make_params())
    inner = optax.apply_if_finite(optax.adam(rate), max_consecutive_errors=5)
    tx = group_sparse(inner, GROUPS, 0.2, rate, metric="adam", **ADAM)
    plain = group_sparse(optax.adam(rate), GROUPS, 0.2, rate, metric="adam", **ADAM)
    params, update = make_params(), jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(3):
        updates, state = update(broken, state, params)
        # What Adam holds back, the proximal step does not make finite: the params stay as they are for this test.
    first = jax.tree.map(lambda p: jnp.ones_like(p), params)
    updates, state = update(first, state, params)
    assert int(state.num_updates) == 4
    expected, fresh = jax.jit(plain.update)(first, plain.init(params), params)
    assert int(fresh.num_updates) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), updates, expected)


INNERS = {
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(1e-2, 1e-3, 100))
    ),
    "per_part": lambda: optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, momentum=0.9)}, {"hidden": "a", "out": "b"}
    ),
}


@pytest.mark.parametrize("name", ["adam", "adamw", "momentum"])
def test_strength_zero_is_the_inner_optimiser_exactly(name: str) -> None:
    inner = INNERS[name]()
    expected, _ = train(inner, make_params(), 50)
    params, _ = train(group_sparse(inner, GROUPS, 0, 1e-2), make_params(), 50)
    assert_same(params, expected)
    # With masks, XLA fuses the program differently; operation by operation the updates are the same numbers.
    tx, params = group_sparse(inner, GROUPS, 0.0, 1e-2), make_params()
    state, inner_state = tx.init(params), inner.init(params)
    for seed in range(1, 4):
        updates, state = tx.update(make_params(seed), state, params, masks=init_masks(GROUPS))
        expected, inner_state = inner.update(make_params(seed), inner_state, params)
        assert_same(updates, expected)


def test_one_update_moves_exactly_as_the_proximal_operator_says() -> None:
    """Bias included, outgoing row and output bias untouched."""
    params, inner = make_params(), optax.sgd(0.1)
    grads = jax.grad(loss)(params)
    plain = optax.apply_updates(params, inner.update(grads, inner.init(params), params)[0])
    tx = group_sparse(inner, GROUPS, 0.3, 0.1)
    updates, state = tx.update(grads, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    thresholds = 0.1 * 0.3 * penalty_weights(GROUPS, state.importance)[NAME] * np.sqrt(INPUTS + 1)
    expected = euclidean(plain, thresholds)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, expected)
    assert not np.allclose(new["hidden"]["bias"], plain["hidden"]["bias"], rtol=1e-2)
    assert_same(new["out"], plain["out"])


@pytest.mark.parametrize(("metric", "strength"), [("euclidean", 0.3), ("adam", 0.05)])
def test_training_ends_with_exact_zeros(metric: Any, strength: float) -> None:
    params = make_params(width=WIDTH)
    tx = group_sparse(optax.adam(1e-2), GROUPS, strength, 1e-2, metric=metric, **ADAM)
    trained, _ = train(tx, params, 300)
    zeros = int(np.all(columns(trained) == 0, axis=0).sum())
    assert 0 < zeros < WIDTH
    assert loss(trained) < 0.8 * loss(params)


def test_schedules_see_the_count_of_updates_already_made() -> None:
    rates, strengths = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.0, 0.2])
    tx = group_sparse(
        optax.sgd(lambda n: jnp.asarray(rates)[n]),
        GROUPS,
        lambda n: jnp.asarray(strengths, jnp.float32)[n],
        lambda n: jnp.asarray(rates, jnp.float32)[n],
    )
    params = expected = make_params()
    state = tx.init(params)
    carried = group_sparse(optax.sgd(1.0), GROUPS, 0.0).init(params)
    for step in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        rate = float(rates[step])
        fixed = group_sparse(optax.sgd(rate), GROUPS, jnp.float32(strengths[step]), rate)
        updates, carried = fixed.update(
            jax.grad(loss)(expected),
            fixed.init(expected)._replace(tracked=carried.tracked),
            expected,
        )
        expected = optax.apply_updates(expected, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)


def test_a_traced_strength_compiles_once_and_equals_the_static_one(count_traces: Any) -> None:
    params = make_params()
    grads = jax.grad(loss)(params)

    def one(strength: Any, rate: Any) -> Any:
        tx = group_sparse(optax.sgd(0.1), GROUPS, strength, rate)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    counted = count_traces(one)
    jitted = jax.jit(counted)
    for strength in (0.0, 0.1, 1.0):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            jitted(jnp.float32(strength), jnp.float32(0.1)),
            one(strength, 0.1),
        )
    assert counted.traces == 1
    # η = 0 leaves what the inner transformation proposes.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        jitted(jnp.float32(1e3), jnp.float32(0.0)),
        one(0.0, 0.1),
    )


def two_layers(params: Any, x: jax.Array) -> jax.Array:
    for name in ("a", "b"):
        x = jnp.tanh(x @ params[name])
    return jnp.matmul(x, params["c"])


def test_each_group_has_its_own_strength() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4, 1))}
    groups = find_groups(two_layers, params, jnp.ones((1, 3)))
    assert list(groups) == ["a", "b"]
    grads = jax.tree.map(jnp.zeros_like, params)
    for strength, vanish in (({"a": 0.0, "b": 1e6}, "b"), ({"a": 1e6, "b": 0.0}, "a"), ({"b": 1e6}, "b")):
        tx = group_sparse(optax.sgd(0.1), groups, strength, 0.1)
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        new = optax.apply_updates(params, updates)
        for name in params:
            np.testing.assert_array_equal(new[name], 0 if name == vanish else params[name])


def test_wrong_options_raise() -> None:
    inner = optax.sgd(0.1)
    for options, words in (
        ({"metric": "riemann"}, "riemann.*euclidean.*adam"),
        ({"importance": "tailor"}, "tailor.*taylor"),
        ({"importance": "output"}, "'output' needs activations.*taylor, fisher, magnitude"),
        ({"importance": "random"}, "'random' needs key"),
        ({"decay": 1.0}, r"decay.*\[0, 1\).*1.0"),
        ({"decay": -0.1}, "decay.*-0.1"),
        ({"weight_range": (0.0, 1.0)}, "weight_range"),
        ({"weight_range": (2.0, 1.0)}, "weight_range"),
        ({"strength": -1e-3}, "strength.*-0.001"),
        ({"strength": float("nan")}, "strength.*nan"),
        ({"strength": {NAME: -1.0}}, "strength.*-1"),
        ({"strength": {"hiden": 1.0}}, "hiden"),
    ):
        with pytest.raises(ValueError, match=words):
            group_sparse(inner, GROUPS, **options)
    params = make_params()
    tx = group_sparse(inner, GROUPS, learning_rate=0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))
    for without_one_nu in (inner, optax.chain(optax.scale_by_adam(), optax.scale_by_adam())):
        tx = group_sparse(without_one_nu, GROUPS, 1e-3, 0.1, metric="adam", **ADAM)
        with pytest.raises(ValueError, match="nu"):
            tx.update(params, tx.init(params), params)


def test_extra_arguments_reach_the_inner_transformation() -> None:
    params = make_params()
    inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    tx = optax.chain(optax.clip_by_global_norm(1.0), group_sparse(inner, GROUPS, 0.1, 0.1))
    state, scales, update = tx.init(params), [], jax.jit(tx.update)
    for _ in range(4):
        _, state = update(params, state, params, value=jnp.float32(1.0), masks=init_masks(GROUPS))
        scales.append(float(optax.tree.get(state, "scale")))
    assert scales[0] == 1.0
    assert scales[-1] < 1.0
    # An inner transformation without extra arguments ignores them.
    plain = group_sparse(optax.sgd(0.1), GROUPS, 0.1, 0.1)
    plain.update(params, plain.init(params), params, value=jnp.float32(1.0))


def test_own_importance_function_and_decay() -> None:
    params = make_params()
    grads = jax.tree.map(jnp.zeros_like, params)
    tx = group_sparse(optax.sgd(0.1), GROUPS, 0, importance=magnitude_importance, decay=0.75)
    state = tx.init(params)
    expected = np.asarray(magnitude_importance(GROUPS, params)[NAME])
    for step in range(1, 4):
        _, state = tx.update(grads, state, params)
        np.testing.assert_allclose(state.importance[NAME], (1 - 0.75**step) * expected, rtol=1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
def test_state_is_a_stable_pytree_under_jit_scan_and_vmap(metric: Any, count_traces: Any) -> None:
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        group_sparse(optax.adam(1e-2), GROUPS, 1e-2, 1e-2, metric=metric, **ADAM),
    )
    params = make_params()
    state = tx.init(params)

    def update(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params), state, params, masks=init_masks(GROUPS))
        return optax.apply_updates(params, updates), state

    counted = count_traces(update)
    jitted = jax.jit(counted)
    one = (params, state)
    for _ in range(3):
        one = jitted(*one)
    assert counted.traces == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(one[1], state)

    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, make_params(5))
    batched = (many, jax.vmap(tx.init)(many))
    step = jax.jit(jax.vmap(update))
    for _ in range(3):
        batched = step(*batched)
    jax.tree.map(lambda b, o: np.testing.assert_allclose(b[0], o, rtol=1e-4, atol=1e-5), batched, one)


# --- masked means gone ---------------------------------------------------------------------------------------

MASK = jnp.asarray([True, False, True, True, False, True, False, True])
GONE = np.flatnonzero(~np.asarray(MASK))


def gone_entries(tree: Any) -> Array:
    """Every entry of the masked neurons' three slices in a tree like params; missing parts are left out."""
    parts = [(tree["hidden"], "kernel", 1), (tree["hidden"], "bias", 0), (tree["out"], "kernel", 0)]
    found = [
        np.take(np.asarray(part[leaf]), GONE, axis).ravel()
        for part, leaf, axis in parts
        if hasattr(part, "keys")
    ]
    return np.concatenate(found)


def moments(state: Any) -> list[Any]:
    """Every sub-tree of an optimiser state with the keys of params, parts left out by a partition included."""

    def is_moment(node: Any) -> bool:
        return isinstance(node, dict) and set(node) == {"hidden", "out"}

    return [node for node in jax.tree.leaves(state, is_leaf=is_moment) if is_moment(node)]


@pytest.mark.parametrize(
    ("name", "act"),
    [*((name, "sigmoid") for name in INNERS), *(("adam", act) for act in ("relu", "softplus"))],
)
def test_masked_neurons_stay_gone(name: str, act: str) -> None:
    tx = group_sparse(INNERS[name](), GROUPS, 1e-3, 1e-2)
    run = trainer(tx, ACTIVATIONS[act])
    params = make_params()
    params, state = run(params, tx.init(params), 20, masks=init_masks(GROUPS))
    assert moments(state.inner)
    assert all(np.any(gone_entries(moment) != 0) for moment in moments(state.inner))
    first, first_state = run(params, state, 1, masks={NAME: MASK})
    last, last_state = run(first, first_state, 300, masks={NAME: MASK})
    for params, state in ((first, first_state), (last, last_state)):
        np.testing.assert_array_equal(gone_entries(params), 0.0)
        for moment in moments(state.inner):
            np.testing.assert_array_equal(gone_entries(moment), 0.0)
    assert np.all(np.any(columns(last)[:, np.asarray(MASK)] != 0, axis=0))
    assert loss(last, ACTIVATIONS[act]) < loss(first, ACTIVATIONS[act])


def test_a_nan_gradient_of_a_masked_neuron_does_no_harm() -> None:
    tx = group_sparse(optax.adam(1e-2), GROUPS, 1e-3, 1e-2)
    params = make_params()
    bad = jax.tree.map(jnp.ones_like, params)
    bad["hidden"]["bias"] = bad["hidden"]["bias"].at[GONE].set(jnp.nan)
    updates, state = tx.update(bad, tx.init(params), params, masks={NAME: MASK})
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((updates, state.inner)))


def test_masks_of_other_groups_and_groups_without_masks() -> None:
    params = make_params()
    grads = jax.grad(loss)(params)
    tx = group_sparse(optax.sgd(0.1), GROUPS, 0.1, 0.1)
    expected = tx.update(grads, tx.init(params), params)
    whole = {name: jnp.ones(group.size, bool) for name, group in GROUPS.items()}
    other = tx.update(grads, tx.init(params), params, masks={"critic": jnp.zeros(3, bool), **whole})
    with pytest.raises(ValueError, match=r"masks has \['critic'\], of which none is a group"):
        tx.update(grads, tx.init(params), params, masks={"critic": jnp.zeros(3, bool)})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), expected, other)
    nothing: NeuronGroups = GROUPS.select([])
    inner = optax.adam(0.1)
    untouched = group_sparse(inner, nothing, 1.0, 0.1)
    updates, _ = untouched.update(grads, untouched.init(params), params)
    assert_same(
        optax.apply_updates(params, updates),
        optax.apply_updates(params, inner.update(grads, inner.init(params), params)[0]),
    )
