"""Scores that are compared over layers (LAMP, isomorphic classes), shares by pattern, and widths in multiples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.isomorphism import isomorphic_classes
from prune_rl.pruning.lamp import lamp_scores
from prune_rl.pruning.ranking import update_masks
from prune_rl.pruning.shares import shares
from tests.dependency.small_networks import normal

ALL = {"a": jnp.ones(4, bool), "b": jnp.ones(2, bool)}


update = jax.jit(update_masks, static_argnames=("scope", "multiple_of", "min_width"))
SCORES = {"a": jnp.array([4.0, 1.0, 2.0, 1.0]), "b": jnp.array([30.0, 10.0])}


def kept(masks: Any) -> dict[str, list[int]]:
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}


def test_a_lamp_score_is_a_share_of_what_is_not_lower() -> None:
    found = jax.jit(lamp_scores)(SCORES)
    np.testing.assert_allclose(found["a"], [4 / 4, 1 / 8, 2 / 6, 1 / 7], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [1.0, 10 / 40], rtol=1e-6)
    # What is masked holds nothing; NaN stays, and holds nothing either.
    some = jax.jit(lamp_scores)(
        {"a": SCORES["a"].at[3].set(jnp.nan)}, {"a": jnp.array([True, True, False, True])}
    )
    np.testing.assert_allclose(some["a"], [1.0, 1 / 5, 0.0, np.nan], rtol=1e-6)


def test_ranked_by_lamp_no_layer_is_emptied_and_scale_does_not_matter() -> None:
    expected = {3: {"a": [0, 2], "b": [0]}, 4: {"a": [0], "b": [0]}}  # lowest first: a1, a3, b1, a2
    for gone, left in expected.items():
        assert kept(update(ALL, SCORES, gone / 6, scope="lamp")) == left
        scaled = {"a": SCORES["a"] * 1e-3, "b": SCORES["b"]}
        assert kept(update(ALL, scaled, gone / 6, scope="lamp")) == left
    # By the means of the layers, the small one of "b" is as small as the small ones of "a".
    assert kept(update(ALL, SCORES, 3 / 6, scope="global")) == {"a": [0, 2], "b": [0]}
    # From one share to the next, neurons only go.
    masks = ALL
    for share in (0.2, 0.5, 0.9):
        new = update(masks, SCORES, share, scope="lamp")
        assert all(not np.any(np.asarray(new[name]) & ~np.asarray(masks[name])) for name in masks)
        masks = new
    assert kept(masks) == {"a": [0], "b": [0]}  # one of each stays


def test_each_class_is_ranked_by_itself() -> None:
    masks = {name: jnp.ones(4, bool) for name in ("x", "y", "z")}
    scores = {"x": jnp.array([1.0, 2, 3, 4]), "y": jnp.array([9.0, 9, 9, 1]), "z": jnp.array([5.0, 6, 7, 8])}
    classes = {"x": "mlp", "y": "mlp", "z": "heads"}
    # x: 0.4, 0.8, 1.2, 1.6 of its mean; y: 9/7 three times, 1/7. Half of the eight go, and half of z.
    left = update_masks(masks, scores, 0.5, scope=classes)
    assert kept(left) == {"x": [3], "y": [0, 1, 2], "z": [2, 3]}
    with pytest.raises(ValueError, match=r"scope lacks groups \['z'\]"):
        update_masks(masks, scores, scope={"x": "mlp", "y": "mlp"})
    with pytest.raises(ValueError, match="choose 'layer', 'global', 'lamp' or"):
        update_masks(masks, scores, scope="lmap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound per layer"):
        update_masks(masks, scores, scope=classes, at_once=0.5)


def test_layers_of_one_structure_are_one_class() -> None:
    params = {
        "a": {"w": normal(3, 5), "b": normal(5)},
        "b": {"w": normal(5, 6), "b": normal(6)},
        "c": {"w": normal(6, 4)},
        "q": normal(4, 2, 3),
        "k": normal(4, 2, 3),
        "v": normal(4, 2, 3),
        "o": normal(2, 3, 2),
    }

    def fn(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"]["w"] + p["a"]["b"][None])
        h = jnp.tanh(h @ p["b"]["w"] + p["b"]["b"][None])
        h = jnp.tanh(h @ p["c"]["w"])
        q, k, v = (jnp.einsum("bi,ihd->bhd", h, p[name]) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k))
        return jnp.einsum("hbc,chd,hdo->bo", scores, v, p["o"])

    groups = find_groups(fn, params, normal(2, 3))
    classes = isomorphic_classes(groups, params)
    assert set(classes) == set(groups)
    # Two hidden layers with a bias are alike, whatever their widths; one without is not, nor are features of heads.
    assert classes["a"] == classes["b"]
    others = [classes[name] for name in groups if name not in ("a", "b")]
    assert classes["a"] not in others
    assert len({*others}) == len(others)
    with pytest.raises(ValueError, match="not a leaf of the given tree"):
        isomorphic_classes(groups, {"a": params["a"]})


def test_heads_and_what_each_carries_have_shares_of_their_own() -> None:
    params = {name: normal(4, 2, 6) for name in "qkv"} | {"o": normal(2, 6, 2)}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.einsum("bi,ihd->bhd", x, p[name]) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k))
        return jnp.einsum("hbc,chd,hdo->bo", scores, v, p["o"])

    groups = find_groups(fn, params, normal(3, 4))
    assert {name: group.size for name, group in groups.items()} == {"q[2]": 6, "q[1]": 2, "v": 6}
    by_group = shares(groups, {"q[1]": 0.5, "q*": 0.25, "*": 0.75})
    masks = {name: jnp.ones(group.size, bool) for name, group in groups.items()}
    scores = {name: jnp.arange(float(group.size)) for name, group in groups.items()}
    left = update_masks(masks, scores, by_group)
    assert {name: int(mask.sum()) for name, mask in left.items()} == {"q[2]": 5, "q[1]": 1, "v": 2}


def test_patterns_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no group has a name like \['critic/\*'\]"):
        shares(["actor/a"], {"critic/*": 0.5, "*": 0.9})
    with pytest.raises(ValueError, match="no pattern fits group 'actor/a'"):
        shares(["actor/a", "critic/b"], {"critic/*": 0.5})


@given(st.integers(0, 2**16), st.sampled_from([2, 8, 16]), st.integers(0, 100), st.booleans())
@settings(max_examples=30)
def test_widths_are_multiples_or_nothing_goes(seed: int, multiple: int, percent: int, over_all: bool) -> None:
    rng = np.random.default_rng(seed)
    masks = {"a": np.arange(50) < 44, "b": np.ones(16, bool)}
    scores = {name: rng.integers(0, 9, mask.size).astype(np.float32) for name, mask in masks.items()}
    options: Any = {"sparsity": percent / 100, "scope": "global" if over_all else "layer", "min_width": 0}
    plain, new = (jax.device_get(update(masks, scores, multiple_of=m, **options)) for m in (1, multiple))
    for name, mask in masks.items():
        before, wanted, width = int(mask.sum()), int(plain[name].sum()), int(new[name].sum())
        assert width == min(-(-wanted // multiple) * multiple, before)
        assert not np.any(plain[name] & ~new[name])  # what the other rules keep stays
        gone, back = np.asarray(mask & ~new[name]), np.asarray(new[name] & ~plain[name])
        if gone.any() and back.any():
            assert scores[name][gone].max() <= scores[name][back].min()
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="multiple_of must be an integer >= 1"):
            update_masks(masks, scores, multiple_of=wrong)  # type: ignore[arg-type]
