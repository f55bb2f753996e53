"""`dynamic_pruning` with a tolerance: what goes, what is taken back, and how it goes on in smaller arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import prune_rl
from tests.compilation import quick_jit

UPDATES, EVERY, TRIAL = 80, 2, 4.0
X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
Y = jnp.sin(X @ jnp.ones((3, 1)))


def fn(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["a"] + p["bias"][None]) @ p["b"]


def make_params() -> Any:
    rng = np.random.default_rng(1)
    shapes = {"a": (3, 24), "bias": (24,), "b": (24, 1)}
    return {name: jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


GROUPS = prune_rl.find_groups(fn, make_params(), X)


def make_tx(groups: Any, **options: Any) -> Any:
    return prune_rl.dynamic_pruning(
        optax.adam(1e-2), groups, total_updates=UPDATES, begin=0.1, end=0.8, every=EVERY, sparsity=1.0,
        tolerance=0.1, trial=TRIAL, importance="elimination", refit=True, fn=fn, **options,
    )  # fmt: skip


class Seen(NamedTuple):
    widths: list[int]
    params: list[Any]
    state: Any


def train(performances: list[float]) -> Seen:
    tx, params = make_tx(GROUPS), make_params()

    @quick_jit
    def step(params: Any, state: Any, performance: jax.Array) -> Any:
        grads = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, X) - Y)))(params)
        updates, state = tx.update(grads, state, params, performance=performance, inputs=(X,))
        return optax.apply_updates(params, updates), state

    state, widths, seen = tx.init(params), [], []
    for performance in performances:
        params, state = step(params, state, jnp.float32(performance))
        widths.append(int(prune_rl.masks_of(state)["a"].sum()))
        seen.append(params)
    return Seen(widths, seen, state)


HELD = train([1.0] * UPDATES)


def test_while_the_performance_holds_neurons_go_down_to_the_floor() -> None:
    assert HELD.widths[6] == 24, "nothing goes before begin, at 8"
    assert HELD.widths[-1] == 1
    kept = prune_rl.masks_of(HELD.state)["a"]
    assert not np.asarray(HELD.params[-1]["a"])[:, ~np.asarray(kept)].any(), "masked slices are exactly 0"
    first = next(i for i, width in enumerate(HELD.widths) if width < 24)
    assert HELD.widths[first] >= 12, "at most half of them at once"


def test_a_removal_after_which_the_performance_stays_away_is_taken_back() -> None:
    first = next(i for i, width in enumerate(HELD.widths) if width < 24)
    seen = train([1.0] * (first + 1) + [0.0] * (UPDATES - first - 1))
    back = next(i for i in range(first + 1, UPDATES) if seen.widths[i] == 24)
    assert back - first <= 5 * TRIAL + EVERY
    good = prune_rl.masks_of(seen.state, may_return=True)
    assert bool(good["a"].all())
    # The good params are those of the update at which the neurons went, before they went: one step after the last seen.
    for name, leaf in seen.params[back].items():
        distance = np.abs(np.asarray(leaf) - np.asarray(seen.params[first - 1][name])).max()
        assert distance <= 0.011, "one step of Adam away"
    assert not np.allclose(seen.params[back - 1]["b"], seen.params[back]["b"], atol=0.02)


def test_training_goes_on_in_smaller_arrays_that_hold_what_may_return() -> None:
    first = next(i for i, width in enumerate(HELD.widths) if width < 24)
    seen = train([1.0] * (first + 8))
    needed = prune_rl.masks_of(seen.state, may_return=True)
    width = int(needed["a"].sum())
    assert seen.widths[-1] < width < 24
    groups, params, state, masks = prune_rl.shrink(GROUPS, seen.params[-1], seen.state, needed)
    assert params["a"].shape == (3, width)
    tx = make_tx(groups)
    widths = []
    for x, p, s in ((tx, params, state), (make_tx(GROUPS), seen.params[-1], seen.state)):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, X) - Y)))(p)
        _, s = jax.jit(x.update)(grads, s, p, performance=1.0, inputs=(X,))
        widths.append(int(prune_rl.masks_of(s)["a"].sum()))
    assert widths[0] == widths[1] <= seen.widths[-1]
    assert int(masks["a"].sum()) == width


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": 0.1}, "gate = 0.1 and a dynamic threshold exclude"),
        ({"scope": "global"}, "within each layer"),
    ],
)
def test_what_excludes_a_tolerance_is_refused_at_once(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_tx(GROUPS, **options)
