"""Networks against NumPy, and their initial parameters against what is promised of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from prune_rl.learners.networks import (
    ACTIVATIONS,
    NARROW,
    apply_ensemble,
    apply_mlp,
    init_actor_critic,
    init_ensemble,
    init_mlp,
    num_hidden,
)
from prune_rl.spaces import Box, Discrete, Spec

GELU_TANH = np.sqrt(2.0 / np.pi)
REFERENCE: dict[str, Callable[[Any], Any]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(GELU_TANH * (x + 0.044715 * x**3))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
}


def shapes(params: dict[str, dict[str, jax.Array]]) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}/{name}": leaf.shape for layer, leaves in params.items() for name, leaf in leaves.items()
    }


def test_every_activation_has_a_reference() -> None:
    assert set(REFERENCE) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", sorted(REFERENCE))
def test_equals_numpy(activation: str) -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        init_mlp(jax.random.key(0), [3, 5, 4, 2], 1.0),
    )
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    y = x.astype(np.float64)
    for name in ("layer_0", "layer_1"):
        y = REFERENCE[activation](y @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"]))
    expected = y @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(apply_mlp(params, jnp.asarray(x), activation), expected, rtol=1e-4, atol=1e-4)
    # One observation without a batch axis is the same function.
    np.testing.assert_allclose(
        apply_mlp(params, jnp.asarray(x[0, 0]), activation), expected[0, 0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("batch", [(), (6,), (2, 6)], ids=str)
def test_gradients_are_those_of_plain_products(batch: tuple[int, ...]) -> None:
    # Layers of every kind: wider than NARROW, narrow, and of one output.
    for sizes in ([3, NARROW + 1, NARROW, 2], [3, NARROW, 1]):
        params = init_mlp(jax.random.key(0), sizes, 1.0)
        x = jax.random.normal(jax.random.key(1), (*batch, 3))
        goal = jax.random.normal(jax.random.key(2), (*batch, sizes[-1]))

        def plain(params: Any, x: jax.Array) -> jax.Array:
            for name in sorted(params, key=lambda name: (name == "head", name)):
                layer = params[name]
                x = x @ layer["kernel"] + jnp.broadcast_to(
                    layer["bias"], (*x.shape[:-1], *layer["bias"].shape)
                )
                x = x if name == "head" else jnp.tanh(x)
            return x

        def loss(apply: Any, params: Any, x: jax.Array, goal: jax.Array = goal) -> jax.Array:
            return jnp.sum(jnp.square(apply(params, x) - goal))

        got = jax.grad(lambda p, x: loss(lambda p, x: apply_mlp(p, x, "tanh"), p, x), argnums=(0, 1))(
            params, x
        )
        expected = jax.grad(lambda p, x: loss(plain, p, x), argnums=(0, 1))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(got)) > 1e-2


def test_kernels_start_orthogonal_and_biases_at_zero() -> None:
    params = init_mlp(jax.random.key(1), [4, 16, 16, 3], 0.01)
    assert shapes(params) == {
        "layer_0/kernel": (4, 16),
        "layer_0/bias": (16,),
        "layer_1/kernel": (16, 16),
        "layer_1/bias": (16,),
        "head/kernel": (16, 3),
        "head/bias": (3,),
    }
    assert num_hidden(params) == 2
    first, second, head = (np.asarray(params[name]["kernel"]) for name in ("layer_0", "layer_1", "head"))
    np.testing.assert_allclose(first @ first.T, 2.0 * np.eye(4), atol=1e-5)
    np.testing.assert_allclose(second @ second.T, 2.0 * np.eye(16), atol=1e-5)
    np.testing.assert_allclose(head.T @ head, 1e-4 * np.eye(3), atol=1e-9)
    assert all(not np.any(layer["bias"]) for layer in params.values())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_layers_of_equal_shape_start_apart() -> None:
    params = init_mlp(jax.random.key(2), [8, 8, 8, 8], 2.0**0.5)
    kernels = [np.asarray(layer["kernel"]) for layer in params.values()]
    assert not any(np.allclose(a, b) for i, a in enumerate(kernels) for b in kernels[:i])


def test_without_hidden_layers_it_is_one_dense_layer() -> None:
    params = init_mlp(jax.random.key(3), [3, 2], 1.0)
    x = jnp.ones((4, 3))
    np.testing.assert_allclose(apply_mlp(params, x, "tanh"), x @ params["head"]["kernel"], rtol=1e-6)


def test_actor_and_critic_share_nothing() -> None:
    spec = Spec(observation_size=3, action=Discrete(1))
    params = init_actor_critic(jax.random.key(4), spec, (6,), (6,))
    assert set(params) == {"actor", "critic"}
    assert shapes(params["actor"]) == shapes(params["critic"])
    assert not np.allclose(params["actor"]["layer_0"]["kernel"], params["critic"]["layer_0"]["kernel"])


def test_box_actions_have_a_log_std_of_their_own_and_the_policy_starts_near_zero() -> None:
    spec = Spec(observation_size=3, action=Box((-1.0,) * 4, (1.0,) * 4, (2, 2)))
    params = init_actor_critic(jax.random.key(5), spec, (6, 7), (6, 7))
    np.testing.assert_array_equal(params["actor"]["log_std"], np.zeros(4, np.float32))
    means = apply_mlp(params["actor"], jnp.ones((2, 3)), "tanh")
    assert means.shape == (2, 4)
    assert np.abs(means).max() < 0.05


def test_the_members_of_an_ensemble_are_mlps_of_their_own() -> None:
    params = init_ensemble(jax.random.key(6), 3, [4, 7, 5, 2], 1.0)
    assert shapes(params) == {
        "layer_0/kernel": (3, 4, 7),
        "layer_0/bias": (3, 7),
        "layer_1/kernel": (3, 7, 5),
        "layer_1/bias": (3, 5),
        "head/kernel": (3, 5, 2),
        "head/bias": (3, 2),
    }
    x = jax.random.normal(jax.random.key(7), (6, 4))
    outputs = apply_ensemble(params, x, "relu")
    assert outputs.shape == (3, 6, 2)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        np.testing.assert_allclose(outputs[i], apply_mlp(member, x, "relu"), rtol=1e-5, atol=1e-6)
        kernel = np.asarray(member["layer_0"]["kernel"])
        np.testing.assert_allclose(kernel @ kernel.T, 2.0 * np.eye(4), atol=1e-5)
        assert not np.allclose(outputs[i], outputs[i - 1])


def test_layer_normalisation_is_that_of_flax() -> None:
    params = init_ensemble(jax.random.key(6), 2, [4, 7, 5, 2], 1.0, layer_norm=True)
    assert {name for name, shape in shapes(params).items() if name.endswith("scale")} == {
        "layer_0/scale",
        "layer_1/scale",
    }
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    norm = flax.linen.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    outputs = apply_ensemble(params, x, "tanh")
    for i in range(2):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        y = x
        for name in ("layer_0", "layer_1"):
            layer = {key: member[name][key] for key in ("scale", "bias")}
            normalized: Any = norm.apply({"params": layer}, y @ member[name]["kernel"])
            y = jnp.tanh(normalized)
        expected = y @ member["head"]["kernel"] + member["head"]["bias"][None]
        np.testing.assert_allclose(outputs[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 3, 40])
def test_networks_have_forward_and_second_derivatives(outputs: int) -> None:
    params = init_mlp(jax.random.key(0), [4, 8, outputs], 1.0)
    x = jax.random.normal(jax.random.key(1), (5, 4))
    direction = jax.tree.map(jnp.ones_like, params)

    def loss(p: Any) -> jax.Array:
        return jnp.sum(jnp.square(apply_mlp(p, x, "tanh")))

    slope, along = jax.jvp(loss, (params,), (direction,))[1], jax.grad(loss)(params)
    expected = sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(along))
    np.testing.assert_allclose(slope, expected, rtol=1e-4)
    curvature = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(curvature))
