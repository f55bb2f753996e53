"""Masks and the neuron groups that they belong to, in one file: what a pruned model of a fresh process is made with.

A safetensors file: the masks as bool tensors, the groups as JSON in its metadata. It holds no pickle, and nothing of it
is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from prune_rl import atomic_files
from prune_rl.dependency.groups import ROLES, NeuronGroup, NeuronGroups, Slice, path_string
from prune_rl.dependency.slices import checked_slices, concrete_masks
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params, leaves_by_path

FORMAT = "prune_rl masks 1"
BoolArrays = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]


def save_masks(path: str | os.PathLike[str], groups: NeuronGroups, masks: Masks) -> None:
    """Write masks and groups to one file, atomically: a reader finds the old file or the new one.

    Args:
      path: of the file; its folder must exist.
      groups: from `find_groups`.
      masks: {group name: bool[size]}, concrete; groups without a mask are kept whole.

    Raises:
      ValueError: a mask is traced or not bool[size].
      OSError: the file cannot be written.
    """
    kept = concrete_masks(groups, masks)
    tensors = {
        name: np.asarray(kept[name], bool) if name in kept else np.ones(group.size, bool)
        for name, group in groups.items()
    }
    described = [
        {"name": group.name, "size": group.size, "slices": [_described(s) for s in group.slices]}
        for group in groups.values()
    ]
    metadata = {"format": FORMAT, "groups": json.dumps(described)}
    atomic_files.write_bytes(path, safetensors.numpy.save(tensors, metadata))


def load_masks(path: str | os.PathLike[str], params: Params) -> tuple[NeuronGroups, BoolArrays]:
    """The groups and masks of a file, for a model whose params have the same leaves.

    `compact(groups, params, masks)` of fresh params then has the shapes of the pruned model, for trained ones to be
    loaded into; `apply_masks` and `shrink` take both, too.

    Args:
      path: of a file that `save_masks` has written.
      params: the full-size params; paths and shapes are used alone, so `jax.eval_shape` of an initialisation does.

    Raises:
      ValueError: it is no such file, or it does not fit the params; the message says where.
      OSError: the file cannot be read.
    """
    where = Path(path)
    data = where.read_bytes()  # before the library, whose errors do not name the file
    try:
        tensors = safetensors.numpy.load(data)
        with safetensors.safe_open(where, "numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{where} is not a file of masks that save_masks has written: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{where} should have the format {FORMAT!r}, got {metadata.get('format')!r}")
    paths = _paths(params)
    try:
        groups = NeuronGroups([_group(entry, paths) for entry in json.loads(metadata["groups"])])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{where} describes its groups in another way than save_masks does: {error!r}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where} does not fit the params: {error}") from error
    if set(tensors) != set(groups):
        raise ValueError(f"{where} has masks of {sorted(tensors)}, but groups {sorted(groups)}")
    for name, mask in tensors.items():
        if mask.dtype != bool or mask.shape != (groups[name].size,):
            raise ValueError(
                f"{where}: the mask of {name!r} should be bool[{groups[name].size}], got {mask.dtype}{list(mask.shape)}"
            )
    try:
        checked_slices(groups, params)
    except ValueError as error:
        raise ValueError(f"{where} does not fit the params: {error}") from error
    return groups, {name: tensors[name] for name in groups}


def _described(piece: Slice) -> dict[str, Any]:
    return {
        "path": path_string(piece.path),
        "axis": piece.axis,
        "role": piece.role,
        "positions": piece.positions,
        "length": piece.length,
    }


def _paths(params: Params) -> dict[str, KeyPath]:
    """The key paths of the leaves by their joined form."""
    found: dict[str, KeyPath] = {}
    for path in leaves_by_path(params):
        if path_string(path) in found:
            raise ValueError(
                f"two leaves of the params have the path {path_string(path)!r}: rename one of them"
            )
        found[path_string(path)] = path
    return found


def _group(entry: Mapping[str, Any], paths: Mapping[str, KeyPath]) -> NeuronGroup:
    name, size = entry["name"], entry["size"]
    if not isinstance(name, str) or not _is_count(size):
        raise TypeError(f"name {name!r}, size {size!r}")
    return NeuronGroup(name, size, tuple(_slice(piece, size, paths) for piece in entry["slices"]))


def _slice(piece: Mapping[str, Any], size: int, paths: Mapping[str, KeyPath]) -> Slice:
    path, axis, role, length = piece["path"], piece["axis"], piece["role"], piece["length"]
    if path not in paths:
        raise ValueError(f"they have no leaf {path!r}, only {sorted(paths)}")
    positions = piece["positions"]
    rows = [] if positions is None else [tuple(row) for row in positions]
    numbers = [i for row in rows for i in row]
    fits = positions is None or (len(rows) == size and _is_count(length) and len({*map(len, rows)}) <= 1)
    inside = all(_is_count(i) and i < length for i in numbers) and len({*numbers}) == len(numbers)
    if not _is_count(axis) or role not in ROLES or not fits or not inside:
        raise TypeError(f"slice of {path!r}")
    return Slice(paths[path], axis, role, None if positions is None else tuple(rows), length)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
