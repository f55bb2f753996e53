"""`shrink`: params, optimiser states of many kinds, masks and groups in smaller arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_rl
from prune_rl.pruning.shrinking import gather, staying

SIZE = 6
PARAMS = {
    "first": {"kernel": jnp.arange(18.0).reshape(3, SIZE), "bias": jnp.arange(6.0)},
    "last": {"kernel": jnp.arange(12.0).reshape(SIZE, 2)},
}
MASKS = {"first": jnp.array([True, False, True, False, False, True])}
KEPT = [0, 2, 5]


def network(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return hidden @ params["last"]["kernel"]


GROUPS = prune_rl.find_groups(network, PARAMS, jnp.ones((1, 3)))


def test_kept_neurons_are_gathered_in_order() -> None:
    groups, params, _, masks = prune_rl.shrink(GROUPS, PARAMS, (), MASKS)
    np.testing.assert_array_equal(params["first"]["kernel"], PARAMS["first"]["kernel"][:, KEPT])
    np.testing.assert_array_equal(params["first"]["bias"], PARAMS["first"]["bias"][np.array(KEPT)])
    np.testing.assert_array_equal(params["last"]["kernel"], PARAMS["last"]["kernel"][np.array(KEPT)])
    np.testing.assert_array_equal(masks["first"], [True] * 3)
    assert groups == prune_rl.find_groups(network, params, jnp.ones((1, 3)))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["NumPy", "traced"])
def test_a_kernel_between_two_layers_loses_neurons_along_both_axes(array: Any) -> None:
    """Each axis by its own mask, in the params and in what has their shapes."""
    params = {"a": np.ones((2, 4)), "b": np.arange(20.0).reshape(4, 5), "c": np.ones((5, 1))}

    def two_layers(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    groups = prune_rl.find_groups(two_layers, params, jnp.ones((1, 2)))
    masks = {
        "a": array([False, True, False, True]),
        "b": array([True, False, False, True, True]),
    }
    here = jax.tree.map(array, params)
    gathered = gather(groups, params, (here, {"mu": here}), masks, {"a": 2, "b": 3})
    for tree in (gathered[0], gathered[1]["mu"]):
        np.testing.assert_array_equal(tree["b"], params["b"][[1, 3]][:, [0, 3, 4]])


def test_masked_neurons_fill_wider_arrays_up() -> None:
    groups, params, _, masks = prune_rl.shrink(GROUPS, PARAMS, (), MASKS, widths={"first": 5})
    np.testing.assert_array_equal(masks["first"], [True, False, True, False, True])
    np.testing.assert_array_equal(params["first"]["bias"], [0.0, 1.0, 2.0, 3.0, 5.0])
    assert groups["first"].size == 5


OPTIMISERS = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
    "inject_hyperparams": optax.inject_hyperparams(optax.rmsprop)(1e-2, momentum=0.9),
    "MultiSteps": optax.MultiSteps(optax.lion(1e-2), 2),
    "partition": optax.partition({"a": optax.adam(1e-2), "b": optax.sgd(1e-2)}, {"first": "a", "last": "b"}),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
}


def steps(tx: Any, params: Any, opt_state: Any, masks: Any, times: range) -> tuple[Any, Any]:
    """Training steps with gradients that depend on each param alone."""

    @jax.jit
    def step(params: Any, opt_state: Any, t: int) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda x: jnp.cos(x + t), params)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        return optax.apply_updates(params, updates), opt_state

    for t in times:
        params, opt_state = step(params, opt_state, t)
    return params, opt_state


@pytest.mark.parametrize("inner", OPTIMISERS.values(), ids=OPTIMISERS)
def test_training_goes_on_as_with_masks(inner: Any) -> None:
    """With any optimiser whose state has the shapes of the params, or of parts of them."""
    tx = prune_rl.group_sparse(inner, GROUPS, strength=0.0)
    params, opt_state = steps(tx, PARAMS, tx.init(PARAMS), MASKS, range(3))
    groups, small, small_state, masks = prune_rl.shrink(GROUPS, params, opt_state, MASKS)
    params, _ = steps(tx, params, opt_state, MASKS, range(3, 6))
    small, _ = steps(
        prune_rl.group_sparse(inner, groups, strength=0.0), small, small_state, masks, range(3, 6)
    )
    wanted = prune_rl.compact(GROUPS, params, MASKS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), small, wanted)


def test_positions_of_a_shared_axis_are_counted_anew() -> None:
    """Two layers side by side in one array: the neurons of one go, those of the other move up."""
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 2)), "c": jnp.arange(6.0).reshape(6, 1)}

    def joined(p: Any, x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])], axis=-1) @ p["c"]

    x = jnp.ones((1, 3))
    groups = prune_rl.find_groups(joined, params, x)
    masks = {"a": jnp.array([True, False, False, True]), "b": jnp.array([False, True])}
    found, small, _, _ = prune_rl.shrink(groups, params, (), masks)
    assert found == prune_rl.find_groups(joined, small, x)
    np.testing.assert_array_equal(small["c"].ravel(), [0.0, 3.0, 5.0])


def test_what_a_schedule_counts_from_is_the_size_at_the_start() -> None:
    """`dynamic_pruning` ends at the same neurons, whether its arrays shrink on the way or not."""
    params = {"a": jax.random.normal(jax.random.key(0), (2, 20)), "b": jnp.ones((20, 1))}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["a"]) @ p["b"]

    def loss(p: Any) -> jax.Array:
        return jnp.mean(jnp.square(fn(p, jnp.ones((1, 2))) - 3.0))

    x = jnp.ones((1, 2))

    def run(*, shrinking: bool) -> tuple[Any, Any]:
        groups, here = prune_rl.find_groups(fn, params, x), params

        def make(groups: Any) -> Any:
            adam = optax.inject_hyperparams(optax.adam)(1e-2)
            return prune_rl.dynamic_pruning(
                adam, groups, total_updates=20, every=2, sparsity=0.75, strength=1e-2
            )

        def step_of(tx: Any) -> Any:
            @jax.jit
            def step(here: Any, state: Any) -> tuple[Any, Any]:
                updates, state = tx.update(jax.grad(loss)(here), state, here)
                return optax.apply_updates(here, updates), state

            return step

        tx = make(groups)
        state, step = tx.init(here), step_of(tx)
        for t in range(20):
            here, state = step(here, state)
            if shrinking and t in (5, 8):
                groups, here, state, _ = prune_rl.shrink(groups, here, state, prune_rl.masks_of(state))
                step = step_of(make(groups))
        return prune_rl.compact(groups, here, prune_rl.masks_of(state)), state

    masked, shrunk = run(shrinking=False), run(shrinking=True)
    assert masked[0]["b"].shape == shrunk[0]["b"].shape == (5, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), masked[0], shrunk[0])
    np.testing.assert_array_equal(
        np.flatnonzero(prune_rl.masks_of(masked[1])["a"]),
        np.asarray(shrunk[1].pruning.neurons["a"])[np.asarray(prune_rl.masks_of(shrunk[1])["a"])],
    )


def test_gather_is_jittable_and_vmappable_and_agrees_with_numpy() -> None:
    masks = jnp.stack([MASKS["first"], ~MASKS["first"]])
    widths = {"first": 4}
    found = jax.jit(jax.vmap(lambda mask: gather(GROUPS, PARAMS, PARAMS, {"first": mask}, widths)))(masks)
    for seed, mask in enumerate(np.asarray(masks)):
        assert staying(mask, 4).sum() == 4
        wanted = gather(GROUPS, PARAMS, PARAMS, {"first": mask}, widths)
        jax.tree.map(lambda a, b, s=seed: np.testing.assert_array_equal(a[s], b), found, wanted)


def test_what_cannot_shrink_is_refused() -> None:
    with pytest.raises(ValueError, match="between the 3 neurons that are kept and its size 6, got 2"):
        prune_rl.shrink(GROUPS, PARAMS, (), MASKS, widths={"first": 2})
    with pytest.raises(ValueError, match=r"'second'.*no groups"):
        prune_rl.shrink(GROUPS, PARAMS, (), MASKS, widths={"second": 2})
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda mask: prune_rl.shrink(GROUPS, PARAMS, (), {"first": mask}).params)(MASKS["first"])
    factored = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    with pytest.raises(ValueError, match="cannot be told which of its entries"):
        prune_rl.shrink(GROUPS, PARAMS, factored.init(PARAMS), MASKS)
    unchanged = prune_rl.shrink(GROUPS, PARAMS, factored.init(PARAMS), {})
    assert unchanged.groups == GROUPS
