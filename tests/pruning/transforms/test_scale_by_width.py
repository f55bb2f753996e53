from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.transforms.group_sparse import group_sparse
from prune_rl.pruning.transforms.scale_by_width import scale_by_width


def mlp(params: Any, x: Any) -> Any:
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["w"] + layer["b"][None])
    return x @ params["out"]


@pytest.fixture
def params() -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "hidden": [
            {"w": jax.random.normal(keys[0], (3, 8)), "b": jnp.zeros(8)},
            {"w": jax.random.normal(keys[1], (8, 4)), "b": jnp.zeros(4)},
        ],
        "out": jax.random.normal(keys[2], (4, 2)),
    }


@pytest.fixture
def groups(params: Any) -> Any:
    return find_groups(mlp, params, jnp.zeros((1, 3)))


def masks_with(groups: Any, **kept: Any) -> Any:
    """All kept but in the groups named, by position, of which the first ``kept`` neurons are."""
    names = list(groups)
    masks = init_masks(groups)
    for position, count in kept.items():
        name = names[int(position[1:])]
        masks[name] = jnp.arange(groups[name].size) < count
    return masks


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_only_what_reads_a_layer_takes_longer_steps_by_the_power_of_the_width_lost(
    params: Any, groups: Any, exponent: float
) -> None:
    tx = scale_by_width(groups, exponent)
    ones = jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    scaled, _ = jax.jit(lambda masks: tx.update(ones, state, params, masks=masks))(
        masks_with(groups, _0=2, _1=1)
    )
    np.testing.assert_allclose(scaled["hidden"][1]["w"], 4.0**exponent, rtol=1e-6)
    np.testing.assert_allclose(scaled["out"], 4.0**exponent, rtol=1e-6)
    np.testing.assert_array_equal(scaled["hidden"][0]["w"], 1.0)
    for layer in scaled["hidden"]:
        np.testing.assert_array_equal(layer["b"], 1.0)
    assert [leaf.dtype for leaf in jax.tree.leaves(scaled)] == [jnp.float32] * 5


def test_without_masks_or_with_all_neurons_nothing_changes(params: Any, groups: Any) -> None:
    tx = scale_by_width(groups, 1.0)
    extras: list[dict[str, Any]] = [{}, {"masks": init_masks(groups)}, {"masks": {}}]
    for extra in extras:
        scaled, state = tx.update(params, tx.init(params), params, **extra)
        for new, old in zip(jax.tree.leaves(scaled), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(new, old)
        assert state == tx.init(params)


def test_an_empty_layer_stays_finite(params: Any, groups: Any) -> None:
    tx = scale_by_width(groups, 1.0)
    scaled, _ = tx.update(params, tx.init(params), params, masks=masks_with(groups, _0=0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scaled))


def test_behind_adam_inside_group_sparse_it_gets_the_masks(params: Any, groups: Any) -> None:
    masks = masks_with(groups, _0=2)
    grads = jax.tree.map(jnp.ones_like, params)

    def step(inner: Any) -> Any:
        tx = group_sparse(inner, groups, strength=0.0)
        return tx.update(grads, tx.init(params), params, masks=masks)[0]

    plain = step(optax.adam(0.1))
    scaled = step(optax.chain(optax.adam(0.1), scale_by_width(groups, 0.5)))
    # What is kept of the second kernel moves twice as far, and what is masked goes to 0 all the same.
    np.testing.assert_allclose(
        scaled["hidden"][1]["w"][:2], 2.0 * np.asarray(plain["hidden"][1]["w"][:2]), rtol=1e-6
    )
    np.testing.assert_array_equal(scaled["hidden"][1]["w"][2:], -params["hidden"][1]["w"][2:])
    np.testing.assert_array_equal(scaled["out"], plain["out"])


@pytest.mark.parametrize("exponent", [-0.5, float("nan"), float("inf")])
def test_an_exponent_that_cannot_work_is_refused(groups: Any, exponent: Any) -> None:
    with pytest.raises(ValueError, match="exponent must be a finite number >= 0, got"):
        scale_by_width(groups, exponent)
