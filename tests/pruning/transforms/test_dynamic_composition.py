"""`dynamic_pruning` inside, around and beside other transformations, and in every framework's training step.

Every test trains a small network until neurons are gone, and looks after every step (`Watch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import flax.serialization
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from prune_rl.dependency.compaction import compact, compact_function
from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups, path_string
from prune_rl.pruning.importance import magnitude_importance
from prune_rl.pruning.transforms.dynamic_pruning import (
    STATIC_ARGS,
    DynamicPruningState,
    dynamic_pruning,
    masks_of,
)
from prune_rl.pruning.transforms.group_sparse import group_sparse
from prune_rl.pruning.transforms.scale_by_width import scale_by_width
from tests.compilation import QUICK, quick_jit

Params = Any
Array = np.ndarray[Any, Any]

# With these options neurons go at updates 2, 4, 6 and 8.
OPTIONS: dict[str, Any] = {"total_updates": 16, "sparsity": 0.5, "begin": 0.0, "end": 0.5, "every": 2}
LAST = 8
STEPS = 10
SIZES = {"first": 8, "second": 6}
X = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)), jnp.float32)
Y = jnp.sin(2.0 * X[:, :2])


def make_params(seed: int = 0, dtype: Any = jnp.float32) -> Params:
    rng = np.random.default_rng(seed)
    shapes = {"first": (3, 8), "second": (8, 6), "head": (6, 2)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype),
            "bias": jnp.asarray(0.1 * rng.normal(size=shape[1:]), dtype),
        }
        for name, shape in shapes.items()
    }


def forward(params: Params, x: jax.Array) -> jax.Array:
    for name in ("first", "second", "head"):
        x = x @ params[name]["kernel"] + params[name]["bias"][None, :]
        # Not 0 at 0, so that the gradients of masked outgoing slices are not 0 by themselves.
        x = x if name == "head" else jax.nn.sigmoid(x)
    return x


def mse(fn: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    return lambda params, x, y: jnp.mean(jnp.square(fn(params, x) - y))


GROUPS = find_groups(forward, make_params(), X)


def by_name(tree: Any) -> dict[str, Array]:
    """Every leaf under its "/"-joined path; the level that an NNX Variable adds is left out."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_string(path).removesuffix("/value"): leaf for path, leaf in leaves}


def gone_entries(groups: NeuronGroups, leaves: dict[str, Array], masks: dict[str, Array]) -> list[Array]:
    """The masked neurons' slices of those leaves that are there."""
    found = []
    for name, group in groups.items():
        for part in group.slices:
            leaf = leaves.get(path_string(part.path).removesuffix("/value"))
            if leaf is not None:
                found.append(np.take(np.asarray(leaf), np.flatnonzero(~masks[name]), part.axis))
    return found


def moments_of(groups: NeuronGroups, params: Params, state: Any) -> list[dict[str, Array]]:
    """{parameter: leaf} of everything in the inner state that has a pruned parameter's name and shape."""
    touched = {path_string(s.path).removesuffix("/value") for g in groups.values() for s in g.slices}
    shapes = {name: np.shape(leaf) for name, leaf in by_name(params).items() if name in touched}
    found: dict[str, dict[str, Array]] = {}
    for path, leaf in by_name(pruning_state(state).sparse.inner).items():
        for name, shape in shapes.items():
            if path.endswith(f"/{name}") and np.shape(leaf) == shape:
                found.setdefault(path.removesuffix(name), {})[name] = leaf
    return list(found.values())


def pruning_state(opt_state: Any) -> DynamicPruningState:
    def is_ours(node: Any) -> bool:
        return isinstance(node, DynamicPruningState)

    (found,) = (node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node))
    return found


class Watch:
    """Looks at params and state after every step; `moments`: how many params-shaped parts the inner state has."""

    def __init__(self, groups: NeuronGroups = GROUPS, moments: int = 2, partial: bool = False) -> None:
        self.groups, self.moments, self.partial = groups, moments, partial
        self.masks = {name: np.ones(group.size, bool) for name, group in groups.items()}
        self.widths: list[tuple[int, ...]] = []

    def __call__(self, params: Params, state: Any) -> None:
        masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
        assert set(masks) == set(self.groups)
        for name, mask in masks.items():
            assert mask.dtype == bool
            assert not np.any(mask & ~self.masks[name]), f"{name} grew back"
        leaves = by_name(params)
        assert all(np.all(np.isfinite(leaf.astype(np.float32))) for leaf in map(np.asarray, leaves.values()))
        slices = sum(len(group.slices) for group in self.groups.values())
        parts = gone_entries(self.groups, leaves, masks)
        assert len(parts) == slices
        moments = moments_of(self.groups, params, state)
        assert len(moments) == self.moments
        for moment in moments:
            inside = gone_entries(self.groups, moment, masks)
            assert inside
            assert self.partial or len(inside) == slices
            parts += inside
        for part in parts:
            assert np.all(part == 0), part
        self.masks = masks
        self.widths.append(tuple(int(mask.sum()) for mask in masks.values()))

    def check_final(self) -> None:
        assert self.widths[-1] == tuple(group.size // 2 for group in self.groups.values())
        assert len(set(self.widths)) >= 3, "the masks should shrink in several cuts"


def train_step(tx: Any, loss: Any = None) -> Callable[..., Any]:
    def step(params: Params, state: Any, x: jax.Array = X, y: jax.Array = Y) -> Any:
        grads = jax.grad(loss or mse(forward))(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(
    tx: Any, assert_traces: Any, watch: Watch, steps: int = STEPS, params: Params = None, loss: Any = None
) -> Any:
    params = make_params() if params is None else params
    state = tx.init(params)
    step = quick_jit(assert_traces(train_step(tx, loss), 1))
    for _ in range(steps):
        params, state = step(params, state)
        watch(params, state)
    watch.check_final()
    return params, state


def prune(inner: Any, **options: Any) -> optax.GradientTransformationExtraArgs:
    return dynamic_pruning(inner, GROUPS, **{**OPTIONS, **options})


# --- other transformations, before and inside


COMPOSED: dict[str, tuple[Callable[[], Any], int]] = {
    "clip before": (lambda: optax.chain(optax.clip_by_global_norm(0.1), prune(optax.adam(1e-2))), 2),
    "decay and scale before": (
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.scale(0.5), prune(optax.sgd(0.1))),
        0,
    ),
    "chain inside": (
        lambda: prune(optax.chain(optax.clip_by_global_norm(0.1), optax.scale_by_adam(), optax.scale(-1e-2))),
        2,
    ),
    "adamw": (lambda: prune(optax.adamw(1e-2, weight_decay=0.1)), 2),
    "momentum": (lambda: prune(optax.sgd(0.1, momentum=0.9, nesterov=True)), 1),
    "lion": (lambda: prune(optax.lion(1e-3)), 1),
    "averaged updates": (lambda: prune(optax.chain(optax.sgd(0.1), optax.ema(0.9))), 1),
    "adafactor": (lambda: prune(optax.adafactor(1e-2, min_dim_size_to_factor=128)), 1),
    "steps that grow": (lambda: prune(optax.chain(optax.adam(1e-2), scale_by_width(GROUPS))), 2),
    # z, the iterate that schedule-free keeps in its state, and the second moment
    "schedule-free inside": (
        lambda: prune(optax.contrib.schedule_free_adamw(1e-2)),
        2,
    ),
    "injected inside": (lambda: prune(optax.inject_hyperparams(optax.adam)(learning_rate=1e-2)), 2),
    "adam's metric": (
        lambda: prune(optax.inject_hyperparams(optax.adam)(1e-2), strength=0.03, metric="adam"),
        2,
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_in_a_chain(name: str, assert_traces: Any) -> None:
    make, moments = COMPOSED[name]
    params, state = train(make(), assert_traces, Watch(moments=moments))
    masks = masks_of(state)
    small_fn = compact_function(forward, GROUPS, params, masks, X)
    np.testing.assert_allclose(
        small_fn(compact(GROUPS, params, masks), X), forward(params, X), rtol=1e-5, atol=1e-6
    )
    kept = np.asarray(masks["second"])
    assert np.all(params["head"]["kernel"][kept] != make_params()["head"]["kernel"][kept])


def test_a_cut_neuron_stays_cut_whatever_its_score(assert_traces: Any) -> None:
    def least_where_large(groups: NeuronGroups, params: Params, grads: Any = None, **_: Any) -> Any:
        return {n: 1.0 / (1.0 + score) for n, score in magnitude_importance(groups, params).items()}

    tx = prune(optax.adam(1e-2), importance=least_where_large, decay=0.0)
    _, state = train(tx, assert_traces, Watch())
    for name, score in pruning_state(state).sparse.importance.items():
        gone = ~np.asarray(masks_of(state)[name])
        assert np.min(score[gone]) > np.max(score[~gone])


def test_factored_moments_are_left_alone(assert_traces: Any) -> None:
    inner = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    _, state = train(prune(inner), assert_traces, Watch(moments=1, partial=True))
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(pruning_state(state).sparse.inner)}
    assert {(3,), (8,), (6,), (1,)} <= shapes  # rows and columns, and the placeholders of what is factored


def test_schedule_free_inside_evaluates_a_pruned_average(assert_traces: Any) -> None:
    tx = prune(optax.contrib.schedule_free_sgd(0.5))
    params, state = train(tx, assert_traces, Watch(moments=1))
    averaged = optax.contrib.schedule_free_eval_params(pruning_state(state).sparse.inner, params)
    masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
    assert all(np.all(part == 0) for part in gone_entries(GROUPS, by_name(averaged), masks))
    assert mse(forward)(averaged, X, Y) < mse(forward)(make_params(), X, Y)


# --- what changes the updates afterwards


def residues(tx: Any, steps: int, params: Params = None, loss: Any = None, of: Any = None) -> Any:
    """Per step: {slice: the cut entries}, and the masks."""
    params = make_params() if params is None else params
    state = tx.init(params)
    step = quick_jit(train_step(tx, loss))
    seen = []
    for _ in range(steps):
        params, state = step(params, state)
        masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
        seen.append((gone_entries(GROUPS, by_name(of(params) if of else params), masks), masks))
    return seen


def test_a_scale_after_it_makes_cut_slices_fade_instead_of_vanish() -> None:
    seen = residues(optax.chain(prune(optax.adam(1e-2)), optax.scale(0.5)), LAST + 4)
    exact = residues(prune(optax.adam(1e-2)), LAST)
    at_cut = seen[LAST - 1]
    assert any(np.any(part != 0) for part in at_cut[0])
    assert all(np.all(part == 0) for part in exact[-1][0])
    assert {n: m.sum() for n, m in at_cut[1].items()} == {n: m.sum() for n, m in exact[-1][1].items()}
    for (before, masks), (after, now) in zip(seen[LAST - 1 :], seen[LAST:], strict=False):
        assert all(np.array_equal(masks[name], now[name]) for name in masks)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_allclose(new, 0.5 * old, rtol=1e-5, atol=1e-12)


def test_a_weight_decay_after_it_is_gone_one_update_later() -> None:
    after = optax.chain(optax.add_decayed_weights(-0.1))
    seen = residues(optax.chain(prune(optax.adam(1e-2)), after), LAST + 12)
    assert any(np.any(part != 0) for part in seen[LAST - 1][0])
    for old, new in zip(seen[LAST - 1][0], seen[LAST][0], strict=True):
        np.testing.assert_allclose(new, -0.1 * old, rtol=1e-5, atol=1e-12)
    assert all(np.all(np.abs(part) < 1e-9) for part in seen[-1][0])


def test_lookahead_around_it_brings_cut_slices_back_at_each_sync() -> None:
    tx = optax.lookahead(prune(optax.adam(1e-2)), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(make_params())

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(mse(forward))(params.fast, X, Y), state, params)
        return optax.apply_updates(params, updates), state

    compiled, state, largest = quick_jit(step), tx.init(params), []
    for _ in range(18):
        params, state = compiled(params, state)
        masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
        parts = gone_entries(GROUPS, by_name(params.fast), masks)
        largest.append(max((np.abs(part).max(initial=0.0) for part in parts), default=0.0))
    assert all(size == 0 for count, size in enumerate(largest, 1) if count % 3)
    synced = [size for count, size in enumerate(largest, 1) if count % 3 == 0 and count > LAST]
    np.testing.assert_allclose(synced[1:], 0.5 * np.array(synced[:-1]), rtol=1e-5)
    assert synced[-1] > 0


def test_schedule_free_around_it_does_not_reach_zero() -> None:
    tx = optax.contrib.schedule_free(prune(optax.sgd(0.5)), learning_rate=0.5)
    seen = residues(tx, STEPS)
    assert any(np.any(part != 0) for part in seen[-1][0])
    assert {n: int(m.sum()) for n, m in seen[-1][1].items()} == {"first": 4, "second": 3}


# --- what looks at the loss again, or weights the state


def test_a_line_search_inside_gets_what_the_caller_gave() -> None:
    def loss(params: Params, x: jax.Array) -> jax.Array:
        return mse(forward)(params, x, Y)

    tx = prune(optax.chain(optax.lbfgs(), scale_by_width(GROUPS)), end=0.25)

    def step(params: Params, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, X)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss, x=X)
        return optax.apply_updates(params, updates), state

    params = make_params()
    state, compiled = tx.init(params), quick_jit(step)
    for _ in range(5):
        params, state = compiled(params, state)
    masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
    assert {name: mask.sum() for name, mask in masks.items()} == {"first": 4, "second": 3}
    assert all(np.all(part == 0) for part in gone_entries(GROUPS, by_name(params), masks))
    assert loss(params, X) < 0.8 * loss(make_params(), X)


def test_sam_around_it_makes_integers_of_the_masks() -> None:
    tx = optax.contrib.sam(prune(optax.sgd(0.05), gate=0.5), optax.sgd(0.01), sync_period=2)
    params, step = make_params(), train_step(tx)
    carry = step(params, tx.init(params))
    # The types are now those that a loop can carry.
    params, state = quick_jit(lambda c: jax.lax.scan(lambda c, _: (step(*c), None), c, None, 2 * STEPS)[0])(
        carry
    )
    assert state.opt_state.masks["first"].dtype == jnp.int32
    masks = {name: np.asarray(mask) for name, mask in masks_of(state).items()}
    assert {name: mask.sum() for name, mask in masks.items()} == {"first": 4, "second": 3}
    assert all(np.all(part == 0) for part in gone_entries(GROUPS, by_name(state.cache), masks))
    small = compact(GROUPS, state.cache, state.opt_state.masks)
    np.testing.assert_allclose(forward(small, X), forward(state.cache, X), rtol=1e-5, atol=1e-6)


def test_float64_params_in_a_loop() -> None:
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), make_params())
        tx = prune(optax.adam(1e-2))
        x, y = X.astype(jnp.float64), Y.astype(jnp.float64)
        step = train_step(tx)
        start = (params, tx.init(params))
        params, state = quick_jit(
            lambda c: jax.lax.scan(lambda c, _: (step(*c, x, y), None), c, None, STEPS)[0]
        )(start)
        assert params["first"]["kernel"].dtype == jnp.float64
        assert {leaf.dtype for leaf in state.sparse.importance.values()} == {jnp.dtype(jnp.float32)}
        assert {name: int(mask.sum()) for name, mask in masks_of(state).items()} == {"first": 4, "second": 3}


# --- statistics beside the params


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(2)(jnp.tanh(x))


def test_statistics_beside_the_params_are_gathered_but_not_trained() -> None:
    variables = quick_jit(Normalised().init)(jax.random.key(0), X)
    groups = find_groups(Normalised().apply, variables, X)
    touched = {path_string(s.path) for group in groups.values() for s in group.slices}
    assert {"batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"} <= touched
    tx = dynamic_pruning(optax.adam(1e-2), groups, **OPTIONS)

    def step(variables: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            out, changed = Normalised().apply(
                {**variables, "params": params}, X, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(out - Y)), changed

        grads, changed = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(grads, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **changed}, state

    state, compiled = tx.init(variables["params"]), quick_jit(step)
    for _ in range(STEPS):
        variables, state = compiled(variables, state)
    masks = masks_of(state)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == dict.fromkeys(groups, 4)
    small = compact(groups, variables, masks)
    assert small["batch_stats"]["BatchNorm_0"]["mean"].shape == (4,)
    small_fn = compact_function(Normalised().apply, groups, variables, masks, X)
    masked: Any = Normalised().apply(variables, X)
    np.testing.assert_allclose(small_fn(small, X), masked, rtol=1e-5, atol=1e-6)


def test_statistics_among_the_params_of_nnx_and_in_the_state_of_equinox() -> None:
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.norm = nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(jnp.tanh(self.norm(self.first(x), use_running_average=True)))

    parts: Any = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
    definition, trained, rest = parts
    whole = nnx.merge_state(trained, rest)
    groups = find_groups(lambda state, x: nnx.merge(definition, state)(x), whole, X)
    assert [group.size for group in groups.values()] == [8]
    assert any("mean" in path_string(s.path) for group in groups.values() for s in group.slices)
    updates, _ = (tx := prune_all(groups)).update(trained, tx.init(trained), trained)
    assert set(by_name(updates)) == set(by_name(trained))

    model, state = eqx.nn.make_with_state(EqxNormalised)(jax.random.key(0))
    arrays, static = eqx.partition((model, state), eqx.is_array)
    found = find_groups(
        lambda tree, x: eqx.combine(tree, static)[0](x, eqx.combine(tree, static)[1]), arrays, X
    )
    assert [group.size for group in found.values()] == [8]
    params = arrays[0]
    updates, _ = (tx := prune_all(found)).update(params, tx.init(params), params)
    assert set(by_name(updates)) == set(by_name(params))


class EqxNormalised(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        self.first, self.head = eqx.nn.Linear(3, 8, key=key), eqx.nn.Linear(8, 2, key=key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="b", mode="ema")

    def __call__(self, x: jax.Array, state: Any) -> jax.Array:
        """In inference, with the statistics of the state."""

        def one(y: jax.Array) -> jax.Array:
            h, _ = self.norm(self.first(y), state, inference=True)
            return self.head(jnp.tanh(h))

        return jax.vmap(one, axis_name="b")(x)


def prune_all(groups: NeuronGroups) -> optax.GradientTransformationExtraArgs:
    return dynamic_pruning(optax.sgd(0.1), groups, total_updates=1, begin=1.0, end=1.0, sparsity=0.5)


# --- inject_hyperparams around it


def test_injected_hyperparameters_are_traced(assert_traces: Any) -> None:
    make = optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS)
    schedule = optax.linear_schedule(1e-2, 1e-3, 10)
    tx = make(optax.adam(1e-2), GROUPS, strength=1e-2, learning_rate=schedule, **OPTIONS)
    step = quick_jit(assert_traces(train_step(tx), 1))
    widths = {}
    for sparsity in (0.5, 0.0, 0.75):
        params, state = make_params(), tx.init(make_params())
        assert {"sparsity", "strength", "learning_rate"} <= set(state.hyperparams)
        state.hyperparams["sparsity"] = jnp.float32(sparsity)
        watch = Watch()
        for count in range(STEPS):
            params, state = step(params, state)
            watch(params, state)
            np.testing.assert_allclose(state.hyperparams["learning_rate"], schedule(count), rtol=1e-6)
        widths[sparsity] = watch.widths[-1]
    assert widths == {0.5: (4, 3), 0.0: (8, 6), 0.75: (2, 2)}


def test_an_injected_strength_reaches_the_proximal_step() -> None:
    make = optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS)
    tx = make(optax.sgd(1e-3), GROUPS, strength=0.0, learning_rate=1e-3, **OPTIONS)
    step, params = quick_jit(train_step(tx)), make_params()
    state = tx.init(params)
    norms = []
    for strength in (0.0, 1e6):
        state.hyperparams["strength"] = jnp.float32(strength)
        new, _ = step(params, state)
        norms.append(float(jnp.sum(jnp.abs(new["first"]["kernel"]))))
    assert norms[0] > 1.0
    assert norms[1] == 0.0


# Names, flags, schedules and functions are no numbers that optax would make arrays of.
NO_NUMBERS = {"importance", "fn", "bias_of", "refit", "activations", "schedule", "scope"}


@pytest.mark.parametrize("name", sorted({*STATIC_ARGS} - NO_NUMBERS))
def test_what_cannot_be_injected_says_so(name: str) -> None:
    static = tuple(other for other in STATIC_ARGS if other != name)
    tx = optax.inject_hyperparams(dynamic_pruning, static_args=static)(optax.sgd(0.1), GROUPS, **OPTIONS)
    with pytest.raises(ValueError, match=rf"{name} must be a Python number.*static_args"):
        tx.init(make_params())


# --- wrappers that hold updates back


def test_multi_steps_counts_its_own_updates(assert_traces: Any) -> None:
    tx = optax.MultiSteps(prune(optax.adam(1e-2)), every_k_schedule=3)
    params, state = make_params(), tx.init(make_params())
    step, watch = quick_jit(assert_traces(train_step(tx), 1)), Watch()
    for call in range(1, 3 * STEPS + 1):
        before = params
        params, state = step(params, state)
        watch(params, state)
        assert int(pruning_state(state).sparse.num_updates) == call // 3
        if call % 3:
            jax.tree.map(np.testing.assert_array_equal, params, before)
    watch.check_final()
    assert {width: watch.widths.index(width) + 1 for width in sorted(set(watch.widths), reverse=True)} == {
        (8, 6): 1, (6, 5): 6, (5, 4): 12, (4, 3): 24,
    }  # fmt: skip


def test_multi_steps_that_skip_are_not_counted(assert_traces: Any) -> None:
    tx = optax.MultiSteps(
        prune(optax.adam(1e-2)), every_k_schedule=2, should_skip_update_fn=optax.skip_not_finite
    )
    params, state = make_params(), tx.init(make_params())
    step, watch = quick_jit(assert_traces(train_step(tx), 1)), Watch()
    done = 0
    for call in range(3 * STEPS):
        bad = call % 3 == 1
        before, masks = params, watch.masks
        params, state = step(params, state, X * jnp.nan if bad else X)
        watch(params, state)
        done += not bad
        assert int(pruning_state(state).sparse.num_updates) == done // 2
        if bad:
            jax.tree.map(np.testing.assert_array_equal, (params, watch.masks), (before, masks))
    watch.check_final()
    assert np.all(np.isfinite(np.concatenate(list(pruning_state(state).sparse.importance.values()))))


@pytest.mark.parametrize("where", ["around", "inside"])
def test_apply_if_finite(where: str, assert_traces: Any) -> None:
    if where == "around":
        tx = optax.apply_if_finite(prune(optax.adam(1e-2)), max_consecutive_errors=3)
    else:
        tx = prune(optax.apply_if_finite(optax.adam(1e-2), max_consecutive_errors=3))
    params, state = make_params(), tx.init(make_params())
    step, watch = quick_jit(assert_traces(train_step(tx), 1)), Watch()
    for call in range(STEPS + 3):
        bad = call in (0, 3, 4)
        before = params
        params, state = step(params, state, X * jnp.nan if bad else X)
        watch(params, state)
        if bad and where == "around":
            jax.tree.map(np.testing.assert_array_equal, params, before)
    watch.check_final()
    assert np.all(np.isfinite(np.concatenate(list(pruning_state(state).sparse.importance.values()))))


def test_a_score_that_is_not_finite_leaves_the_mean_or_keeps_the_neuron() -> None:
    def first_gradient(groups: NeuronGroups, params: Params, grads: Any = None, **_: Any) -> Any:
        return {name: grads[name]["bias"] for name in groups}

    tx = group_sparse(optax.identity(), GROUPS, 0.0, importance=first_gradient, decay=0.5)
    update, params = quick_jit(tx.update), make_params()
    state, means = tx.init(params), []
    for scores in ([4.0, np.nan, 0.0], [np.nan, np.nan, np.inf], [8.0, 2.0, 4.0]):
        grads = jax.tree.map(jnp.zeros_like, params)
        grads["first"]["bias"] = grads["first"]["bias"].at[:3].set(jnp.array(scores))
        _, state = update(grads, state, params)
        means.append(state.importance["first"][:3])
    np.testing.assert_array_equal(means, [[2.0, np.nan, 0.0], [2.0, np.nan, np.nan], [5.0, 1.0, 2.0]])


# --- a part of the params


def two_networks(params: Params, x: jax.Array) -> jax.Array:
    return forward(params["actor"], x) + forward(params["critic"], x)


TWO = find_groups(two_networks, {"actor": make_params(0), "critic": make_params(1)}, X)


@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_around_a_part_of_the_params(wrapper: str, assert_traces: Any) -> None:
    groups = TWO.select(lambda group: group.name.startswith("actor/"))
    pruned = dynamic_pruning(optax.adam(1e-2), groups, **OPTIONS)
    tx: Any
    if wrapper == "masked":
        tx = optax.chain(
            optax.masked(pruned, {"actor": True, "critic": False}),
            optax.masked(optax.sgd(0.1), {"actor": False, "critic": True}),
        )
    else:
        tx = optax.multi_transform(
            {"pruned": pruned, "dense": optax.sgd(0.1)}, {"actor": "pruned", "critic": "dense"}
        )
    params = {"actor": make_params(0), "critic": make_params(1)}
    after, _ = train(tx, assert_traces, Watch(groups), params=params, loss=mse(two_networks))
    for leaf, old in zip(jax.tree.leaves(after["critic"]), jax.tree.leaves(params["critic"]), strict=True):
        assert np.all(np.asarray(leaf) != np.asarray(old))


def test_a_part_that_cuts_a_group_is_refused() -> None:
    tx = optax.masked(prune(optax.adam(1e-2)), {"first": True, "second": True, "head": False})
    params = make_params()
    with pytest.raises(ValueError, match="'second' has a slice of 'head/kernel', which is not a leaf"):
        jax.eval_shape(train_step(tx), params, tx.init(params))


def test_a_part_of_the_params_inside(assert_traces: Any) -> None:
    labels = {"first": "adam", "second": "momentum", "head": "frozen"}
    inner = optax.multi_transform(
        {"adam": optax.adam(1e-2), "momentum": optax.sgd(0.1, momentum=0.9), "frozen": optax.set_to_zero()},
        labels,
    )
    params, state = train(prune(inner), assert_traces, Watch(moments=3, partial=True))
    kept = np.asarray(masks_of(state)["second"])
    np.testing.assert_array_equal(params["head"]["kernel"][kept], make_params()["head"]["kernel"][kept])


def test_two_of_them_are_told_apart_by_their_part_of_the_state(assert_traces: Any) -> None:
    def part(name: str) -> NeuronGroups:
        return TWO.select(lambda group: group.name.startswith(name))

    parts = {name: part(name) for name in ("actor", "critic")}
    tx = optax.multi_transform(
        {name: dynamic_pruning(optax.sgd(0.1), groups, **OPTIONS) for name, groups in parts.items()},
        {"actor": "actor", "critic": "critic"},
    )
    params = {"actor": make_params(0), "critic": make_params(1)}
    step, state = quick_jit(assert_traces(train_step(tx, mse(two_networks)), 1)), tx.init(params)
    watches = {name: Watch(groups, moments=0) for name, groups in parts.items()}
    for _ in range(STEPS):
        params, state = step(params, state)
        for name, watch in watches.items():
            watch(params, state.inner_states[name])
    for watch in watches.values():
        watch.check_final()
    with pytest.raises(ValueError, match=r"found 2.*part of the state"):
        masks_of(state)


# --- Flax linen, Flax NNX, Equinox, Haiku


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for name, size in SIZES.items():
            x = nn.sigmoid(nn.Dense(size, name=name)(x))
        return nn.Dense(2, name="head")(x)


def test_flax_train_state(assert_traces: Any) -> None:
    model = Linen()
    params = quick_jit(model.init)(jax.random.key(0), X)
    groups = find_groups(model.apply, params, X)
    assert {name: group.size for name, group in groups.items()} == {"params/first": 8, "params/second": 6}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        dynamic_pruning(optax.adam(1e-2), groups, strength=1e-2, learning_rate=1e-2, **OPTIONS),
    )
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def step(state: TrainState) -> TrainState:
        return state.apply_gradients(grads=jax.grad(mse(state.apply_fn))(state.params, X, Y))

    compiled, watch = quick_jit(assert_traces(step, 1)), Watch(groups)
    for _ in range(STEPS):
        state = compiled(state)
        watch(state.params, state.opt_state)
    watch.check_final()


class NNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.second = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.sigmoid(self.second(nnx.sigmoid(self.first(x)))))


def nnx_groups(model: NNX, form: str) -> NeuronGroups:
    graph, params, *rest = nnx.split(model, nnx.Param, ...)

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, *rest)(x)

    return find_groups(fn, nnx.as_pure(params) if form == "arrays" else params, X)


@pytest.mark.parametrize("form", ["state", "arrays"])
def test_nnx_optimizer(form: str, assert_traces: Any) -> None:
    model = NNX(nnx.Rngs(0))
    groups = nnx_groups(model, form)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        dynamic_pruning(optax.adam(1e-2), groups, strength=1e-2, learning_rate=1e-2, **OPTIONS),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def step(model: NNX, optimizer: Any) -> dict[str, jax.Array]:
        grads = nnx.grad(lambda model: jnp.mean(jnp.square(model(X) - Y)))(model)
        optimizer.update(model, grads)
        return masks_of(optimizer.opt_state)

    compiled, watch = nnx.jit(assert_traces(step, 1)), Watch(groups)
    for _ in range(STEPS):
        inside = compiled(model, optimizer)
        watch(nnx.state(model, nnx.Param), optimizer.opt_state)
        for name, mask in masks_of(optimizer.opt_state).items():
            assert isinstance(mask, jax.Array)
            np.testing.assert_array_equal(mask, inside[name])
    watch.check_final()


@pytest.mark.parametrize("form", ["state", "arrays"])
def test_nnx_without_its_optimizer(form: str, assert_traces: Any) -> None:
    model = NNX(nnx.Rngs(0))
    graph, params, *rest = nnx.split(model, nnx.Param, ...)
    tx = dynamic_pruning(optax.adam(1e-2), nnx_groups(model, form), **OPTIONS)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(nnx.merge(graph, params, *rest)(x) - y))

    watch = Watch(nnx_groups(model, form))
    params, _ = train(tx, assert_traces, watch, params=params, loss=loss)
    assert isinstance(jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Param))[0], nnx.Param)


class Eqx(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    head: eqx.nn.Linear
    act: Callable[[jax.Array], jax.Array]  # a leaf that is no array
    calls: jax.Array  # a leaf without gradient

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(3, 8, key=keys[0])
        self.second = eqx.nn.Linear(8, 6, key=keys[1])
        self.head = eqx.nn.Linear(6, 2, key=keys[2])
        self.act = jax.nn.sigmoid
        self.calls = jnp.zeros((), jnp.int32)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.act(self.second(self.act(self.first(x)))))


@pytest.mark.parametrize(
    ("passed", "metric"), [("parameters", "euclidean"), ("arrays", "euclidean"), ("model", "adam")]
)
def test_equinox(passed: str, metric: Any, assert_traces: Any) -> None:
    model = Eqx(jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    groups = find_groups(lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays, X)
    inner = optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=0.1)
    tx = dynamic_pruning(inner, groups, strength=0.03, metric=metric, **OPTIONS)
    view = {
        "parameters": lambda model: eqx.filter(model, eqx.is_inexact_array),
        "arrays": lambda model: eqx.filter(model, eqx.is_array),
        "model": lambda model: model,
    }[passed]

    def step(model: Eqx, state: Any) -> Any:
        grads = eqx.filter_grad(lambda model: jnp.mean(jnp.square(jax.vmap(model)(X) - Y)))(model)
        updates, state = tx.update(grads, state, view(model))
        return eqx.apply_updates(model, updates), state

    jit: Any = eqx.filter_jit  # its types leave out the options of jax.jit
    compiled, watch = jit(assert_traces(step, 1), compiler_options=QUICK), Watch(groups)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(STEPS):
        model, state = compiled(model, state)
        watch(eqx.filter(model, eqx.is_inexact_array), state)
    watch.check_final()
    assert model.act is jax.nn.sigmoid


def test_group_sparse_takes_a_whole_equinox_model() -> None:
    model = Eqx(jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    groups = find_groups(lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays, X)
    tx = group_sparse(optax.sgd(0.1), groups, 0.1, 0.1)

    def both(arrays: Any) -> Any:
        state = tx.init(arrays)
        model = eqx.combine(arrays, static)
        return tx.update(arrays, state, model)[0], tx.update(arrays, state, arrays)[0]

    whole, filtered = quick_jit(both)(arrays)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (whole, arrays)]
    assert structures[0] == structures[1]
    jax.tree.map(np.testing.assert_array_equal, whole, filtered)


def test_haiku(assert_traces: Any) -> None:
    def mlp(x: jax.Array) -> jax.Array:
        return hk.nets.MLP([8, 6, 2], activation=jax.nn.sigmoid)(x)

    model: Any = hk.without_apply_rng(hk.transform(mlp))
    with jax.numpy_rank_promotion("allow"):  # haiku broadcasts its biases
        params = quick_jit(model.init)(jax.random.key(0), X)
        groups = find_groups(model.apply, params, X)
        assert {name: group.size for name, group in groups.items()} == {
            "mlp/~/linear_0": 8,
            "mlp/~/linear_1": 6,
        }
        tx = dynamic_pruning(optax.adam(1e-2), groups, **OPTIONS)
        train(tx, assert_traces, Watch(groups), params=params, loss=mse(model.apply))


# --- JAX's own transformations, dtypes, checkpoints


def test_vmap_over_seeds_is_every_seed_alone(assert_traces: Any) -> None:
    tx = prune(optax.adam(1e-2), strength=1e-2, learning_rate=1e-2)
    seeds = [make_params(seed) for seed in range(3)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    state = jax.vmap(tx.init)(params)
    step = quick_jit(jax.vmap(assert_traces(train_step(tx), 1), in_axes=(0, 0, None, None)))
    watches = [Watch() for _ in seeds]
    for _ in range(STEPS):
        params, state = step(params, state, X, Y)
        for i, watch in enumerate(watches):
            watch(*jax.tree.map(lambda leaf, i=i: leaf[i], (params, state)))
    for watch in watches:
        watch.check_final()
    assert any(np.any(watch.masks["first"] != watches[0].masks["first"]) for watch in watches)
    alone = Watch()
    single, _ = train(tx, assert_traces, alone, params=seeds[1])
    jax.tree.map(np.testing.assert_array_equal, alone.masks, watches[1].masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-4, atol=1e-5), single, params)


def test_scan_is_the_same_as_the_loop(assert_traces: Any) -> None:
    tx = prune(optax.adam(1e-2))

    def body(carry: Any, _: None) -> Any:
        carry = train_step(tx)(*carry)
        return carry, carry

    start = (make_params(), tx.init(make_params()))
    scan = quick_jit(assert_traces(lambda start: jax.lax.scan(body, start, None, length=STEPS), 1))
    _, history = scan(start)
    watch = Watch()
    for i in range(STEPS):
        watch(*jax.tree.map(lambda leaf, i=i: leaf[i], history))
    watch.check_final()


def test_buffers_can_be_donated(assert_traces: Any) -> None:
    tx = prune(optax.adam(1e-2))
    step = quick_jit(assert_traces(train_step(tx), 1), donate_argnums=(0, 1))
    params, watch = make_params(), Watch()
    state = tx.init(params)
    for _ in range(STEPS):
        given = (params, state)
        params, state = step(params, state)  # a buffer given twice, or of no use, is an error here
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        watch(*jax.tree.map(jnp.copy, (params, state)))  # NumPy's views of buffers would keep them alive
    watch.check_final()


@pytest.mark.parametrize("strength", [0.0, 1e-2])
def test_bfloat16(strength: float, assert_traces: Any) -> None:
    tx = prune(optax.adam(1e-2), strength=strength, learning_rate=1e-2)
    loss = mse(lambda params, x: forward(params, x.astype(jnp.bfloat16)).astype(jnp.float32))
    params, state = train(tx, assert_traces, Watch(), params=make_params(0, jnp.bfloat16), loss=loss)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    assert all(s.dtype == jnp.float32 for s in pruning_state(state).sparse.importance.values())


def test_gradients_of_less_precision_than_the_params() -> None:
    tx = prune(optax.sgd(0.1))
    params, state, watch = make_params(), tx.init(make_params()), Watch(moments=0)

    def step(params: Params, state: Any) -> Any:
        grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), jax.grad(mse(forward))(params, X, Y))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = quick_jit(step)
    for _ in range(STEPS):
        params, state = compiled(params, state)
        watch(params, state)
    watch.check_final()


def test_state_survives_a_checkpoint(tmp_path: Any, assert_traces: Any) -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), prune(optax.adam(1e-2)))
    step = quick_jit(assert_traces(train_step(tx), 1))
    params, state, watch = make_params(), tx.init(make_params()), Watch()
    for _ in range(5):
        params, state = step(params, state)
        watch(params, state)
    assert watch.widths[-1] != (8, 6)
    template = jax.tree.map(jnp.zeros_like, state)
    restored = flax.serialization.from_bytes(template, flax.serialization.to_bytes(state))
    structures: list[Any] = [jax.tree.structure(tree) for tree in (restored, state)]
    assert structures[0] == structures[1]
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", template)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    state = restored
    for _ in range(5):
        params, state = step(params, state)
        watch(params, state)
    watch.check_final()


def test_optax_maps_over_its_state() -> None:
    tx = prune(optax.adam(1e-2))
    state = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(make_params()))
    adam = pruning_state(state).sparse.inner[0]
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    assert int(pruning_state(state).sparse.num_updates) == 0


def test_params_and_the_callers_extra_arguments_reach_the_inner_transformation() -> None:
    class Seen(NamedTuple):
        value: jax.Array

    def update(updates: Any, state: Seen, params: Any = None, *, value: jax.Array, **extra: Any) -> Any:
        assert set(extra) == given
        return updates, Seen(value)

    inner = optax.GradientTransformationExtraArgs(lambda params: Seen(jnp.zeros(())), update)
    tx = optax.chain(optax.clip(1.0), prune(inner))
    params, given = make_params(), set[str]()
    _, state = tx.update(params, tx.init(params), params=params, value=jnp.float32(3.0))
    assert float(pruning_state(state).sparse.inner.value) == 3.0
    # Masks are the caller's where the caller gives them.
    given = {"masks"}
    sparse = group_sparse(inner, GROUPS, 0.0)
    sparse.update(params, sparse.init(params), params, value=jnp.float32(3.0), masks=masks_of(state))
