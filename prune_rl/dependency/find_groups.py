"""Which neurons a function has: the classes of positions of its parameters that can be taken out exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from prune_rl.dependency.exactness import check_removable
from prune_rl.dependency.groups import ROLES, NeuronGroup, NeuronGroups, Role, Slice, path_string
from prune_rl.dependency.index_maps import AxisOf, Indices
from prune_rl.dependency.jaxpr import Traced, trace
from prune_rl.dependency.propagation import Choices, Positions, next_choices
from prune_rl.dependency.tree_paths import KeyPath

# By leaf axis: the positions of each neuron along it, int64[neurons, positions per neuron].
Members = dict[AxisOf, Indices]


def find_groups(fn: Callable[..., Any], params: Any, *inputs: Any) -> NeuronGroups:
    """Find the hidden neurons of fn(params, *inputs) from its jaxpr.

    The positions of parameter axes that must go together are one neuron; neurons that take the same positions of
    the same leaves are a group. A neuron is reported if a kernel produces it, a contraction with a parameter reads
    it, and zeroing its slices (incoming, bias, outgoing) leaves exactly the function without it, for every input.
    Positions that reach an input or an output of fn, enter a mean or a softmax, or go through a primitive without
    a rule are not neurons; `.rejected` says why. Followed are products and convolutions in any layout, elementwise
    primitives, reductions, pooling, reshapes, concatenation, slicing, padding, constant indices, jit, vmap, custom
    derivatives, rematerialisation, cond, scan and while.

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
    choices: Choices = {}
    while True:
        positions, roles, candidates = _candidates(traced, choices)
        refused = candidates[positions.is_blocked(candidates)]
        # A reshape can be read in several ways, and one of them may leave the neurons removable.
        following = next_choices(positions, choices, refused)
        if following is None:
            break
        choices = following
    return _groups(traced, positions, roles, candidates)


def _candidates(traced: Traced, choices: Choices) -> tuple[Positions, list[tuple[AxisOf, Role]], Indices]:
    """The linked program, the roles of leaf axes, and the classes that a kernel produces, checked for removal."""
    program, parameters = traced.program, len(traced.paths)
    positions = Positions(program, parameters, choices)
    for value in program.inputs[parameters:]:
        for labels in positions.labels[value]:
            positions.block(labels, "is an input of fn")
    positions.walk(program.equations)
    for value in program.outputs:
        for labels in positions.labels[value]:
            positions.block(labels, "is an output of fn")
    roles = _roles(positions)
    produced = [positions.of(program.inputs[k], i) for (k, i), role in roles if role == "in"]
    found = np.concatenate([np.empty(0, np.int64), *produced])
    candidates = found[np.sort(np.unique(found, return_index=True)[1])]
    check_removable(positions, candidates)
    return positions, roles, candidates


def _roles(positions: Positions) -> list[tuple[AxisOf, Role]]:
    """((leaf, axis), role) in the order in which contractions use the leaves."""
    roles: dict[tuple[AxisOf, Role], None] = {}
    for equation, links in positions.order:
        sources = [positions.sources[v] for v in equation.ins]
        if all(s is not None for s in sources):
            continue  # a product of parameters is a kernel in the making; whoever reads it gives the roles
        if equation.name == "gather":  # the rows of an embedding
            carried = {t.axis for ties in links.outs[0] for t in ties if t.operand == 0}
            for i, leaf_axes in enumerate(sources[0] or ()):
                if i in carried:
                    roles.update({(leaf_axis, "in"): None for leaf_axis in sorted(leaf_axes)})
        if equation.name not in ("dot_general", "conv_general_dilated"):
            continue
        for k, kernel in enumerate(sources):
            contracted = {i for pair in links.contracted for j, i in pair if j == k}
            made = {t.axis for ties in links.outs[0] if len(ties) == 1 for t in ties if t.operand == k}
            for i, leaf_axes in enumerate(kernel or ()):
                if i in contracted | made:
                    role: Role = "out" if i in contracted else "in"
                    roles.update({(leaf_axis, role): None for leaf_axis in sorted(leaf_axes)})
    return list(roles)


def _groups(
    traced: Traced, positions: Positions, roles: list[tuple[AxisOf, Role]], candidates: Indices
) -> NeuronGroups:
    program, paths = traced.program, traced.paths
    order = {leaf_axis: n for n, (leaf_axis, _) in enumerate(roles)}
    members = _members(traced, positions, candidates, order)
    reasons, role_of = positions.reasons(), _by_axis(roles)
    # Neurons of one pattern: the same number of positions along the same axes, and the same fate.
    patterns: dict[Any, list[int]] = {}
    for root in candidates.tolist():
        why = reasons.get(root, ())
        if not why and not any("out" in role_of.get(at, ()) for at in members[root]):
            why = ("no kernel reads it",)
        pattern = tuple((at, len(where)) for at, where in members[root].items())
        patterns.setdefault((pattern, why), []).append(root)

    found, rejected = [], []
    for (pattern, why), roots in patterns.items():
        along: Members = {at: np.array([members[root][at] for root in roots]) for at, _ in pattern}
        slices = _slices(along, roles, paths, [program.shape(v) for v in program.inputs])
        if why:
            made = [s for s in slices if s.role == "in"]
            rejected.append((", ".join(map(described, made)), "; ".join(why)))
        else:
            found.append((len(roots), slices))
    kernels = {paths[k] for (k, _), role in roles if role == "in"}
    names = _names([slices for _, slices in found], kernels)
    groups = (NeuronGroup(name, size, slices) for name, (size, slices) in zip(names, found, strict=True))
    return NeuronGroups(groups, rejected)


def _members(
    traced: Traced, positions: Positions, candidates: Indices, order: dict[AxisOf, int]
) -> dict[int, dict[AxisOf, list[int]]]:
    """The positions of every candidate class along the leaves' axes, those that produce it first."""
    members: dict[int, dict[AxisOf, list[int]]] = {root: {} for root in candidates.tolist()}
    axes = [
        (k, i)
        for k, value in enumerate(traced.program.inputs[: len(traced.paths)])
        for i in range(len(traced.program.shape(value)))
    ]
    for k, i in sorted(axes, key=lambda at: order.get(at, len(order))):
        for position, root in enumerate(positions.of(traced.program.inputs[k], i).tolist()):
            if root in members:
                members[root].setdefault((k, i), []).append(position)
    return members


def _by_axis(roles: list[tuple[AxisOf, Role]]) -> dict[AxisOf, set[Role]]:
    table: dict[AxisOf, set[Role]] = {}
    for at, role in roles:
        table.setdefault(at, set()).add(role)
    return table


def _slices(
    along: Members,
    roles: list[tuple[AxisOf, Role]],
    paths: tuple[KeyPath, ...],
    shapes: list[tuple[int, ...]],
) -> tuple[Slice, ...]:
    """One group's slices: in, bias, out, each in the order of use; a tied axis may be both in and out."""
    used = [(at, role) for at, role in roles if at in along]
    named = {at for at, _ in used}
    biases: list[tuple[AxisOf, Role]] = [(at, "bias") for at in sorted(along) if at not in named]
    slices = []
    for (k, i), role in sorted(used + biases, key=lambda entry: ROLES.index(entry[1])):
        where, length = along[k, i], shapes[k][i]
        if where.shape == (length, 1) and bool((where[:, 0] == np.arange(length)).all()):
            slices.append(Slice(paths[k], i, role))
        else:
            slices.append(Slice(paths[k], i, role, tuple(map(tuple, where.tolist())), length))
    return tuple(slices)


def described(piece: Slice) -> str:
    """The leaf and its axis, with the range of positions where the group has a part of it."""
    text = f"{path_string(piece.path)} axis {piece.axis}"
    if piece.positions is None:
        return text
    taken = sorted(itertools.chain.from_iterable(piece.positions))
    if len(taken) == piece.length:
        return text
    return f"{text} {_ranges(taken)}"


def _ranges(taken: list[int]) -> str:
    """[0:3, 6:9] for the positions 0, 1, 2, 6, 7, 8."""
    runs: list[list[int]] = []
    for position in taken:
        if runs and runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    shown = ", ".join(f"{start}:{stop}" for start, stop in runs[:4])
    return f"[{shown}{', …' if len(runs) > 4 else ''}]"


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
    # One kernel with several free axes gives several groups the same path, as does one that is split.
    marks: tuple[Callable[[Slice], str], ...] = (
        lambda piece: f"[{piece.axis}]",
        lambda piece: _ranges(sorted(itertools.chain(*piece.positions or ()))),
    )
    for mark in marks:
        suffixes = [mark(slices[0]) for slices in groups]
        taken = {name: {s for n, s in zip(names, suffixes, strict=True) if n == name} for name in names}
        names = [
            name + suffix if len(taken[name]) > 1 else name
            for name, suffix in zip(names, suffixes, strict=True)
        ]
    again = {name: [n for n, other in enumerate(names) if other == name] for name in names}
    return [
        f"{name}#{again[name].index(n)}" if len(again[name]) > 1 else name for n, name in enumerate(names)
    ]
