"""Which slices of which parameter leaves form a neuron."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax

from prune_rl.pruning.axes import Axes, link
from prune_rl.pruning.leaves import KeyPath
from prune_rl.pruning.removal import check_removable
from prune_rl.pruning.tracing import trace

Role = Literal["in", "bias", "out"]
ROLES: tuple[Role, ...] = ("in", "bias", "out")


def path_string(path: KeyPath) -> str:
    """The "/"-joined form of a jax key path, such as "actor/layer_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclasses.dataclass(frozen=True)
class Slice:
    """One axis of one parameter leaf; index j along it belongs to neuron j of the group.

    role "in": the kernel axis that produces the neuron; "bias": any parameter joined to it elementwise;
    "out": a kernel axis that the neuron's activation is contracted with.
    """

    path: KeyPath
    axis: int
    role: Role


@dataclasses.dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one hidden layer: `size` of them, removed by zeroing index j of every slice."""

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


def find_groups(fn: Callable[..., Any], params: Any, *inputs: Any) -> NeuronGroups:
    """Find the hidden neurons of fn(params, *inputs) from its jaxpr.

    A hidden axis is a neuron group when a kernel produces it, its only readers are contractions with
    parameter leaves, and zeroing its slices (incoming, bias, outgoing) leaves exactly the function without
    it. Axes that reach an input or an output of fn, are reduced (mean, softmax, layer norm), or go through a
    primitive without a rule are not groups; `.rejected` says why.

    Args:
      fn: any function of params and inputs; it is traced, not run.
      params: any pytree of arrays. Only shapes and dtypes of params and inputs are used: arrays, tracers and
        ShapeDtypeStructs all do.
      *inputs: further arguments of fn, pytrees of arrays.

    Returns:
      The groups from input to output. A group is named by the "/"-joined path of its layer ("actor/layer_0"),
      or of its incoming leaf where several layers share that path.

    Raises:
      ValueError: params or an input holds something that is not an array.
    """
    traced = trace(fn, params, *inputs)
    program, paths = traced.program, traced.paths
    axes = link(program, len(paths))
    for value in program.inputs[len(paths) :]:
        for i in range(len(program.shape(value))):
            axes.block(value, i, "is an input of fn")
    for value in program.outputs:
        for i in range(len(program.shape(value))):
            axes.block(value, i, "is an output of fn")

    roles = _roles(axes)
    members: dict[int, list[tuple[int, int]]] = {}
    for k, value in enumerate(program.inputs[: len(paths)]):
        for i, root in enumerate(axes.of(value)):
            members.setdefault(root, []).append((k, i))
    order = {leaf_axis: n for n, (leaf_axis, _) in enumerate(roles)}
    produced = sorted({axis for axis, role in roles if role == "in"}, key=lambda axis: order[axis])
    candidates = list(dict.fromkeys(axes.of(program.inputs[k])[i] for k, i in produced))
    check_removable(axes, set(candidates))

    found, rejected = [], []
    for root in candidates:
        slices = _slices(members[root], roles, paths)
        incoming = ", ".join(f"{path_string(s.path)} axis {s.axis}" for s in slices if s.role == "in")
        reasons = axes.reasons(root)
        if not reasons and not any(s.role == "out" for s in slices):
            reasons = ("no kernel reads it",)
        if reasons:
            rejected.append((incoming, "; ".join(reasons)))
        else:
            k, i = members[root][0]
            found.append((program.shape(program.inputs[k])[i], slices))
    kernels = {paths[k] for k, _ in produced}
    names = _names([slices for _, slices in found], kernels)
    groups = (NeuronGroup(name, size, slices) for name, (size, slices) in zip(names, found, strict=True))
    return NeuronGroups(groups, rejected)


def _roles(axes: Axes) -> list[tuple[tuple[int, int], Role]]:
    """((leaf, axis), role) in the order in which contractions use the leaves."""
    roles: dict[tuple[tuple[int, int], Role], None] = {}
    for equation, links in axes.order:
        if equation.name != "dot_general":
            continue
        sources = [axes.sources[v] for v in equation.ins]
        if all(s is not None for s in sources):
            continue  # a product of parameters is a kernel in the making; whoever reads it gives the roles
        for k, kernel in enumerate(sources):
            contracted = {i for pair in links.contracted for j, i in pair if j == k}
            batch = {i for tied in links.outs[0] if len(tied) == 2 for j, i in tied if j == k}
            for i, leaf_axes in enumerate(kernel or ()):
                if i not in batch:
                    role: Role = "out" if i in contracted else "in"
                    roles.update({(leaf_axis, role): None for leaf_axis in sorted(leaf_axes)})
    return list(roles)


def _slices(
    members: list[tuple[int, int]], roles: list[tuple[tuple[int, int], Role]], paths: tuple[KeyPath, ...]
) -> tuple[Slice, ...]:
    """One group's slices: in, bias, out, each in the order of use; a tied axis may be both in and out."""
    used = [(axis, role) for axis, role in roles if axis in members]
    named = {axis for axis, _ in used}
    used += [(axis, "bias") for axis in members if axis not in named]
    used.sort(key=lambda entry: ROLES.index(entry[1]))
    return tuple(Slice(paths[k], i, role) for (k, i), role in used)


def _names(groups: list[tuple[Slice, ...]], kernels: set[KeyPath]) -> list[str]:
    """The layer's path where only this group's kernels lie under it, else the path of the incoming leaf."""
    names = []
    for slices in groups:
        incoming = [s.path for s in slices if s.role != "out"]
        own = {s.path for s in slices if s.role == "in"}
        layer = incoming[0][:-1]
        while any(path[: len(layer)] != layer for path in incoming):
            layer = layer[:-1]
        shared = any(path[: len(layer)] == layer for path in kernels - own)
        names.append(path_string(incoming[0] if shared or not layer else layer))
    # One kernel with several free axes gives several groups the same path.
    return [
        f"{name}[{slices[0].axis}]" if names.count(name) > 1 else name
        for name, slices in zip(names, groups, strict=True)
    ]
