"""What the members that an engine trains together differ in beside their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Values = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Members:
    """What the members of an engine differ in beside their seeds; a member is one seed of one run.

    Attributes:
        numbers: {field: one number per member}, of the fields of ``traced_fields`` that differ.
        names: of each member, for sentences; none where they differ in their seeds only.
    """

    numbers: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()

    def held(self, members: range) -> Members:
        """Those of a part of the members."""
        own = slice(members.start, members.stop)
        return Members({name: numbers[own] for name, numbers in self.numbers.items()}, self.names[own])

    def values(self) -> Values:
        """The numbers as arrays, float32[S]."""
        return {name: jnp.asarray(numbers, jnp.float32) for name, numbers in self.numbers.items()}


ALIKE = Members()
