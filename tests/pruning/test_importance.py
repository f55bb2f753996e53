from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.activations import activations
from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.pruning.importance import (
    fisher_importance,
    magnitude_importance,
    output_importance,
    random_importance,
    taylor_importance,
)
from prune_rl.pruning.scores import SCORES, gradient_importance, score_named

ACTIVATIONS = [jnp.tanh, jax.nn.relu, jax.nn.softplus, jax.nn.sigmoid, jax.nn.gelu, jax.nn.elu]
SIZES = {"layer_0": 6, "layer_1": 5}


def make_params(key: jax.Array) -> dict[str, Any]:
    """Two hidden layers of 6 and 5; the second is read by two heads."""
    shapes = {"layer_0": (3, 6), "layer_1": (6, 5), "mean": (5, 2), "value": (5, 1)}
    params = {}
    for i, (name, shape) in enumerate(shapes.items()):
        kernel, bias = jax.random.split(jax.random.fold_in(key, i))
        params[name] = {
            "kernel": jax.random.normal(kernel, shape),
            "bias": jax.random.normal(bias, shape[1:]),
        }
    return params


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None, :]


def forward(act: Any, params: Any, x: jax.Array, gates: Any = None) -> tuple[jax.Array, jax.Array]:
    for name in SIZES:
        x = act(dense(params[name], x))
        if gates is not None:
            x = x * gates[name][None, :]
    return dense(params["mean"], x), dense(params["value"], x)


def loss(act: Any, params: Any, x: jax.Array, gates: Any = None) -> jax.Array:
    mean, value = forward(act, params, x, gates)
    return jnp.mean(jnp.sum(jnp.sin(mean), axis=1)) + jnp.mean(jnp.square(value))


def make_groups(act: Any, params: Any, x: jax.Array) -> NeuronGroups:
    return find_groups(lambda p, inputs: forward(act, p, inputs), params, x)


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (16, 3))


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: act.__name__)
def test_gate_taylor_is_the_derivative_of_an_explicit_gate(act: Any, x: jax.Array) -> None:
    params = make_params(jax.random.key(0))
    groups = make_groups(act, params, x)
    assert {name: group.size for name, group in groups.items()} == SIZES
    assert len(groups["layer_1"].outgoing) == 2  # both heads
    ones = {name: jnp.ones(size) for name, size in SIZES.items()}
    gate_slopes, grads = jax.jit(jax.grad(lambda gates, p: loss(act, p, x, gates), argnums=(0, 1)))(
        ones, params
    )

    taylor = taylor_importance(groups, params, grads)
    fisher = fisher_importance(groups, params, grads)
    for name, slope in gate_slopes.items():
        assert float(jnp.max(jnp.abs(slope))) > 1e-3
        np.testing.assert_allclose(taylor[name], np.abs(slope), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(fisher[name], np.square(slope), rtol=1e-4, atol=1e-6)


def test_first_order_prediction_of_a_removal(x: jax.Array) -> None:
    """Scaling a neuron's outgoing rows by 1 − h changes the loss by h times its signed score, to first order."""
    params = make_params(jax.random.key(3))
    groups = make_groups(jnp.tanh, params, x)
    value = jax.jit(lambda p: loss(jnp.tanh, p, x))
    score = taylor_importance(groups, params, jax.grad(value)(params))["layer_1"]
    h = 1e-2
    for j in range(SIZES["layer_1"]):
        smaller, larger = (
            params
            | {n: {**params[n], "kernel": params[n]["kernel"].at[j].multiply(f)} for n in ("mean", "value")}
            for f in (1 - h, 1 + h)
        )
        slope = (value(larger) - value(smaller)) / (2 * h)
        np.testing.assert_allclose(score[j], np.abs(slope), rtol=2e-2, atol=1e-3)


def test_magnitude_is_the_product_of_incoming_and_outgoing_norms(x: jax.Array) -> None:
    params = make_params(jax.random.key(4))
    scores = magnitude_importance(make_groups(jnp.tanh, params, x), params)
    p = jax.tree.map(np.asarray, params)
    for name, after in (("layer_0", ["layer_1"]), ("layer_1", ["mean", "value"])):
        for j in range(SIZES[name]):
            incoming = np.append(p[name]["kernel"][:, j], p[name]["bias"][j])
            outgoing = np.concatenate([p[other]["kernel"][j] for other in after])
            expected = np.linalg.norm(incoming) * np.linalg.norm(outgoing)
            np.testing.assert_allclose(scores[name][j], expected, rtol=1e-5)


def test_magnitude_does_not_see_a_rescaled_relu_neuron(x: jax.Array) -> None:
    params = make_params(jax.random.key(5))
    groups = make_groups(jax.nn.relu, params, x)
    c = 7.0
    rescaled = params | {
        "layer_0": {"kernel": params["layer_0"]["kernel"] * c, "bias": params["layer_0"]["bias"] * c},
        "layer_1": {**params["layer_1"], "kernel": params["layer_1"]["kernel"] / c},
    }
    before, after = magnitude_importance(groups, params), magnitude_importance(groups, rescaled)
    np.testing.assert_allclose(before["layer_0"], after["layer_0"], rtol=1e-5)
    assert not np.allclose(
        before["layer_1"], after["layer_1"]
    )  # its incoming kernel shrank, its bias did not


def test_output_is_the_mean_activation_times_the_outgoing_norm(x: jax.Array) -> None:
    params = make_params(jax.random.key(6))
    groups = make_groups(jnp.tanh, params, x)
    hidden = activations(lambda p, inputs: forward(jnp.tanh, p, inputs), groups, params, x)
    p = jax.tree.map(np.asarray, params)
    first = np.tanh(np.asarray(x) @ p["layer_0"]["kernel"] + p["layer_0"]["bias"])
    second = np.tanh(first @ p["layer_1"]["kernel"] + p["layer_1"]["bias"])
    heads = np.concatenate([p["mean"]["kernel"], p["value"]["kernel"]], axis=1)
    expected = {
        "layer_0": np.abs(first).mean(0) * np.linalg.norm(p["layer_1"]["kernel"], axis=1),
        "layer_1": np.abs(second).mean(0) * np.linalg.norm(heads, axis=1),
    }
    scores = output_importance(groups, params, activations=hidden)
    folded = {name: a.reshape(4, 2, 2, -1) for name, a in hidden.items()}
    for name in SIZES:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            output_importance(groups, params, activations=folded)[name], expected[name], rtol=1e-5, atol=1e-6
        )


def test_random_is_uniform_and_given_by_its_key() -> None:
    params = {"in": jnp.ones((1, 2000)), "hidden": jnp.ones((2000, 2000)), "out": jnp.ones((2000, 1))}
    groups = find_groups(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["in"]) @ p["hidden"]) @ p["out"], params, jnp.ones((1, 1))
    )
    first = random_importance(groups, params, key=jax.random.key(0))
    again = random_importance(groups, params, key=jax.random.key(0))
    other = random_importance(groups, params, key=jax.random.key(1))
    a, b = (np.asarray(score) for score in first.values())
    for sample in (a, b):
        assert sample.min() >= 0.0
        assert sample.max() < 1.0
        # Dvoretzky-Kiefer-Wolfowitz: the empirical distribution of 2000 is within 0.05 with probability > 1 - 1e-4.
        assert np.max(np.abs(np.sort(sample) - (np.arange(2000) + 0.5) / 2000)) < 0.05
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    for name in groups:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


MASKS = {name: jnp.ones(size, bool) for name, size in SIZES.items()}


def all_scores(groups: NeuronGroups, x: jax.Array) -> Any:
    def score(params: Any, key: jax.Array) -> dict[str, Any]:
        grads = jax.grad(lambda p: loss(jnp.tanh, p, x))(params)
        hidden = activations(lambda p, inputs: forward(jnp.tanh, p, inputs), groups, params, x)
        return {
            name: score.function(groups, params, grads, activations=hidden, masks=MASKS, key=key)
            for name, score in SCORES.items()
        }

    return score


def test_every_importance_under_jit_and_vmap(x: jax.Array, count_traces: Any) -> None:
    keys = jax.random.split(jax.random.key(7), 3)
    params = [make_params(key) for key in keys]
    score = all_scores(make_groups(jnp.tanh, params[0], x), x)
    counted = count_traces(score)
    jitted = jax.jit(counted)
    batched = jax.jit(jax.vmap(score))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), keys)
    for i, (p, key) in enumerate(zip(params, keys, strict=True)):
        for name, one in jitted(p, key).items():
            for layer, size in SIZES.items():
                assert one[layer].shape == (size,)
                assert one[layer].dtype == jnp.float32
                assert float(one[layer].min()) >= 0
                np.testing.assert_allclose(
                    batched[name][layer][i], one[layer], rtol=1e-4, atol=1e-6, err_msg=name
                )
    assert counted.traces == 1


def test_scores_are_constants_for_differentiation(x: jax.Array) -> None:
    params = make_params(jax.random.key(8))
    score = all_scores(make_groups(jnp.tanh, params, x), x)

    def total(params: Any) -> Any:
        return sum(jnp.sum(s) for s in jax.tree.leaves(score(params, jax.random.key(0))))

    for slope in jax.tree.leaves(jax.jit(jax.grad(total))(params)):
        np.testing.assert_array_equal(slope, np.zeros_like(slope))


def test_a_removed_neuron_scores_exactly_zero(x: jax.Array) -> None:
    params = make_params(jax.random.key(9))
    params["layer_1"]["kernel"] = params["layer_1"]["kernel"].at[2].set(0.0)
    scores = jax.jit(all_scores(make_groups(jnp.tanh, params, x), x))(params, jax.random.key(0))
    for name in set(SCORES) - {"random"}:
        assert float(scores[name]["layer_0"][2]) == 0.0, name
        assert np.all(np.asarray(scores[name]["layer_0"])[[0, 1, 3, 4, 5]] > 0), name


def test_missing_inputs_and_unknown_names_raise(x: jax.Array) -> None:
    params = make_params(jax.random.key(0))
    groups = make_groups(jnp.tanh, params, x)
    for name, missing in (
        ("taylor", "grads"),
        ("fisher", "grads"),
        ("output", "activations"),
        ("surgeon", "activations"),
        ("random", "key"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{missing}"):
            SCORES[name].function(groups, params)
    with pytest.raises(ValueError, match=r"'tailor'.*taylor"):
        score_named("tailor")
    with pytest.raises(ValueError, match=r"'tailor'.*taylor"):
        gradient_importance("tailor")
    assert gradient_importance("taylor") is taylor_importance
    assert gradient_importance(magnitude_importance) is magnitude_importance
    for name, score in SCORES.items():
        if score.needs <= {"grads"}:
            assert gradient_importance(name) is score.function
        else:
            with pytest.raises(
                ValueError, match=rf"'{name}' needs .*choose one of taylor, fisher, magnitude"
            ):
                gradient_importance(name)
