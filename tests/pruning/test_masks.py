"""Masked slices are exactly 0, the rest is untouched, and counts are those of the compacted tree."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.dependency.compaction import compact
from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.pruning.masks import Kept, apply_masks, count, init_masks, mask_like

INPUTS, OUTPUTS = 3, 2


def net(params: Any, x: jax.Array) -> jax.Array:
    *hidden, head = params
    for w, b in hidden:
        x = jnp.tanh(x @ w + b[None])
    return x @ head[0] + head[1][None]


def make(*widths: int, seed: int = 0) -> tuple[NeuronGroups, Any]:
    rng = np.random.default_rng(seed)
    sizes = [INPUTS, *widths, OUTPUTS]
    params = [
        (rng.normal(size=(i, o)).astype(np.float32), rng.normal(size=o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]
    return find_groups(net, params, jnp.ones((1, INPUTS))), params


def numpy_masked(params: Any, masks: dict[str, Any]) -> Any:
    """The definition, for `net`: column of w, entry of b, row of the next w."""
    leaves = [(np.array(w), np.array(b)) for w, b in params]
    for layer in range(len(leaves) - 1):
        gone = ~np.asarray(masks.get(str(layer), np.ones(leaves[layer][1].shape, bool)))
        leaves[layer][0][:, gone] = 0
        leaves[layer][1][gone] = 0
        leaves[layer + 1][0][gone, :] = 0
    return leaves


def equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@st.composite
def widths_and_masks(draw: st.DrawFn) -> tuple[list[int], dict[str, np.ndarray[Any, Any]]]:
    widths = draw(st.lists(st.sampled_from([1, 3, 6]), min_size=1, max_size=3))
    masks = {
        str(i): np.array(draw(st.lists(st.booleans(), min_size=width, max_size=width)))
        for i, width in enumerate(widths)
    }
    return widths, masks


def test_init_masks_keep_everything() -> None:
    groups, params = make(5, 6)
    masks = init_masks(groups)
    assert {name: (mask.shape, mask.dtype) for name, mask in masks.items()} == {
        "0": ((5,), bool),
        "1": ((6,), bool),
    }
    assert equal(apply_masks(groups, params, masks), params)
    assert all(leaf.all() for leaf in jax.tree.leaves(mask_like(groups, params, masks)))
    assert count(groups, params, masks).neurons == Kept(11, 11)


@given(widths_and_masks())
@settings(max_examples=25)
def test_apply_masks_and_count_against_their_definitions(case: Any) -> None:
    widths, masks = case
    groups, params = make(*widths)
    masked, kept = jax.jit(lambda: (apply_masks(groups, params, masks), mask_like(groups, params, masks)))()
    assert equal(masked, numpy_masked(params, masks))
    assert equal(kept, jax.tree.map(lambda leaf: np.asarray(leaf) != 0, masked))  # no normal sample is 0
    counted = count(groups, params, masks)
    assert counted.widths == {name: int(mask.sum()) for name, mask in masks.items()}
    assert counted.neurons == Kept(sum(counted.widths.values()), sum(widths))
    assert counted.weights.kept == sum(int(leaf.sum()) for leaf in jax.tree.leaves(kept))
    assert counted.weights.kept == sum(leaf.size for leaf in jax.tree.leaves(compact(groups, params, masks)))
    assert counted.weights.total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert {type(n) for n in (*counted.neurons, *counted.weights, *counted.widths.values())} == {int}


def test_nan_and_inf_become_zero() -> None:
    groups, params = make(5, 6)
    masks = {"0": jnp.arange(5) < 2, "1": jnp.arange(6) < 1}
    expected = numpy_masked(params, masks)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        kept = mask_like(groups, params, masks)
        broken = jax.tree.map(lambda leaf, keep, bad=bad: jnp.where(keep, leaf, bad), params, kept)
        assert equal(apply_masks(groups, broken, masks), expected)


def test_names_missing_or_unknown() -> None:
    groups, params = make(5, 6)
    masks = {"1": jnp.arange(6) < 1, "critic/layer_9": jnp.zeros(3, bool)}
    assert equal(apply_masks(groups, params, masks), numpy_masked(params, masks))
    assert count(groups, params, masks).widths == {"0": 5, "1": 1}


def test_dtypes_are_kept_and_gradients_of_masked_slices_are_zero() -> None:
    groups, params = make(5, 6)
    masks = {"0": jnp.arange(5) < 2}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(apply_masks(groups, half, masks))} == {
        jnp.dtype(jnp.bfloat16)
    }
    gradient = jax.grad(lambda p: (net(apply_masks(groups, p, masks), jnp.ones((4, INPUTS))) ** 2).sum())(
        params
    )
    assert equal(gradient, numpy_masked(gradient, masks))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_under_jit_with_changing_masks_traced_once(assert_traces: Callable[..., Any]) -> None:
    groups, params = make(5, 6)
    step = jax.jit(assert_traces(lambda p, m: apply_masks(groups, p, m), 1))
    for k in range(3):
        masks = {"0": jnp.arange(5) < k, "1": jnp.arange(6) != k}
        assert equal(step(params, masks), numpy_masked(params, masks))


def test_under_vmap_over_seeds() -> None:
    groups, _ = make(5, 6)
    seeds = [make(5, 6, seed=s)[1] for s in range(3)]
    masks = {"0": jax.random.bernoulli(jax.random.key(0), 0.5, (3, 5)), "1": jnp.eye(3, 6, dtype=bool)}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    masked = jax.jit(jax.vmap(lambda p, m: apply_masks(groups, p, m)))(stacked, masks)
    for s, params in enumerate(seeds):
        one = jax.tree.map(lambda leaf, s=s: leaf[s], masked)
        assert equal(one, numpy_masked(params, {name: mask[s] for name, mask in masks.items()}))


def test_a_leaf_with_two_axes_in_one_group() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4, 2))}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"])
        return (h + jnp.tanh(h @ p["b"])) @ p["c"]

    groups = find_groups(fn, params, jnp.ones((1, 3)))
    masks = {"a": jnp.array([True, False, True, False])}
    masked = apply_masks(groups, params, masks)
    assert np.array_equal(masked["b"], np.outer(masks["a"], masks["a"]))
    assert count(groups, params, masks).weights == Kept(3 * 2 + 2 * 2 + 2 * 2, 12 + 16 + 8)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0": np.ones(4, bool)}, r"mask of group '0' must be bool\[5\].*got bool of shape \(4,\)"),
        ({"0": np.ones((1, 5), bool)}, r"bool\[5\]"),
        ({"0": np.ones(5, np.float32)}, r"got float32 of shape \(5,\)"),
    ],
)
def test_bad_masks(masks: Any, message: str) -> None:
    groups, params = make(5, 6)
    for call in (apply_masks, count, compact, mask_like):
        with pytest.raises(ValueError, match=message):
            call(groups, params, masks)


def test_groups_of_another_tree() -> None:
    groups, params = make(5, 6)
    with pytest.raises(ValueError, match=r"slice of '0/0' with 5 neurons along axis 1.*has shape \(3, 4\)"):
        apply_masks(groups, make(4, 6)[1], init_masks(groups))
    with pytest.raises(ValueError, match="'1/0', which is not a leaf of the given tree"):
        apply_masks(groups, params[:1], init_masks(groups))


def test_counting_needs_concrete_masks_but_only_shapes_of_params() -> None:
    groups, params = make(5, 6)
    abstract = jax.eval_shape(lambda: params)
    assert count(groups, abstract, init_masks(groups)) == count(groups, params, init_masks(groups))
    with pytest.raises(ValueError, match="the mask of group '0' is traced"):
        jax.jit(lambda m: count(groups, params, m).neurons.kept)(init_masks(groups))


def test_masks_of_integers_are_those_of_zeros_and_ones() -> None:
    groups, params = make(5)
    mask = np.array([True, False, True, True, False])
    for dtype in (np.int32, np.uint8, np.int8):
        assert equal(
            apply_masks(groups, params, {"0": mask.astype(dtype)}), apply_masks(groups, params, {"0": mask})
        )
        assert equal(compact(groups, params, {"0": mask.astype(dtype)}), compact(groups, params, {"0": mask}))
        assert count(groups, params, {"0": jnp.asarray(mask, dtype)}).widths == {"0": 3}
    with pytest.raises(ValueError, match=r"or hold 0 and 1, got \[0, 2\]"):
        compact(groups, params, {"0": mask.astype(np.int32) * 2})


def test_masks_of_which_none_is_a_groups_are_an_error() -> None:
    groups, params = make(5)
    mask = np.array([True, False, True, True, False])
    uses: list[Callable[..., Any]] = [apply_masks, compact, count]
    for use in uses:
        with pytest.raises(
            ValueError, match=r"masks has \['first'\], of which none is a group: the groups are"
        ):
            use(groups, params, {"first": mask})
    # Those of other networks may be beside them.
    assert equal(compact(groups, params, {"0": mask, "first": mask}), compact(groups, params, {"0": mask}))
