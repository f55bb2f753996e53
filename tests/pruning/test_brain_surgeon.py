from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.activations import activations
from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.brain_surgeon import inverse, refit, surgeon_importance
from prune_rl.pruning.masks import apply_masks, init_masks

Array = np.ndarray[Any, Any]
WIDTHS = {"first": 7, "second": 6}
HEADS = ("mean", "value")
TINY = 1e-6


def make_params(seed: int = 0) -> dict[str, Any]:
    """Two hidden layers; the second is read by two heads of 3 and 1."""
    rng = np.random.default_rng(seed)
    shapes = {"first": (4, 7), "second": (7, 6), "mean": (6, 3), "value": (6, 1)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.asarray(0.5 * rng.normal(size=shape[1:]), jnp.float32),
        }
        for name, shape in shapes.items()
    }


def dense(layer: Any, x: jax.Array) -> jax.Array:
    fed: jax.Array = x @ layer["kernel"] + layer["bias"][None, :]
    return fed


def forward(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = jax.nn.softplus(dense(params["second"], jnp.tanh(dense(params["first"], x))))
    return dense(params["mean"], hidden), dense(params["value"], hidden)


X = jnp.asarray(2.0 * np.random.default_rng(1).normal(size=(300, 4)), jnp.float32)
GROUPS = find_groups(forward, make_params(), X)
hidden_of = jax.jit(lambda params: activations(forward, GROUPS, params, X))
outputs_of = jax.jit(lambda params: jnp.concatenate(forward(params, X), axis=1))
score_of = jax.jit(
    lambda params, hidden, masks: surgeon_importance(
        GROUPS, params, activations=hidden, masks=masks, ridge=TINY
    )
)


def bias_of(path: Any) -> Any:
    return (*path[:-1], type(path[-1])("bias"))


@jax.jit
def remove(params: Any, hidden: Any, old: Any, new: Any) -> Any:
    return apply_masks(GROUPS, refit(GROUPS, params, hidden, old, new, bias_of=bias_of, ridge=TINY), new)


def outgoing(params: Any, name: str) -> Array:
    """All weights that read a layer, side by side: float64[size, fed]."""
    readers = ["second"] if name == "first" else HEADS
    return np.concatenate([np.asarray(params[reader]["kernel"], np.float64) for reader in readers], axis=1)


def with_intercept(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def residual(activity: Array, weights: Array, kept: list[int]) -> float:
    """Least mean squared error of what the layer feeds, refit to the kept neurons and an intercept."""
    target = activity @ weights
    design = with_intercept(activity[:, kept])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    return float(np.mean(np.sum((target - design @ solution) ** 2, axis=1)))


@pytest.mark.parametrize("masked", [[], [1, 4]])
def test_score_is_the_error_after_the_best_refit(masked: list[int]) -> None:
    masks = {name: mask.at[jnp.array(masked, int)].set(False) for name, mask in init_masks(GROUPS).items()}
    params = apply_masks(GROUPS, make_params(), masks)
    hidden = hidden_of(params)
    scores = score_of(params, hidden, masks)
    for name, size in WIDTHS.items():
        activity, weights = np.asarray(hidden[name], np.float64), outgoing(params, name)
        assert np.all(np.asarray(scores[name])[masked] == 0.0)
        alive = [j for j in range(size) if j not in masked]
        expected = [residual(activity, weights, [i for i in alive if i != j]) for j in alive]
        assert min(expected) > 1e-5
        np.testing.assert_allclose(np.asarray(scores[name])[alive], expected, rtol=2e-2)
        assert np.array_equal(np.argsort(np.asarray(scores[name])[alive]), np.argsort(expected))


def dependent_params(kind: str) -> tuple[Any, Any]:
    """A network in which neuron 2 of the first layer is a function of neuron 5, and its activations."""
    params = make_params(3)
    kernel, bias = params["first"]["kernel"], params["first"]["bias"]
    sign = -1.0 if kind == "negated" else 1.0  # tanh is odd
    scale = 0.0 if kind == "constant" else sign
    params["first"] = {
        "kernel": kernel.at[:, 2].set(scale * kernel[:, 5]),
        "bias": bias.at[2].set(sign * bias[5]),
    }
    return params, hidden_of(params)


@pytest.mark.parametrize("kind", ["duplicated", "negated", "constant"])
def test_a_dependent_neuron_costs_nothing(kind: str) -> None:
    params, hidden = dependent_params(kind)
    masks = init_masks(GROUPS)
    scores = np.asarray(score_of(params, hidden, masks)["first"])
    others = [0, 1, 3, 4, 6]
    assert scores[2] < 1e-3 * scores[others].min()
    if kind != "constant":
        assert scores[5] < 1e-3 * scores[others].min()  # each can stand in for the other
    new = {**masks, "first": masks["first"].at[2].set(False)}
    smaller = remove(params, hidden, masks, new)
    np.testing.assert_allclose(outputs_of(smaller), outputs_of(params), atol=1e-4)
    assert np.max(np.abs(outputs_of(apply_masks(GROUPS, params, new)) - outputs_of(params))) > 1e-2


def test_an_affine_function_of_several_neurons_costs_nothing() -> None:
    """The scores and the refit see activations, so any batch of them will do."""
    params = make_params(4)
    hidden = dict(hidden_of(params))
    second = hidden["second"]
    hidden["second"] = second.at[:, 3].set(0.7 * second[:, 0] - 1.3 * second[:, 4] + 2.0)
    masks = init_masks(GROUPS)
    scores = np.asarray(score_of(params, hidden, masks)["second"])
    assert scores[3] < 1e-3 * scores[[1, 2, 5]].min()
    new = {**masks, "second": masks["second"].at[3].set(False)}
    smaller = remove(params, hidden, masks, new)
    for head in HEADS:
        before, after = dense(params[head], hidden["second"]), dense(smaller[head], hidden["second"])
        np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "gone"), [("first", [0, 3, 6]), ("second", [1, 2]), ("second", [0, 1, 2, 3, 4])]
)
def test_refit_is_least_squares_with_an_intercept(name: str, gone: list[int]) -> None:
    params = make_params(5)
    hidden = hidden_of(params)
    masks = init_masks(GROUPS)
    new = {**masks, name: masks[name].at[jnp.array(gone)].set(False)}
    smaller = remove(params, hidden, masks, new)
    activity = np.asarray(hidden[name], np.float64)
    kept = [j for j in range(WIDTHS[name]) if j not in gone]
    for reader in ["second"] if name == "first" else HEADS:
        target = activity @ np.asarray(params[reader]["kernel"]) + np.asarray(params[reader]["bias"])
        expected = np.linalg.lstsq(with_intercept(activity[:, kept]), target, rcond=None)[0]
        np.testing.assert_allclose(
            smaller[reader]["kernel"][jnp.array(kept)], expected[:-1], rtol=2e-3, atol=2e-3
        )
        np.testing.assert_allclose(smaller[reader]["bias"], expected[-1], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(smaller[reader]["kernel"][jnp.array(gone)], 0.0)
    # What is not fed by the layer stays as it was.
    untouched = ["first", *HEADS] if name == "first" else ["first"]
    for layer in untouched:
        if layer != name:
            jax.tree.map(np.testing.assert_array_equal, smaller[layer], params[layer])


def test_bias_takes_the_means() -> None:
    """With nothing left to stand in, the bias alone carries the mean; without a bias nothing does."""
    params = make_params(6)
    hidden = hidden_of(params)
    masks = init_masks(GROUPS)
    nothing = {**masks, "second": jnp.zeros(WIDTHS["second"], bool)}
    smaller = remove(params, hidden, masks, nothing)
    for head in HEADS:
        mean = np.mean(dense(params[head], hidden["second"]), axis=0)
        np.testing.assert_allclose(smaller[head]["bias"], mean, atol=1e-5)
    without = refit(GROUPS, params, hidden, masks, nothing, ridge=TINY)
    jax.tree.map(np.testing.assert_array_equal, without, params)


def test_neurons_masked_before_stay_zero_and_take_nothing_over() -> None:
    masks = {name: mask.at[1].set(False) for name, mask in init_masks(GROUPS).items()}
    params = apply_masks(GROUPS, make_params(7), masks)
    hidden = hidden_of(params)  # softplus(0) = log 2, tanh(0) = 0
    assert float(hidden["second"][0, 1]) > 0.5
    new = {name: mask.at[4].set(False) for name, mask in masks.items()}
    raw = refit(GROUPS, params, hidden, masks, new, bias_of=bias_of, ridge=TINY)
    np.testing.assert_array_equal(raw["second"]["kernel"][1], 0.0)
    np.testing.assert_array_equal(raw["second"]["kernel"][:, 1], 0.0)
    np.testing.assert_array_equal(raw["second"]["bias"][1], 0.0)
    for head in HEADS:
        np.testing.assert_array_equal(raw[head]["kernel"][1], 0.0)
    assert np.all(np.isfinite(outputs_of(remove(params, hidden, masks, new))))


def test_nothing_removed_changes_nothing() -> None:
    params = make_params(8)
    masks = init_masks(GROUPS)
    jax.tree.map(np.testing.assert_array_equal, remove(params, hidden_of(params), masks, masks), params)


def test_refit_loses_less_than_plain_removal() -> None:
    params = make_params(9)
    hidden = hidden_of(params)
    masks = init_masks(GROUPS)
    new = {
        "first": masks["first"].at[jnp.array([0, 2])].set(False),
        "second": masks["second"].at[3].set(False),
    }
    before = outputs_of(params)
    refitted = np.mean((outputs_of(remove(params, hidden, masks, new)) - before) ** 2)
    plain = np.mean((outputs_of(apply_masks(GROUPS, params, new)) - before) ** 2)
    assert refitted < 0.5 * plain


def test_dead_neurons_and_dead_layers_are_finite() -> None:
    params = make_params(10)
    masks = init_masks(GROUPS)
    hidden = {name: a.at[:, 2].set(0.0) for name, a in hidden_of(params).items()}
    dead = jax.tree.map(jnp.zeros_like, hidden)
    assert np.all(np.asarray(score_of(params, hidden, masks)["first"]) >= 0)
    assert float(score_of(params, hidden, masks)["first"][2]) < 1e-5
    new = {name: mask.at[2].set(False) for name, mask in masks.items()}
    for activity in (hidden, dead):
        for name, score in score_of(params, activity, masks).items():
            assert np.all(np.isfinite(score)), name
        assert all(
            np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(remove(params, activity, masks, new))
        )


def test_activations_with_several_batch_axes() -> None:
    params, masks = make_params(11), init_masks(GROUPS)
    hidden = hidden_of(params)
    folded = {name: a.reshape(3, 20, 5, -1) for name, a in hidden.items()}
    expected, scores = score_of(params, hidden, masks), score_of(params, folded, masks)
    for name in WIDTHS:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-3)


def test_batched_over_seeds_with_masks_that_differ() -> None:
    seeds = [make_params(seed) for seed in (20, 21, 22)]
    old = init_masks(GROUPS)
    hidden = [hidden_of(params) for params in seeds]
    new = [{name: mask.at[i].set(False) for name, mask in old.items()} for i in range(3)]

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    batched = jax.jit(jax.vmap(remove, (0, 0, None, 0)))(stack(seeds), stack(hidden), old, stack(new))
    scores = jax.jit(jax.vmap(score_of, (0, 0, 0)))(stack(seeds), stack(hidden), stack(new))
    for i in range(3):
        one = remove(seeds[i], hidden[i], old, new[i])
        jax.tree.map(
            lambda b, o, i=i: np.testing.assert_allclose(b[i], o, rtol=1e-3, atol=1e-4), batched, one
        )
        for name, score in score_of(seeds[i], hidden[i], new[i]).items():
            np.testing.assert_allclose(scores[name][i], score, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 2, 9, 16, 33, 64, 100])
def test_inverse_of_a_positive_definite_matrix(size: int) -> None:
    rng = np.random.default_rng(size)
    factor = rng.normal(size=(size, 2 * size))
    matrix = (factor @ factor.T / (2 * size) + 0.01 * np.eye(size)).astype(np.float32)
    computed = np.asarray(jax.jit(inverse)(matrix))
    np.testing.assert_allclose(computed, np.linalg.inv(matrix.astype(np.float64)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(computed @ matrix, np.eye(size), atol=1e-3)
