"""Checkpoints that several processes write together: each its part of the seed axis, orbax one checkpoint of all.

A leaf has the seeds along its axis 0, of which every process holds equally many, or is the same for all. orbax writes
the parts of an array that spans processes, so no process needs the whole. It gets them as arrays on the CPU, where the
leaves are copied to in any case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from prune_rl.processes.group import ProcessGroup
from prune_rl.runs import serialization
from prune_rl.runs.serialization import Layout

AXIS = "processes"


@dataclasses.dataclass(frozen=True)
class Part:
    """What one of the processes that save together holds.

    Attributes:
        group: the processes.
        shared: a tree like the one that is saved, of bools: which leaves are the same in all of them.
    """

    group: ProcessGroup
    shared: Any

    def shared_names(self, names: Iterable[str]) -> set[str]:
        """Those of the leaves that are the same in all processes; ``names`` of all leaves, in order."""
        flags = jax.tree.leaves(self.shared)
        return {name for name, shared in zip(sorted(names), flags, strict=True) if shared}

    def whole_layout(self, layout: Layout, shared: set[str]) -> dict[str, dict[str, Any]]:
        """The layout of the whole checkpoint, from that of a part."""
        return {name: self._scaled(leaf, name in shared, whole=True) for name, leaf in layout.items()}

    def own_layout(self, layout: Layout, shared: set[str]) -> dict[str, dict[str, Any]]:
        """The inverse of ``whole_layout``."""
        return {name: self._scaled(leaf, name in shared, whole=False) for name, leaf in layout.items()}

    def whole_arrays(self, arrays: Mapping[str, NDArray[Any]], shared: set[str]) -> dict[str, jax.Array]:
        """Arrays that span all processes, of which this one has ``arrays``."""
        mesh = Mesh(np.array(_devices(self.group.size)), (AXIS,))
        spec: Any = PartitionSpec
        make: Any = jax.make_array_from_process_local_data
        whole = {}
        for name, array in arrays.items():
            sharding = NamedSharding(mesh, spec() if name in shared else spec(AXIS))
            shape = array.shape if name in shared else (array.shape[0] * self.group.size, *array.shape[1:])
            whole[name] = make(sharding, array, shape)
        return whole

    def own_arrays(self, arrays: Mapping[str, NDArray[Any]], shared: set[str]) -> dict[str, NDArray[Any]]:
        """The part of this process, of the arrays of the whole checkpoint."""
        return _part(arrays, shared, self.group.index, self.group.size)

    def _scaled(self, leaf: Mapping[str, Any], shared: bool, *, whole: bool) -> dict[str, Any]:
        shape, size = list(leaf["shape"]), self.group.size
        if not shared:
            shape[0] = shape[0] * size if whole else shape[0] // size
        return {**leaf, "shape": shape}


def digests(arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> list[str]:
    """The checksum of each part that a checkpoint was written in, computed from all its arrays."""
    number = len(header["leaves_sha256"])
    shared = set(header["shared"])
    return [serialization.digest(_part(arrays, shared, index, number)) for index in range(number)]


def alone() -> ocp.options.MultiprocessingOptions:
    """For orbax: this process acts by itself."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(index, {index}, f"process_{index}")


def together(group: ProcessGroup) -> ocp.options.MultiprocessingOptions:
    """For orbax: all processes act, and wait for each other without devices."""
    return ocp.options.MultiprocessingOptions(0, set(range(group.size)), "all")


def _part(
    arrays: Mapping[str, NDArray[Any]], shared: set[str], index: int, number: int
) -> dict[str, NDArray[Any]]:
    def of(array: NDArray[Any]) -> NDArray[Any]:
        each = array.shape[0] // number
        part: NDArray[Any] = array[index * each : (index + 1) * each]
        return part

    return {name: array if name in shared else of(array) for name, array in arrays.items()}


def _devices(size: int) -> list[jax.Device]:
    """One CPU device of each process; where JAX_PLATFORMS leaves the CPU out, its first device."""
    try:
        devices = jax.devices("cpu")
    except RuntimeError:
        devices = jax.devices()
    return [next(d for d in devices if d.process_index == index) for index in range(size)]
