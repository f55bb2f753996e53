from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from prune_rl.runs.serialization import digest, flatten, mismatch, unflatten
from tests.runs.train_states import assert_identical


def make_tree() -> dict[str, Any]:
    """Every kind of leaf; values that a careless round trip would change (-0.0, NaN, 1e-45)."""
    kernel = jnp.arange(12.0).reshape(4, 3).at[0].set(jnp.array([-0.0, jnp.nan, 1e-45]))
    params = {"kernel": kernel, "half": jnp.ones(3, jnp.bfloat16)}
    return {
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
        "masks": {"layer_0": jnp.array([True, False])},
        "keys": jax.random.split(jax.random.key(3), 2),
        "empty": jnp.zeros((0, 5)),
        "step": jnp.int32(7),
        "host": np.arange(5, dtype=np.int64),
        "scalar": np.float64(0.1),
        "nothing": None,
    }


def test_round_trip_is_bit_exact() -> None:
    tree = make_tree()
    arrays, layout = flatten(tree)
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert next(a for n, a in arrays.items() if "half" in layout[n]["path"]).dtype == ml_dtypes.bfloat16
    template = jax.tree.map(lambda leaf: leaf.copy(), make_tree())
    # The layout goes to disk as JSON.
    restored = unflatten(template, json.loads(json.dumps(layout)), arrays)
    assert_identical(restored, tree)
    # The restored key draws what the saved one would have drawn.
    assert jnp.array_equal(jax.random.normal(restored["keys"][1]), jax.random.normal(tree["keys"][1]))


def test_shapes_alone_serve_as_template() -> None:
    tree = make_tree() | {"host": jnp.zeros(1), "scalar": jnp.zeros(())}
    arrays, layout = flatten(tree)
    template = jax.eval_shape(lambda: tree)
    assert mismatch(template, layout) is None
    assert_identical(unflatten(template, layout, arrays), tree)


def test_restored_arrays_are_copies() -> None:
    """A restored train state may be donated; the arrays it came from must not change under it."""
    arrays, layout = flatten({"x": jnp.zeros(1000)})
    writable = {name: array.copy() for name, array in arrays.items()}
    restored = unflatten({"x": jnp.zeros(1000)}, layout, writable)["x"]
    next(iter(writable.values()))[:] = 1.0
    assert not np.any(np.asarray(restored))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"params": jnp.zeros(2)}, "it has no leaf ['params']"),
        ({"masks": {}}, "it has a leaf ['masks']['layer_0'] that is not wanted"),
        ({"masks": {"layer_0": None}}, "it has a leaf ['masks']['layer_0'] that is not wanted"),
        ({"nothing": jnp.zeros(1)}, "it has no leaf ['nothing']"),
        ({"empty": jnp.zeros((5, 0))}, "['empty'] is float32[0, 5] there, float32[5, 0] here"),
        ({"step": jnp.float32(0)}, "['step'] is int32[] there, float32[] here"),
        ({"step": 7}, "['step'] is int32[] there, int here"),
        ({"keys": jnp.zeros(2)}, "['keys'] is key<fry>[2] there, float32[2] here"),
        ({"keys": jax.random.key(0)}, "['keys'] is key<fry>[2] there, key<fry>[] here"),
    ],
)
def test_mismatch_names_the_first_leaf(change: dict[str, Any], message: str | None) -> None:
    tree = make_tree()
    if "params" in change:
        del tree["opt_state"], tree["masks"]
    _, layout = flatten(tree)
    assert mismatch(tree | change, layout) == message


def test_digest_sees_every_bit() -> None:
    arrays: dict[str, np.ndarray] = {"a": np.array([0.0, 1.0], np.float32), "b": np.zeros((2, 3), np.int8)}
    variants: list[dict[str, np.ndarray]] = [
        {"a": np.array([-0.0, 1.0], np.float32)},
        {"a": np.array([0.0, 1.0], np.float32).view(np.int32)},
        {"b": np.zeros((3, 2), np.int8)},
        {"c": np.zeros(0)},
    ]
    digests = {digest(arrays | variant) for variant in variants} | {digest(arrays)}
    assert len(digests) == 5
    # The bytes in order count, not how they lie in memory.
    assert digest({"b": np.asfortranarray(np.eye(3))}) == digest({"b": np.eye(3)})


def test_leaves_must_be_arrays() -> None:
    with pytest.raises(TypeError, match=r"\['a'\] is a str: a checkpoint holds arrays only"):
        flatten({"a": "text"})
