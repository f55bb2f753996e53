"""The seed axis over the local devices: which of them, and programs that run on each of them for its own seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prune_rl.cpu_cores import available_cores

# Seeds from which every core of a CPU is a device of its own. Fewer are as fast on one, whose operations use all cores.
CORES_FROM = 16


def use_all_cores(num_seeds: int) -> None:
    """Make a CPU as many devices as it has cores, for ``CORES_FROM`` seeds and more; before JAX is used.

    A number of devices that XLA_FLAGS gives stays, and so does one that is in use already.
    """
    if num_seeds < CORES_FROM or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", available_cores())  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True)
class DeviceAxis:
    """Devices that share an axis of arrays, equally many entries on each; a subclass says which axis.

    Programs are mapped over the devices by ``jax.shard_map``, not partitioned by XLA: a program that is partitioned
    gathers the operands of every linear-algebra call on all devices.

    Attributes:
        devices: those that are used, at least one.
        available: how many there were to choose from.
    """

    axis: ClassVar[str]

    devices: tuple[jax.Device, ...]
    available: int

    def note(self) -> str:
        """A sentence about the use of the devices; "" where there is nothing to say."""
        raise NotImplementedError

    def place(self, tree: Any, axes: Any) -> Any:
        """``tree`` on the devices, on a single one as it is.

        ``axes``: a prefix of it, the shared axis of each leaf or None.
        """
        if len(self.devices) == 1:
            return tree
        return jax.device_put(tree, self._broadcast(axes, tree))

    def jit(self, fn: Callable[..., Any], in_axes: tuple[Any, ...], out_axes: Any, **options: Any) -> Any:
        """``jax.jit`` of ``fn``, which is called for the entries of one device, on all devices.

        Args:
            fn: a function of arrays with the entries of one device.
            in_axes: per argument a prefix of it, the shared axis of each leaf or None where all devices have the same.
            out_axes: likewise of the result.
            options: of ``jax.jit``.
        """
        if len(self.devices) == 1:
            return jax.jit(fn, **options)
        mapped = jax.shard_map(
            fn,
            mesh=self._mesh,
            in_specs=_map_axes(self._spec, in_axes),
            out_specs=_map_axes(self._spec, out_axes),
            check_vma=False,  # what all devices have alike is computed on every one
        )
        # Said here too, so that programs compiled ahead take and give what `place` makes.
        return jax.jit(
            mapped,
            in_shardings=_map_axes(self._sharding, in_axes),
            out_shardings=_map_axes(self._sharding, out_axes),
            **options,
        )

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (self.axis,))

    def _sharding(self, axis: int | None) -> NamedSharding:
        return NamedSharding(self._mesh, self._spec(axis))

    def _broadcast(self, axes: Any, tree: Any) -> Any:
        shardings = _map_axes(self._sharding, axes)
        return jax.tree.broadcast(shardings, tree, is_leaf=lambda x: isinstance(x, NamedSharding))

    def _spec(self, axis: int | None) -> PartitionSpec:
        entries = [] if axis is None else [*[None] * axis, self.axis]
        return PartitionSpec(*entries)  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True)
class SeedDevices(DeviceAxis):
    """The devices that share the seeds of a run, equally many on each.

    Seeds have nothing to tell each other.

    Attributes:
        num_seeds: seeds that are trained at once.
    """

    axis: ClassVar[str] = "seeds"

    num_seeds: int

    @classmethod
    def choose(cls, num_seeds: int, devices: Sequence[jax.Device] | None = None) -> SeedDevices:
        """The largest number of ``devices``, by default all local ones, that divides the seeds."""
        found = tuple(jax.local_devices() if devices is None else devices)
        number = max(n for n in range(1, len(found) + 1) if num_seeds % n == 0)
        return cls(found[:number], len(found), num_seeds)

    @property
    def seeds_each(self) -> int:
        """Seeds on one device."""
        return self.num_seeds // len(self.devices)

    def note(self) -> str:
        """A sentence about the use of the devices; "" where there is one only."""
        if self.available == 1:
            return ""
        seeds = f"{self.num_seeds} seed{'s' if self.num_seeds > 1 else ''}"
        if len(self.devices) == self.available:
            return f"{seeds} on {self.available} devices, {self.seeds_each} on each"
        return (
            f"{seeds} on {len(self.devices)} of {self.available} devices: every device has equally many, so for all "
            f"of them give a multiple of {self.available} seeds"
        )


def _map_axes(fn: Callable[[int | None], Any], axes: Any) -> Any:
    return jax.tree.map(fn, axes, is_leaf=lambda axis: axis is None)
