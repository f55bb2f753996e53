"""Which slices of which parameter leaves form a neuron."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.tree_paths import Indices, KeyPath

Role = Literal["in", "bias", "out"]
ROLES: tuple[Role, ...] = ("in", "bias", "out")


def path_string(path: KeyPath) -> str:
    """The "/"-joined form of a jax key path, such as "actor/layer_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Positions along one axis of one parameter leaf that belong to the neurons of a group.

    role "in": the kernel axis that produces the neuron; "bias": any parameter joined to it elementwise;
    "out": a kernel axis that the neuron's activation is contracted with.
    positions: those of neuron j are positions[j], as many for every neuron (the gates of a recurrent cell, a
    flattened image); None: neuron j has position j, and the axis is the group's alone.
    length: of the axis, where `positions` are given.
    """

    path: KeyPath
    axis: int
    role: Role
    positions: tuple[tuple[int, ...], ...] | None = None
    length: int | None = None

    def indices(self, size: int) -> Indices:
        """int64[size, positions per neuron]."""
        if self.positions is None:
            return np.arange(size)[:, None]
        return np.asarray(self.positions, np.int64).reshape(size, -1)

    def spread(self, values: Any, fill: Any) -> Any:
        """One value per position along the axis, `fill` at those of no neuron, from one per neuron [size].

        NumPy for NumPy, else a jax array of the same dtype.
        """
        if self.positions is None or self.length is None:
            return values
        where = self.indices(len(values))
        if isinstance(values, np.ndarray):
            array = np.full(self.length, fill, values.dtype)
            array[where] = values[:, None]
            return array
        repeated = jnp.broadcast_to(values[:, None], where.shape)
        return jnp.full(self.length, fill, values.dtype).at[where].set(repeated)

    def collect(self, values: Any, size: int) -> Any:
        """The sum per neuron [size] of one value per position along the axis."""
        return values if self.positions is None else values[self.indices(size)].sum(axis=1)


@dataclasses.dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one hidden layer: `size` of them; neuron j goes when its positions in every slice are 0."""

    name: str
    size: int
    slices: tuple[Slice, ...]

    @property
    def incoming(self) -> tuple[Slice, ...]:
        """The slices that make the activation: roles "in" and "bias"."""
        return tuple(s for s in self.slices if s.role != "out")

    @property
    def outgoing(self) -> tuple[Slice, ...]:
        """The slices that read the activation: role "out"."""
        return tuple(s for s in self.slices if s.role == "out")


class NeuronGroups(Mapping[str, NeuronGroup]):
    """Immutable, ordered and hashable mapping from group name to NeuronGroup; static under jit, not a pytree.

    `rejected` lists (what, reason) for axes that look like neurons but cannot be removed exactly. It takes no
    part in equality.
    """

    __slots__ = ("_groups", "_rejected")

    def __init__(self, groups: Iterable[NeuronGroup], rejected: Iterable[tuple[str, str]] = ()) -> None:
        self._groups = {group.name: group for group in groups}
        self._rejected = tuple(rejected)

    @property
    def rejected(self) -> tuple[tuple[str, str], ...]:
        """(what, reason) of every axis that looks like neurons but is not removable."""
        return self._rejected

    def __getitem__(self, name: str) -> NeuronGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronGroups):
            return NotImplemented
        return tuple(self.values()) == tuple(other.values())

    def __hash__(self) -> int:
        return hash(tuple(self.values()))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {group.size}" for name, group in self.items())
        return f"NeuronGroups({sizes})"

    def select(self, chosen: Callable[[NeuronGroup], bool] | Iterable[str]) -> NeuronGroups:
        """The groups that a predicate accepts, or the named ones, in the present order.

        Raises:
          ValueError: a name is not a group.
        """
        if callable(chosen):
            return NeuronGroups((g for g in self.values() if chosen(g)), self._rejected)
        names = {chosen} if isinstance(chosen, str) else set(chosen)
        unknown = sorted(names - set(self))
        if unknown:
            raise ValueError(f"no neuron group named {unknown}; the groups are {list(self)}")
        return NeuronGroups((g for g in self.values() if g.name in names), self._rejected)

    def within(self, key: str | int) -> NeuronGroups:
        """The groups whose slices all lie in the subtree params[key], such as one network of several."""
        return self.select(lambda group: all(path_string(s.path[:1]) == str(key) for s in group.slices))

    def at(self, key: str | int) -> NeuronGroups:
        """The groups of the subtree params[key]: the first key of every path is dropped, names stay.

        Raises:
          ValueError: a group has slices both inside and outside the subtree (a shared trunk), so that the
            subtree alone cannot be pruned.
        """
        found = []
        for group in self.values():
            inside = [path_string(s.path[:1]) == str(key) for s in group.slices]
            if not any(inside):
                continue
            if not all(inside):
                raise ValueError(
                    f"group {group.name!r} has slices inside and outside params[{key!r}], so it cannot be "
                    "handled in that subtree alone: use the whole tree, or .select other groups first"
                )
            slices = tuple(dataclasses.replace(s, path=s.path[1:]) for s in group.slices)
            found.append(dataclasses.replace(group, slices=slices))
        return NeuronGroups(found)
