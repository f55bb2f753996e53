"""Activations are what the outgoing kernels are multiplied with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.activations import activations
from prune_rl.dependency.find_groups import find_groups
from tests.compilation import quick_jit
from tests.dependency.small_networks import random_like

X = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)


def init(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


class Flax(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, activation in enumerate((nn.gelu, nn.relu, nn.softplus)):
            x = activation(nn.Dense(5 + i, bias_init=nn.initializers.normal(1.0))(x))
            self.sow("hidden", f"params/Dense_{i}", x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize("shape", [(4,), (7, 4), (3, 7, 4)])
def test_equal_to_what_a_module_records_itself(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    params = {"params": random_like(jax.eval_shape(Flax().init, jax.random.key(0), x)["params"])}
    groups = find_groups(Flax().apply, params, x)
    found, (_, recorded) = quick_jit(
        lambda: (activations(Flax().apply, groups, params, x), Flax().apply(params, x, mutable="hidden"))
    )()
    assert list(found) == list(groups)
    for name, values in found.items():
        assert values.shape == (*shape[:-1], groups[name].size)
        np.testing.assert_allclose(values, recorded["hidden"][name][0], atol=1e-6)


def test_the_neurons_come_last_and_in_float32() -> None:
    params = init(first=(4, 5), second=(3, 5))

    def fn(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.einsum("bi,io->ob", x, p["first"])).astype(jnp.bfloat16)  # [neurons, batch]
        return jnp.einsum("ob,ko->bk", h, p["second"].astype(jnp.bfloat16))

    groups = find_groups(fn, params, X)
    found, expected = quick_jit(
        lambda: (activations(fn, groups, params, X)["first"], jnp.tanh(X @ params["first"]))
    )()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_a_value_read_by_two_heads_is_given_once_and_by_two_values_stacked() -> None:
    params = init(a=(4, 5), pi=(5, 3), v=(5, 1))

    def heads(p: Any, x: jax.Array) -> Any:
        h = jnp.tanh(x @ p["a"])
        return h @ p["pi"], h @ p["v"]

    groups = find_groups(heads, params, X)
    np.testing.assert_allclose(
        activations(heads, groups, params, X)["a"], jnp.tanh(X @ params["a"]), atol=1e-6
    )

    def twice(p: Any, x: jax.Array, y: jax.Array) -> Any:
        return jnp.tanh(x @ p["a"]) @ p["pi"], jnp.sin(y @ p["a"]) @ p["v"]

    first, second = jnp.tanh(X @ params["a"]), jnp.sin(2 * X @ params["a"])
    np.testing.assert_allclose(
        activations(twice, groups, params, X, 2 * X)["a"], jnp.stack([first, second]), atol=1e-6
    )
    np.testing.assert_allclose(
        activations(twice, groups, params, X, 2 * X[:2])["a"], jnp.concatenate([first, second[:2]]), atol=1e-6
    )


def test_inside_a_function_with_its_own_derivative() -> None:
    @jax.custom_jvp
    def body(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ a) @ b

    body.defjvp(lambda primals, tangents: (body(*primals), tangents[0] @ primals[1] @ primals[2]))
    params = init(a=(4, 5), b=(5, 2))

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.checkpoint(body)(x, p["a"], p["b"])

    groups = find_groups(fn, params, X)
    np.testing.assert_allclose(
        activations(fn, groups, params, X)["a"], jax.nn.relu(X @ params["a"]), atol=1e-6
    )


def test_their_product_with_the_outgoing_kernel_is_the_networks_output() -> None:
    params = init(a=(4, 5), b=(5, 2))

    def fn(p: Any, x: jax.Array | np.ndarray) -> jax.Array:
        return jax.nn.sigmoid(x @ p["a"]) @ p["b"]

    found = activations(fn, find_groups(fn, params, X), params, X)["a"]
    np.testing.assert_allclose(found @ params["b"], fn(params, X), atol=1e-6)


def test_under_jit_and_vmap_traced_once(assert_traces: Callable[..., Any]) -> None:
    params = init(a=(4, 5), b=(5, 2))

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    groups = find_groups(fn, params, X)
    step = quick_jit(jax.vmap(assert_traces(lambda p, x: activations(fn, groups, p, x), 1)))
    for scale in (1.0, -2.0):
        seeds = jax.tree.map(lambda leaf, scale=scale: jnp.stack([leaf, scale * leaf]), params)
        found = step(seeds, jnp.stack([X, X]))["a"]
        expected = jnp.stack([jax.nn.relu(X @ kernel) for kernel in seeds["a"]])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_function_that_does_not_use_a_group_is_an_error() -> None:
    params = init(a=(4, 5), b=(5, 2), c=(4, 6), d=(6, 1))

    def actor(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["a"]) @ p["b"]

    def both(p: Any, x: jax.Array) -> Any:
        return actor(p, x), jnp.tanh(x @ p["c"]) @ p["d"]

    groups = find_groups(both, params, X)
    with pytest.raises(ValueError, match=r"reads no activation of the groups \['c'\]"):
        activations(actor, groups, params, X)
    assert list(activations(actor, groups.select(["a"]), params, X)) == ["a"]
