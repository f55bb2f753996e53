"""Masks and groups in a file, for a model that is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import prune_rl
from prune_rl.mask_file import FORMAT
from tests.dependency.small_networks import normal, random_masks

Params = dict[str, Any]


class Network(NamedTuple):
    layers: list[dict[str, Any]]
    head: Any


def init(hidden: int = 6) -> Params:
    """A list and dictionaries; the halves of "a" are two groups, whose slices have positions."""
    kernels = [normal(3, hidden), normal(hidden // 2, 5, seed=1), normal(hidden // 2, 5, seed=2)]
    return {"layers": [{"w": w} for w in kernels], "head": normal(5, 2)}


def fn(p: Params, x: jax.Array) -> jax.Array:
    a, b, c = (layer["w"] for layer in p["layers"])
    left, right = jnp.split(jnp.tanh(x @ a), 2, -1)
    return jnp.tanh(left @ b + right @ c) @ p["head"]


X = normal(4, 3)
GROUPS = prune_rl.find_groups(fn, init(), X)
MASKS = random_masks(GROUPS, 3)


def test_a_fresh_model_gets_the_groups_and_masks(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    prune_rl.save_masks(path, GROUPS, {name: jnp.asarray(mask) for name, mask in MASKS.items()})
    groups, masks = prune_rl.load_masks(path, jax.eval_shape(init))
    assert groups == GROUPS
    assert len(groups) == 3
    assert any(s.positions is not None for group in groups.values() for s in group.slices)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        name: mask.tolist() for name, mask in MASKS.items()
    }
    small = prune_rl.compact(groups, init(), masks)
    expected = prune_rl.compact(GROUPS, init(), MASKS)
    jax.tree.map(np.testing.assert_array_equal, small, expected)
    # Another container has other keys, of the same form.
    attributes = Network(**init())
    groups, masks = prune_rl.load_masks(path, attributes)
    small = prune_rl.compact(groups, attributes, masks)
    jax.tree.map(np.testing.assert_array_equal, small.layers, expected["layers"])
    # Of a group without a mask all are kept.
    name = next(iter(GROUPS))
    prune_rl.save_masks(path, GROUPS, {name: MASKS[name]})
    _, masks = prune_rl.load_masks(path, init())
    assert masks[name].tolist() == MASKS[name].tolist()
    assert all(mask.all() for other_name, mask in masks.items() if other_name != name)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_no_such_file_or_fits_another_model_says_so(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    prune_rl.save_masks(path, GROUPS, MASKS)
    whole = path.read_bytes()
    tensors = safetensors.numpy.load(whole)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    entries = json.loads(metadata["groups"])

    def refuses(params: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            prune_rl.load_masks(path, params)

    def write(tensors: dict[str, Any], groups: Any = entries, form: str = FORMAT) -> None:
        data = safetensors.numpy.save(tensors, {"format": form, "groups": json.dumps(groups)})
        path.write_bytes(data)

    refuses(init(hidden=8), "does not fit the params")
    refuses({"head": init()["head"]}, "have no leaf 'layers/0/w'")
    refuses({**init(), "layers/0/w": X}, "two leaves of the params have the path 'layers/0/w'")
    for cut in (0, 7, 60, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refuses(init(), "is not a file of masks")
    write(tensors, form="another")
    refuses(init(), "should have the format")
    name = entries[0]["name"]
    write({**tensors, name: np.ones(entries[0]["size"], np.float32)})
    refuses(init(), r"should be bool\[")
    write({**tensors, name: np.ones(99, bool)})
    refuses(init(), r"should be bool\[")
    write({n: mask for n, mask in tensors.items() if n != name})
    refuses(init(), "has masks of")
    write(tensors, [*entries[:-1], {**entries[-1], "size": -1}])
    refuses(init(), "describes its groups in another way")
    for wrong in ({"axis": "1"}, {"role": "inside"}, {"positions": [[0]]}, {"length": None}):
        piece = next(s for s in entries[0]["slices"] if s["positions"] is not None)
        write(tensors, [{**entries[0], "slices": [{**piece, **wrong}]}, *entries[1:]])
        refuses(init(), "describes its groups in another way|does not fit the params")
    write(tensors, "groups")
    refuses(init(), "describes its groups in another way")


def test_an_old_file_stays_when_the_masks_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    prune_rl.save_masks(path, GROUPS, MASKS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must be bool"):
        prune_rl.save_masks(path, GROUPS, {next(iter(GROUPS)): np.ones(99, bool)})
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        prune_rl.save_masks(tmp_path / "nowhere" / "masks", GROUPS, MASKS)
