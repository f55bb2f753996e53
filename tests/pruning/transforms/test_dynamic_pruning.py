from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prune_rl.dependency.activations import activations
from prune_rl.dependency.compaction import compact
from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.importance import magnitude_importance
from prune_rl.pruning.mask_schedule import Schedule
from prune_rl.pruning.masks import apply_masks
from prune_rl.pruning.ranking import update_masks
from prune_rl.pruning.scores import SCORES
from prune_rl.pruning.transforms.dynamic_pruning import dynamic_pruning, masks_of
from tests.compilation import optimized_jit

Array = np.ndarray[Any, Any]
SIZES = {"first": 20, "second": 10}


def make_params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"first": (3, 20), "second": (20, 10), "head": (10, 2)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.asarray(0.1 * rng.normal(size=shape[1:]), jnp.float32),
        }
        for name, shape in shapes.items()
    }


def dense(layer: Any, x: jax.Array) -> jax.Array:
    fed: jax.Array = x @ layer["kernel"] + layer["bias"][None, :]
    return fed


def forward(params: Any, x: jax.Array, act: Any = jax.nn.sigmoid) -> jax.Array:
    for name in SIZES:
        x = act(dense(params[name], x))
    return dense(params["head"], x)


X = jnp.asarray(np.random.default_rng(1).normal(size=(64, 3)), jnp.float32)
Y = jnp.sin(2.0 * X[:, :2])
GROUPS = find_groups(forward, make_params(), X)


def loss(params: Any) -> jax.Array:
    return jnp.mean(jnp.square(forward(params, X) - Y))


def train(tx: Any, params: Any, steps: int) -> Any:
    """(params, state), and after every update: masks, params, state."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (masks_of(state), params, state)

    return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)


def run(tx: Any, steps: int, params: Any = None) -> Any:
    # The programs run for milliseconds and compile for seconds, so they are compiled without much optimisation.
    quick = jax.jit(
        lambda params: train(tx, params, steps), compiler_options={"xla_backend_optimization_level": 0}
    )
    return quick(make_params() if params is None else params)


def gone_share(masks: Any) -> dict[str, Array]:
    return {name: np.sum(~np.asarray(mask), axis=-1) for name, mask in masks.items()}


def scheduled(made: int, number: int, sparsity: float, size: int) -> int:
    """How many neurons the cubic schedule lets go with the mask update ``made`` of ``number``."""
    p = made / number
    share = Fraction(str(sparsity)) if p == 1.0 else Fraction(sparsity * (1 - (1 - p) ** 3))
    return math.floor(share * size + Fraction(1, 10**4))


def gone_entries(tree: Any, masks: Any) -> Array:
    """Every entry of the masked neurons' slices."""
    first, second = (np.flatnonzero(~np.asarray(masks[name])) for name in SIZES)
    parts = [
        np.asarray(tree["first"]["kernel"])[:, first],
        np.asarray(tree["first"]["bias"])[first],
        np.asarray(tree["second"]["kernel"])[first],
        np.asarray(tree["second"]["kernel"])[:, second],
        np.asarray(tree["second"]["bias"])[second],
        np.asarray(tree["head"]["kernel"])[second],
    ]
    return np.concatenate([part.ravel() for part in parts])


def moments(state: Any) -> list[Any]:
    def is_moment(node: Any) -> bool:
        return isinstance(node, dict) and set(node) == {*SIZES, "head"}

    return [node for node in jax.tree.leaves(state, is_leaf=is_moment) if is_moment(node)]


@pytest.mark.parametrize(
    ("total", "every", "begin", "end", "sparsity", "due"),
    [
        (200, 10, 0.1, 0.6, 0.9, range(20, 121, 10)),
        (205, 20, 0.0, 1.0, 0.7, range(20, 201, 20)),  # the end is no multiple of every
        (30, 50, 0.2, 0.8, 0.5, [24]),  # every is longer than the training
        (60, 7, 0.5, 0.5, 0.7, [30]),  # one shot
        (40, 7, 1.0, 1.0, 0.8, [40]),
    ],
)
def test_masks_follow_the_schedule_and_reach_the_wanted_sparsity(
    total: int, every: int, begin: float, end: float, sparsity: float, due: Sequence[int]
) -> None:
    tx = dynamic_pruning(
        optax.adam(1e-2), GROUPS, total_updates=total, sparsity=sparsity, begin=begin, end=end, every=every
    )
    _, (masks, _, _) = run(tx, total)
    gone = gone_share(masks)
    for name, size in SIZES.items():
        made = expected = 0
        for count in range(1, total + 1):
            if count in due:
                made += 1
                expected = scheduled(made, len(due), sparsity, size)
            assert gone[name][count - 1] == expected, (name, count)
        assert gone[name][-1] == math.floor(Fraction(str(sparsity)) * size)


@pytest.mark.parametrize("name", ["adamw", "momentum", "clipped"])
def test_masked_neurons_stay_gone(name: str) -> None:
    inner = {
        "adamw": optax.adamw(1e-2, weight_decay=0.1),
        "momentum": optax.sgd(0.1, momentum=0.9),
        "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)),
    }[name]
    tx = dynamic_pruning(inner, GROUPS, total_updates=400, sparsity=0.7, begin=0.1, end=0.5, every=20)
    (params, state), (masks, all_params, states) = run(tx, 400)
    for step in (*range(0, 400, 37), *range(19, 220, 20)):  # the masks change at the latter
        now = jax.tree.map(lambda x, step=step: x[step], (masks, all_params, states))
        np.testing.assert_array_equal(gone_entries(now[1], now[0]), 0.0)
        assert moments(now[2])
        for moment in moments(now[2]):
            np.testing.assert_array_equal(gone_entries(moment, now[0]), 0.0)
    for mask in masks.values():  # monotone
        assert not np.any(np.asarray(mask)[1:] & ~np.asarray(mask)[:-1])
    losses = [float(loss(jax.tree.map(lambda x, i=i: x[i], all_params))) for i in (0, 210, 399)]
    assert losses[2] < losses[0]
    assert losses[2] < losses[1]  # it still learns with what is left

    final = masks_of(state)
    assert {n: int(m.sum()) for n, m in final.items()} == {"first": 6, "second": 3}
    small = compact(GROUPS, params, final)
    assert small["second"]["kernel"].shape == (6, 3)
    np.testing.assert_allclose(forward(small, X), forward(params, X), atol=1e-5)


def test_before_the_begin_it_is_the_inner_optimiser() -> None:
    inner = optax.adam(1e-2)
    tx = dynamic_pruning(inner, GROUPS, total_updates=100, begin=0.5, end=0.9, every=10)
    params = make_params()
    state, inner_state = tx.init(params), inner.init(params)
    update, inner_update = optimized_jit(tx.update), optimized_jit(inner.update)
    for seed in range(1, 4):
        updates, state = update(make_params(seed), state, params)
        expected, inner_state = inner_update(make_params(seed), inner_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0), updates, expected)
    for mask in masks_of(state).values():
        assert np.all(mask)


def test_removes_the_least_important_neurons() -> None:
    params = make_params()
    weak = {"first": [4, 11, 17], "second": [0, 8]}
    kernel = params["second"]["kernel"].at[jnp.array(weak["first"])].multiply(1e-4)
    params["second"] = {**params["second"], "kernel": kernel}
    head = params["head"]["kernel"].at[jnp.array(weak["second"])].multiply(1e-4)
    params["head"] = {**params["head"], "kernel": head}
    tx = dynamic_pruning(
        optax.sgd(1e-4), GROUPS, total_updates=20, begin=0.0, end=0.5, every=10, sparsity=0.2
    )
    (_, state), _ = run(tx, 20, params)
    masks = masks_of(state)
    assert set(weak["second"]) == set(np.flatnonzero(~np.asarray(masks["second"])))
    assert set(weak["first"]) <= set(np.flatnonzero(~np.asarray(masks["first"])))


def test_floor_energy_and_scope_reach_the_threshold() -> None:
    common: dict[str, Any] = {"total_updates": 40, "begin": 0.0, "end": 0.5, "every": 5}
    tx = dynamic_pruning(optax.adam(1e-2), GROUPS, sparsity=0.8, min_width=3, scope="global", **common)
    (_, state), _ = run(tx, 40)
    widths = [int(m.sum()) for m in masks_of(state).values()]
    assert sum(widths) == 6
    assert min(widths) == 3
    (_, state), _ = run(dynamic_pruning(optax.adam(1e-2), GROUPS, sparsity=0.9, min_width=8, **common), 40)
    assert {n: int(m.sum()) for n, m in masks_of(state).items()} == {"first": 8, "second": 8}
    (_, state), _ = run(dynamic_pruning(optax.adam(1e-2), GROUPS, sparsity=0.9, energy=0.0, **common), 40)
    assert all(np.all(m) for m in masks_of(state).values())


WRAPPERS = {
    "inject": lambda make: optax.inject_hyperparams(make)(rate=optax.linear_schedule(1e-2, 1e-3, 100)),
    "finite": lambda make: optax.apply_if_finite(make(1e-2), max_consecutive_errors=3),
    "nested": lambda make: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(make)(rate=1e-2)),
        every_k_schedule=2,
    ),
}


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_masks_are_found_in_any_wrapper(name: str) -> None:
    every_k = 2 if name == "nested" else 1

    def make(rate: Any) -> Any:
        return dynamic_pruning(
            optax.adam(rate), GROUPS, total_updates=40, sparsity=0.7, begin=0.0, end=0.5, every=5,
            strength=1e-4, learning_rate=rate,
        )  # fmt: skip

    tx = WRAPPERS[name](make)
    (params, state), _ = run(tx, 45 * every_k)
    masks = masks_of(state)
    assert {n: int(m.sum()) for n, m in masks.items()} == {"first": 6, "second": 3}
    np.testing.assert_array_equal(gone_entries(params, masks), 0.0)


def test_masks_of_errors() -> None:
    params = make_params()
    with pytest.raises(ValueError, match="found 0"):
        masks_of(optax.adam(1e-3).init(params))
    one = dynamic_pruning(optax.identity(), GROUPS, total_updates=10)
    with pytest.raises(ValueError, match="found 2"):
        masks_of(optax.chain(one, one).init(params))


def test_wrong_options_raise() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"total_updates": 0}, "total_updates.*0"),
        ({"every": 0}, "every.*0"),
        ({"begin": 0.7, "end": 0.6}, "begin.*end.*0.7.*0.6"),
        ({"begin": -0.1}, "begin.*-0.1"),
        ({"end": 1.5}, "end.*1.5"),
        ({"sparsity": 1.1}, r"sparsity.*\[0, 1\].*1.1"),
        ({"sparsity": math.nan}, "sparsity.*nan"),
        ({"energy": 1.0}, r"energy.*\[0, 1\).*1.0"),
        ({"min_width": -1}, "min_width.*-1"),
        ({"scope": "everywhere"}, "everywhere"),
        ({"metric": "riemann"}, "riemann"),
        ({"decay": 2.0}, "decay"),
        ({"strength": -1.0}, "strength"),
        ({"importance": "tailor"}, "tailor"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            dynamic_pruning(optax.adam(1e-3), GROUPS, **{"total_updates": 10, **options})
    tx = dynamic_pruning(optax.adam(1e-3), GROUPS, total_updates=10)
    with pytest.raises(ValueError, match="params"):
        tx.update(make_params(), tx.init(make_params()))


def test_compiled_once_with_a_traced_sparsity_and_batched_over_seeds(count_traces: Any) -> None:
    params = [make_params(seed) for seed in (0, 1)]

    def final(params: Any, sparsity: Any) -> Any:
        tx = dynamic_pruning(optax.adam(1e-2), GROUPS, total_updates=20, sparsity=sparsity, end=0.5, every=5)
        (params, state), _ = train(tx, params, 20)
        return params, masks_of(state)

    counted = count_traces(final)
    compiled = jax.jit(counted)
    alone = {share: compiled(params[0], jnp.float32(share)) for share in (0.5, 0.8)}
    assert counted.traces == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params[0], params[0], params[1])
    batched = jax.jit(jax.vmap(final))(stacked, jnp.float32([0.5, 0.8, 0.8]))
    for i, share in enumerate((0.5, 0.8)):
        assert {n: int(m.sum()) for n, m in alone[share][1].items()} == {
            n: size - round(share * size) for n, size in SIZES.items()
        }
        jax.tree.map(
            lambda b, a, i=i: np.testing.assert_allclose(b[i], a, rtol=1e-3, atol=1e-4), batched, alone[share]
        )
    for i in range(3):
        np.testing.assert_array_equal(gone_entries(*jax.tree.map(lambda x, i=i: x[i], batched)), 0.0)


# --- every score, shares per group, and the refit


@pytest.mark.parametrize(
    "options",
    [{"importance": name} for name in sorted(SCORES)]
    + [{"refit": True}, {"importance": "surgeon", "refit": True}],
)
def test_every_score_and_the_refit_with_a_share_per_group(options: dict[str, Any]) -> None:
    def fn(params: Any, x: jax.Array) -> jax.Array:
        return forward(params, x)

    shares = dict(zip(SIZES, (0.25, 0.75), strict=True))
    tx = dynamic_pruning(
        optax.sgd(1e-2),
        GROUPS,
        total_updates=8,
        begin=0.0,
        end=1.0,
        every=2,
        sparsity=shares,
        fn=fn,
        **options,
    )

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, inputs=(X,))
        return (optax.apply_updates(params, updates), state), None

    def whole(params: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), None, length=8)[0]

    params, state = jax.jit(whole, compiler_options={"xla_backend_optimization_level": 0})(make_params())
    masks = masks_of(state)
    assert {name: int(gone) for name, gone in gone_share(masks).items()} == {
        name: int(share * SIZES[name]) for name, share in shares.items()
    }
    assert np.all(gone_entries(params, masks) == 0)


def test_what_cannot_work_is_refused_at_construction() -> None:
    for options, message in (
        ({"importance": "output"}, "importance 'output' needs the activations"),
        ({"refit": True}, "refit needs the activations"),
        ({"importance": "best"}, "unknown importance 'best'"),
        ({"sparsity": {"first": 0.5}}, "sparsity lacks groups"),
        ({"sparsity": {"first": 0.5, "second": 0.5}, "scope": "global"}, "one sparsity for all layers"),
        ({"scope": {"first": "hidden"}}, "scope lacks groups"),
        ({"scope": "lamp", "tolerance": 0.1}, "ranked within each layer"),
        ({"multiple_of": 0}, "multiple_of must be an integer >= 1, got 0"),
        ({"multiple_of": {"first": 8}}, "multiple_of lacks groups"),
        ({"schedule": Schedule.one_shot(), "every": 5}, "give one or the other"),
        ({"schedule": Schedule.polynomial(0.0)}, "power must be > 0, got 0"),
        ({"schedule": Schedule.one_shot(1.5)}, "0 <= begin <= end <= 1"),
        ({"activations": True}, "nothing looks at them"),
        ({"activations": True, "importance": "output", "fn": forward}, "give one of the two"),
    ):
        with pytest.raises(ValueError, match=message):
            dynamic_pruning(optax.sgd(0.1), GROUPS, total_updates=10, **cast(Any, options))
    tx = dynamic_pruning(optax.sgd(0.1), GROUPS, total_updates=10, importance="output", fn=forward)
    params = make_params()
    with pytest.raises(ValueError, match=r"update needs inputs=\(x, ...\)"):
        tx.update(params, tx.init(params), params)
    tx = dynamic_pruning(optax.sgd(0.1), GROUPS, total_updates=10, importance="output", activations=True)
    hidden = activations(forward, GROUPS, params, X)
    for given, message in (
        (None, r"update needs activations=\{group name"),
        ({"first": hidden["first"]}, r"for the groups \['first', 'second'\], got \['first'\]"),
        ({**hidden, "second": X}, r"activations of 'second' must be \[…, 10\], got shape \(64, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params, activations=given)


def test_activations_that_are_handed_in_do_what_a_batch_of_inputs_does() -> None:
    def trained(handed_in: bool) -> Any:
        options: dict[str, Any] = {"activations": True} if handed_in else {"fn": forward}
        tx = dynamic_pruning(
            optax.sgd(1e-2),
            GROUPS,
            total_updates=4,
            begin=0.0,
            end=1.0,
            every=2,
            sparsity=0.6,
            importance="elimination",
            refit=True,
            **options,
        )

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params)
            # As a training step has them from its forward pass, at the params that the removal is made in.
            proposed = optax.apply_updates(params, jax.tree.map(lambda g: -1e-2 * g, grads))
            proposed = apply_masks(GROUPS, proposed, masks_of(state))
            first = jax.nn.sigmoid(dense(proposed["first"], X))
            second = jax.nn.sigmoid(dense(proposed["second"], first))
            more = {"activations": {"first": first, "second": second}} if handed_in else {"inputs": (X,)}
            updates, state = tx.update(grads, state, params, **more)
            return (optax.apply_updates(params, updates), state), None

        params = make_params()
        return jax.lax.scan(step, (params, tx.init(params)), None, length=4)[0]

    ours, theirs = jax.jit(
        lambda: (trained(True), trained(False)), compiler_options={"xla_backend_optimization_level": 0}
    )()
    assert {name: int(gone) for name, gone in gone_share(masks_of(ours[1])).items()} == {
        "first": 12,
        "second": 6,
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours[0], theirs[0])
    jax.tree.map(np.testing.assert_array_equal, masks_of(ours[1]), masks_of(theirs[1]))


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        # 6 mask updates; what the powers 1 and 2 let go of 20 and 10 neurons, and all at once.
        ({"schedule": Schedule.polynomial(1.0, begin=0.0, end=1.0, every=2)}, [(17, 9), (14, 7), (11, 6)]),
        ({"schedule": Schedule.polynomial(2.0, begin=0.0, end=1.0, every=2)}, [(15, 8), (10, 5), (7, 4)]),
        ({"schedule": Schedule.periodic(2, begin=0.0, end=1.0)}, [(2, 1)] * 3),
        ({"schedule": Schedule.one_shot(0.25)}, [(20, 10), (2, 1), (2, 1)]),
        ({"begin": 0.0, "end": 1.0, "every": 2, "multiple_of": 8, "min_width": 3}, [(16, 8), (8, 8), (8, 8)]),
    ],
)
def test_schedules_and_multiples(options: dict[str, Any], widths: list[tuple[int, int]]) -> None:
    tx = dynamic_pruning(optax.sgd(1e-2), GROUPS, total_updates=12, sparsity=0.9, **options)
    _, (masks, _, _) = run(tx, 6)
    kept = {name: np.sum(mask, axis=-1)[1::2].tolist() for name, mask in masks.items()}
    assert list(zip(kept["first"], kept["second"], strict=True)) == widths


def test_periodic_removals_are_bounded_by_the_energy() -> None:
    """At every second update the neurons that hold a twentieth of their layer's score may go, from the first on."""
    tx = dynamic_pruning(
        optax.sgd(0.0),
        GROUPS,
        total_updates=12,
        sparsity=0.9,
        energy=0.05,
        importance="magnitude",
        schedule=Schedule.periodic(2, begin=0.0, end=1.0),
    )
    _, (masks, _, _) = run(tx, 6)
    scores = magnitude_importance(GROUPS, make_params())
    expected, bounds = [], {"a": scores["second"]}
    mask = {"a": jnp.ones(10, bool)}
    for _ in range(3):
        mask = update_masks(mask, bounds, 0.9, energy=0.05)
        expected.append(int(mask["a"].sum()))
        kept = np.sum(masks["second"], axis=-1)[1::2].tolist()[: len(expected)]
        # Masking the first layer changes the scores of the second: as many go, or one more.
        assert np.all(np.abs(np.subtract(kept, expected)) <= 1)
    assert expected[0] < 10
    assert kept[0] > kept[-1] > 1
