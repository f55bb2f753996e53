from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.pruning.mask_schedule import cubic_sparsity
from prune_rl.pruning.ranking import nan_scores, update_masks

Array = np.ndarray[Any, Any]
KEPT = jnp.ones(10, bool)
RISING = jnp.arange(10.0)


def removed(masks: Any, name: str = "a") -> list[int]:
    return [int(i) for i in np.flatnonzero(~np.asarray(masks[name]))]


# --- the cubic schedule --------------------------------------------------------------------------------------


@given(st.floats(-1.0, 2.0), st.floats(0.0, 0.99))
def test_cubic_schedule(progress: float, final: float) -> None:
    p = min(max(progress, 0.0), 1.0)
    np.testing.assert_allclose(cubic_sparsity(progress, final), final * (1 - (1 - p) ** 3), atol=1e-6)


def test_cubic_schedule_rises_from_zero_to_its_end_fastest_first() -> None:
    shares = np.asarray(jax.jit(jax.vmap(cubic_sparsity, (0, None)))(jnp.linspace(0, 1, 21), 0.9))
    assert shares[0] == 0.0
    assert shares[-1] == np.float32(0.9)
    assert np.all(np.diff(shares) >= 0)
    assert np.all(np.diff(shares, n=2) <= 1e-6)


# --- one layer against an oracle -----------------------------------------------------------------------------


def oracle(mask: Array, score: Array, allowed: int, energy: float | None, floor: int, regrow: bool) -> Array:
    """One neuron after the other, lowest score first, as long as every rule allows it. float64.

    ``allowed``: how many neurons may be gone. A neuron that is gone already counts there, but holds no importance.
    """
    size = len(mask)
    new = np.ones(size, bool) if regrow else mask.copy()
    total = sum(score[j] for j in range(size) if new[j] and not np.isnan(score[j]))
    gone, held = size - int(new.sum()), 0.0
    candidates = [j for j in range(size) if new[j] and not np.isnan(score[j])]
    for j in sorted(candidates, key=lambda j: (score[j], j)):
        if gone + 1 > allowed or size - (gone + 1) < floor:
            break
        if energy is not None and held + score[j] > energy * total:
            break
        new[j], gone, held = False, gone + 1, held + score[j]
    return new


def allowed_share(percent: int, size: int) -> int:
    return math.floor(Fraction(percent, 100) * size)


FLOORS = {1: 1, 2: 5, 16: 2, 31: 6}  # by size; the second is more than the layer has


@st.composite
def layers(draw: st.DrawFn) -> tuple[Array, Array]:
    """A mask and scores that are multiples of 1/8 (exact in float32, with many ties and zeros), some NaN."""
    size = draw(st.sampled_from(sorted(FLOORS)))
    number = st.integers(0, 12).map(lambda n: n / 8)
    odd = draw(st.booleans())
    score = draw(st.lists(number | st.just(math.nan) if odd else number, min_size=size, max_size=size))
    mask = draw(st.lists(st.booleans() | st.just(True), min_size=size, max_size=size))
    return np.array(mask), np.array(score, np.float32)


# Compiled many times and run for microseconds, so without much optimisation.
jitted = jax.jit(
    update_masks,
    static_argnames=("min_width", "scope", "regrow"),
    compiler_options={"xla_backend_optimization_level": 0},
)
percents = st.integers(0, 99)


@given(layers(), percents, st.booleans())
def test_share_and_floor_against_the_oracle(layer: tuple[Array, Array], percent: int, regrow: bool) -> None:
    mask, score = layer
    floor = FLOORS[len(mask)]
    new = jitted({"a": mask}, {"a": score}, percent / 100, min_width=floor, regrow=regrow)["a"]
    expected = oracle(mask, score, allowed_share(percent, len(mask)), None, floor, regrow)
    np.testing.assert_array_equal(new, expected)


@given(layers(), percents, st.integers(0, 63), st.booleans())
def test_energy_against_the_oracle(
    layer: tuple[Array, Array], percent: int, energy: int, regrow: bool
) -> None:
    mask, score = layer
    share = energy / 64  # with scores in eighths every sum and product is exact, so equality is a fair case
    new = jitted({"a": mask}, {"a": score}, percent / 100, energy=share, regrow=regrow)["a"]
    expected = oracle(mask, score, allowed_share(percent, len(mask)), share, 1, regrow)
    np.testing.assert_array_equal(new, expected)
    alive = np.ones_like(mask) if regrow else mask
    lost = np.nansum(score[alive & ~np.asarray(new)])
    assert lost <= share * np.nansum(score[alive])


@given(st.integers(0, 2**31), st.floats(0.0, 0.9))
@settings(max_examples=50)
def test_energy_on_real_valued_scores(seed: int, energy: float) -> None:
    score = np.random.default_rng(seed).lognormal(sigma=3.0, size=40).astype(np.float32)
    new = np.asarray(jitted({"a": np.ones(40, bool)}, {"a": score}, 0.99, energy=energy)["a"])
    shares = np.cumsum(np.sort(score.astype(np.float64))) / np.sum(score, dtype=np.float64)
    gone = int((~new).sum())
    assert gone == 0 or shares[gone - 1] <= energy + 1e-5
    assert gone == 39 or shares[gone] >= energy - 1e-5
    assert gone == 0 or score[~new].max() <= score[new].min()


@pytest.mark.parametrize("size", [10, 30, 100, 256, 1000, 3000])
def test_a_share_removes_exactly_so_many(size: int) -> None:
    score = jnp.asarray(np.random.default_rng(0).permutation(size), jnp.float32)
    cut = jax.jit(lambda s: jnp.sum(~update_masks({"a": jnp.ones(size, bool)}, {"a": score}, s)["a"]))
    for percent in (0, 1, 7, 10, 29, 50, 57, 58, 70, 90, 93, 97, 99):
        assert int(cut(jnp.float32(percent / 100))) == allowed_share(percent, size)


def test_energy_zero_removes_only_what_holds_nothing() -> None:
    score = jnp.asarray([0.0, 2.0, 0.0, 1.0])
    masks = {"a": jnp.ones(4, bool)}
    assert removed(update_masks(masks, {"a": score}, 0.99, energy=0.0)) == [0, 2]
    assert removed(update_masks(masks, {"a": jnp.zeros(4)}, 0.99, energy=0.0)) == [0, 1, 2]  # the floor of 1


def test_ties_go_by_index() -> None:
    score = {"a": jnp.asarray([1.0, 1, 1, 0, 1, 1, 1, 1, 1, 0])}
    assert removed(update_masks({"a": KEPT}, score, 0.5)) == [0, 1, 2, 3, 9]
    assert removed(update_masks({"a": KEPT}, {"a": jnp.zeros(10)}, 0.3)) == [0, 1, 2]


def test_nan_scores_keep_their_neuron_and_are_counted() -> None:
    score = {"a": RISING.at[jnp.array([0, 1, 4])].set(jnp.nan), "b": jnp.full(10, jnp.nan)}
    masks = {"a": KEPT, "b": KEPT}
    for options in ({}, {"regrow": True}, {"scope": "global"}):
        new = update_masks(masks, score, 0.5, **options)
        assert removed(new, "b") == []
        assert set(removed(new)).isdisjoint({0, 1, 4})
    assert removed(update_masks(masks, score, 0.5)) == [2, 3, 5, 6, 7]
    assert removed(update_masks(masks, score, 0.9)) == [2, 3, 5, 6, 7, 8, 9]
    counts = jax.jit(nan_scores)(score)
    assert {name: int(n) for name, n in counts.items()} == {"a": 3, "b": 10}
    # NaN does not bring a removed neuron back.
    gone = {"a": KEPT.at[0].set(False)}
    assert removed(update_masks(gone, {"a": score["a"]}, 0.1)) == [0]


def test_infinite_scores_go_last() -> None:
    score = {"a": RISING.at[0].set(jnp.inf)}
    assert removed(update_masks({"a": KEPT}, score, 0.8)) == [1, 2, 3, 4, 5, 6, 7, 8]
    # 2 + … + 7 is half of 2 + … + 10: the infinite score is no part of the total.
    assert removed(update_masks({"a": KEPT}, score, 0.8, energy=0.5)) == [1, 2, 3, 4, 5, 6]


def test_per_layer_shares_and_floors() -> None:
    masks = {"a": KEPT, "b": KEPT, "c": jnp.ones(3, bool)}
    score = {"a": RISING, "b": RISING[::-1], "c": jnp.arange(3.0)}
    new = update_masks(masks, score, {"a": 0.9, "b": 0.2, "c": 0.9}, min_width={"a": 4, "b": 1, "c": 8})
    assert removed(new, "a") == [0, 1, 2, 3, 4, 5]
    assert removed(new, "b") == [8, 9]
    assert removed(new, "c") == []  # the floor is more than the layer has


@given(
    st.integers(0, 2**31), st.lists(percents, min_size=2, max_size=5), st.sampled_from(["layer", "global"])
)
@settings(max_examples=40)
def test_masks_shrink_monotonically(seed: int, shares: list[int], scope: Any) -> None:
    rng = np.random.default_rng(seed)
    masks: Any = {"a": np.ones(16, bool), "b": np.ones(5, bool)}
    most = 0
    for percent in shares:
        score = {name: rng.exponential(size=mask.size).astype(np.float32) for name, mask in masks.items()}
        new = jitted(masks, score, percent / 100, min_width=2, scope=scope)
        for name, mask in masks.items():
            assert not np.any(np.asarray(new[name]) & ~np.asarray(mask))
            assert int(new[name].sum()) >= 2
        masks, most = new, max(most, percent)
    if scope == "layer":  # fresh scores at every update, still exactly the largest share
        for mask in masks.values():
            assert int((~mask).sum()) == min(allowed_share(most, mask.size), mask.size - 2)


def test_regrow_draws_masks_anew() -> None:
    old = {"a": KEPT.at[jnp.array([7, 8, 9])].set(False)}
    assert removed(update_masks(old, {"a": RISING}, 0.3, regrow=True)) == [0, 1, 2]
    assert removed(update_masks(old, {"a": RISING}, 0.3)) == [7, 8, 9]
    assert removed(update_masks(old, {"a": RISING}, 0.4)) == [0, 7, 8, 9]


# --- one ranking over all layers -----------------------------------------------------------------------------


def global_oracle(
    masks: dict[str, Array], scores: dict[str, Array], allowed: int, floor: int
) -> dict[str, Array]:
    new = {name: mask.copy() for name, mask in masks.items()}
    ranking = []
    for layer, name in enumerate(sorted(masks)):
        living = scores[name][masks[name] & ~np.isnan(scores[name])].astype(np.float64)
        mean = living.mean() if living.size and living.mean() > 0 else 1.0
        for i in np.flatnonzero(masks[name] & ~np.isnan(scores[name])):
            ranking.append((np.float64(scores[name][i]) / mean, layer, int(i), name))
    gone = int(sum((~mask).sum() for mask in masks.values()))
    for _, _, j, name in sorted(ranking):
        if gone + 1 > allowed:
            break
        if new[name].sum() > floor:
            new[name][j], gone = False, gone + 1
    return new


@given(st.integers(0, 2**31), percents, st.sampled_from([1, 3]), st.booleans())
@settings(max_examples=60)
def test_global_scope_against_the_oracle(seed: int, percent: int, floor: int, with_nan: bool) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"a": 7, "b": 20, "c": 4}
    masks = {name: rng.random(size) < 0.9 for name, size in sizes.items()}
    units = 10.0 ** rng.uniform(-3, 3, size=3)
    scores = {
        name: (unit * rng.exponential(size=size)).astype(np.float32)
        for (name, size), unit in zip(sizes.items(), units, strict=True)
    }
    if with_nan:
        scores["b"][rng.integers(20)] = np.nan
    new = jitted(masks, scores, percent / 100, min_width=floor, scope="global")
    expected = global_oracle(masks, scores, allowed_share(percent, 31), floor)
    for name in masks:
        np.testing.assert_array_equal(new[name], expected[name])


def test_global_scope_does_not_see_the_scale_of_a_layer() -> None:
    masks = {"a": KEPT, "b": KEPT}
    new = update_masks(masks, {"a": 1e-6 * RISING, "b": 1e6 * RISING}, 0.5, scope="global")
    assert removed(new, "a") == removed(new, "b") == [0, 1, 2, 3, 4]
    uneven = update_masks(masks, {"a": jnp.full(10, 1.0), "b": RISING**4}, 0.3, scope="global")
    assert removed(uneven, "a") == []
    assert removed(uneven, "b") == [0, 1, 2, 3, 4, 5]


def test_global_floors_hold_where_a_layer_would_be_emptied() -> None:
    masks = {"a": KEPT, "b": KEPT}
    scores = {"a": jnp.zeros(10), "b": 1.0 + RISING}
    new = update_masks(masks, scores, 0.95, min_width={"a": 3, "b": 2}, scope="global")
    assert removed(new, "a") == [0, 1, 2, 3, 4, 5, 6]
    assert removed(new, "b") == [0, 1, 2, 3, 4, 5, 6, 7]


def test_global_energy_is_of_all_layers_together() -> None:
    masks = {"a": jnp.ones(4, bool), "b": jnp.ones(4, bool)}
    scores = {
        "a": jnp.asarray([0.5, 0.5, 1.5, 1.5]),
        "b": jnp.asarray([1.0, 1.0, 1.0, 1.0]),
    }  # means 1: 8 in all
    new = update_masks(masks, scores, 0.9, energy=0.25, scope="global")
    assert removed(new, "a") == [0, 1]
    assert removed(new, "b") == [0]


def test_global_ties_do_not_depend_on_jit_or_the_order_of_names() -> None:
    scores = {"b": jnp.ones(4), "a": jnp.ones(4)}
    for names in (("a", "b"), ("b", "a")):
        masks = {name: jnp.ones(4, bool) for name in names}
        for update in (update_masks, jitted):
            new = update(masks, scores, 0.5, scope="global")
            assert (removed(new, "a"), removed(new, "b")) == ([0, 1, 2], [0])


def test_an_infinite_score_does_not_switch_the_energy_rule_off() -> None:
    finite = jnp.asarray([1.0, 2.0, 3.0, 4.0, 10.0], jnp.float32)
    masks = {"a": jnp.ones(6, bool)}
    scores = {"a": jnp.concatenate([finite, jnp.asarray([jnp.inf])])}
    new = update_masks(masks, scores, 0.9, energy=0.2)["a"]
    # 1 + 2 of a finite total of 20; the infinite score counts for nothing in it, and keeps its neuron.
    np.testing.assert_array_equal(new, [False, False, True, True, True, True])
    both = update_masks({"a": masks["a"], "b": masks["a"]}, {"a": scores["a"], "b": scores["a"]}, 0.9, energy=0.2,
                        scope="global")  # fmt: skip
    assert all(int((~mask).sum()) == 2 and bool(mask[-1]) for mask in both.values())


def test_scores_whose_sum_overflows_keep_the_energy_rule() -> None:
    scores = {"a": jnp.asarray([1.0, 2.0, 3.0, 4.0, 10.0], jnp.float32) * 3e37}
    new = update_masks({"a": jnp.ones(5, bool)}, scores, 0.9, energy=0.2)["a"]
    np.testing.assert_array_equal(new, [False, False, True, True, True])


# --- closed ----------------------------------------------------------------------------------------------------


def test_a_closed_gate_leaves_the_masks() -> None:
    old = {"a": KEPT.at[3].set(False)}
    for scope in ("layer", "global"):
        for gate in (False, jnp.zeros((), bool)):
            for regrow in (False, True):
                new = update_masks(old, {"a": RISING}, 0.9, gate=gate, regrow=regrow, scope=scope)
                np.testing.assert_array_equal(new["a"], old["a"])
        assert len(removed(update_masks(old, {"a": RISING}, 0.9, gate=jnp.ones((), bool), scope=scope))) == 9


# --- compiled once, batched, refused -------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_compiled_once_for_changing_values(scope: Any, count_traces: Any) -> None:
    masks = {"a": KEPT, "b": jnp.ones(6, bool)}
    scores = {"a": RISING, "b": jnp.arange(6.0)}

    def cut(masks: Any, sparsity: Any, energy: Any, gate: Any) -> Any:
        return update_masks(masks, scores, sparsity, energy=energy, gate=gate, scope=scope)

    counted = count_traces(cut)
    compiled = jax.jit(counted)
    for sparsity, energy, gate in ((0.1, 0.9, True), (0.5, 0.9, False), (0.9, 0.3, True)):
        arguments = (jnp.float32(sparsity), jnp.float32(energy), jnp.asarray(gate))
        new, plain = compiled(masks, *arguments), cut(masks, *arguments)
        for name in masks:
            np.testing.assert_array_equal(new[name], plain[name])
        masks = new
    assert counted.traces == 1


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_batched_over_seeds(scope: Any) -> None:
    rng = np.random.default_rng(0)
    masks = {"a": rng.random((4, 10)) < 0.8, "b": rng.random((4, 6)) < 0.8}
    scores = {name: rng.random(mask.shape).astype(np.float32) for name, mask in masks.items()}
    shares, gates = np.array([0.1, 0.5, 0.9, 0.7], np.float32), np.array([True, True, True, False])

    def cut(masks: Any, scores: Any, sparsity: Any, gate: Any) -> Any:
        return update_masks(masks, scores, sparsity, energy=0.5, gate=gate, scope=scope)

    batched = jax.jit(jax.vmap(cut))(masks, scores, shares, gates)
    one = jax.jit(cut)
    for i in range(4):
        expected = one(*jax.tree.map(lambda x, i=i: x[i], (masks, scores, shares, gates)))
        for name in masks:
            np.testing.assert_array_equal(batched[name][i], expected[name])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [1.0, 7.0, math.inf, math.nan, -1.0])
def test_a_traced_share_out_of_range_never_breaks_the_floor(share: float, scope: Any) -> None:
    for energy in (None, jnp.float32(share)):
        new = jitted({"a": KEPT}, {"a": RISING}, jnp.float32(share), energy=energy, min_width=2, scope=scope)
        assert int(new["a"].sum()) == (2 if share >= 1 else 10)


def test_wrong_static_values_raise() -> None:
    masks, scores = {"a": KEPT}, {"a": RISING}
    for arguments, options, words in (
        (({}, {}), {}, "empty"),
        ((masks, {"b": RISING}), {}, "'a'.*'b'"),
        ((masks, {"a": RISING[:9]}), {}, r"'a'.*\(9,\).*\(10,\)"),
        ((masks, scores, 1.1), {}, r"sparsity.*\[0, 1\].*1.1"),
        ((masks, scores, -0.1), {}, "sparsity.*-0.1"),
        ((masks, scores, math.nan), {}, "sparsity.*nan"),
        ((masks, scores, {"a": 2.0}), {}, "sparsity.*2.0"),
        ((masks, scores, {"b": 0.5}), {}, r"\['a'\]"),
        ((masks, scores, {"a": 0.5}), {"scope": "global"}, "global"),
        ((masks, scores, 0.5), {"energy": 1.5}, "energy.*1.5"),
        ((masks, scores, 0.5), {"scope": "everywhere"}, "everywhere.*layer.*global"),
        ((masks, scores, 0.5), {"min_width": -1}, "min_width.*-1"),
        ((masks, scores, 0.5), {"min_width": {"a": -3}}, "min_width.*-3"),
        ((masks, scores, 0.5), {"min_width": {"b": 3}}, r"min_width.*\['a'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            update_masks(*arguments, **options)
