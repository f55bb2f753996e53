"""The environments of one seed over the local devices: rollouts in shards, learning on what all of them saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from prune_rl.learners.rollout import Rollout
from prune_rl.training.engines.seed_devices import DeviceAxis


@dataclasses.dataclass(frozen=True)
class EnvDevices(DeviceAxis):
    """The devices that share the environments of one seed, equally many on each.

    Every device steps its own environments, with the random numbers that they have on a single device. It then learns
    from the rollout of all: the update is the same program with the same arrays everywhere, so only rollouts take less
    time. What counts is the first device's: the others act with its parameters, since operations that are not
    deterministic would let copies drift apart.

    Attributes:
        num_envs: environments of the seed.
    """

    axis: ClassVar[str] = "envs"

    num_envs: int

    @classmethod
    def choose(cls, num_envs: int, devices: Sequence[jax.Device] | None = None) -> EnvDevices:
        """All ``devices``, by default the local ones.

        Raises:
            ValueError: they cannot have equally many environments.
        """
        found = tuple(jax.local_devices() if devices is None else devices)
        if num_envs % len(found):
            raise ValueError(
                f"num_envs = {num_envs} is no multiple of the {len(found)} devices that shard_envs shares the "
                f"environments among: give a multiple of {len(found)} (--num-envs), or hide devices "
                "(CUDA_VISIBLE_DEVICES)"
            )
        return cls(found, len(found), num_envs)

    def note(self) -> str:
        """A sentence about the use of the devices."""
        if len(self.devices) == 1:
            return "there is one device, so all environments are on it"
        return (
            f"{self.num_envs} environments on {len(self.devices)} devices, "
            f"{self.num_envs // len(self.devices)} on each; every device makes the whole update"
        )

    def own(self, drawn: Any) -> Any:
        """The part [T, N / devices, …] of arrays [T, N, …] that is this device's; inside a program of ``jit``."""
        if len(self.devices) == 1:
            return drawn
        number = self.num_envs // len(self.devices)
        start = jax.lax.axis_index(self.axis) * number
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, number, axis=1), drawn)

    def gathered(self, rollout: Rollout) -> Rollout:
        """The rollout of all environments from that of the own ones, likewise."""
        if len(self.devices) == 1:
            return rollout
        whole: Rollout = jax.tree.map(
            lambda x: jax.lax.all_gather(x, self.axis, axis=1, tiled=True) if x.ndim else x, rollout
        )
        return whole

    def of_the_first(self, tree: Any) -> Any:
        """The first device's copy of a tree, likewise; keys, which every device has alike, as they are."""
        if len(self.devices) == 1:
            return tree

        def copy(x: jax.Array) -> jax.Array:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return x
            first: jax.Array = jax.lax.all_gather(x, self.axis)[0]
            return first

        return jax.tree.map(copy, tree)
