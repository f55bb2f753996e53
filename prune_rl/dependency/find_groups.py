"""Which neurons a function has: the sets of positions of its parameters that can be removed exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prune_rl.dependency.counts import counted_anew
from prune_rl.dependency.exactness import check_removable
from prune_rl.dependency.groups import ROLES, NeuronGroup, NeuronGroups, Role, Slice
from prune_rl.dependency.jaxpr import Traced, trace
from prune_rl.dependency.propagation import Choices, Positions, Sources, next_choices
from prune_rl.dependency.structural_rules import AxisOf
from prune_rl.dependency.summary import described, group_names
from prune_rl.dependency.tree_paths import Indices, KeyPath, Params

COUNTED = (
    "goes through a constant that counts neurons, as the 1/N of a mean does, which fn counts anew for smaller arrays: "
    "with find_groups(..., keep_counts=True) and compact_function it stays that of the full size, and "
    "prune_rl.layer_norm counts those that are left"
)
# By leaf axis: the positions of each neuron along it, int64[neurons, positions per neuron].
Members = dict[AxisOf, Indices]


def find_groups(
    fn: Callable[..., Any],
    params: Params,
    *inputs: Any,
    keep_counts: bool = False,
    whole_heads: bool = False,
    equal_channels: bool = False,
    carry: bool = False,
) -> NeuronGroups:
    """Find the hidden neurons of fn(params, *inputs) from its jaxpr.

    The positions of parameter axes that must go together are one neuron; neurons that take the same positions of
    the same leaves are a group. A neuron is reported if a kernel produces it, a contraction with a parameter reads
    it, and zeroing its slices (incoming, bias, outgoing) leaves exactly the function without it, for every input.
    Positions that reach an input or an output of fn, enter a softmax or a variance in two passes, or go through a
    primitive without a rule are not neurons; `.rejected` says why. Followed are products and convolutions in any
    layout, elementwise primitives, reductions, pooling, reshapes, concatenation, slicing, padding, constant indices,
    jit, vmap, custom derivatives, rematerialisation, cond, scan and while. What no output depends on is left out.

    A mean over neurons keeps its 1/N, since removed neurons are zeros in the sum: so does `compact_function`. Where fn
    itself would run on smaller arrays and count them anew, it would be another function there. So it would where it
    scales a layer by the number of its inputs, or attention by that of its features. The neurons are then refused,
    unless `keep_counts` says that compacted parameters go through `compact_function` only.

    Args:
      fn: any function of params and inputs; it is traced, not run.
      params: any pytree of arrays. Only shapes and dtypes of params and inputs are used: arrays, tracers and
        ShapeDtypeStructs all do.
      *inputs: further arguments of fn, pytrees of arrays.
      keep_counts: accept neurons that fn counts, although it would count fewer in smaller arrays.
      whole_heads: where a reshape splits an axis in several, or merges several, and more than one of them could be that
        of the neurons, take the first: the heads of an attention whose projections are split by reshapes. By default
        it is the last: the features that every head has. Where heads have an axis of the kernels, both are found.
      equal_channels: of a grouped convolution, take equally many channels of every group: those at one place in each
        are one neuron. By default whole groups are one, and equal channels where whole groups cannot go.
      carry: fn is a step fn(params, carry, *inputs) -> (carry, outputs), like the body of `jax.lax.scan`: neurons may
        lie in the carry, a tree of arrays that starts with zeros for neurons that are removed.

    Returns:
      The groups from input to output. A group is named by the "/"-joined path of its layer ("actor/layer_0"),
      or of its incoming leaf where several layers share that path.

    Raises:
      ValueError: params or an input holds something that is not an array; with `carry`, fn is no such step.
    """
    traced = trace(fn, params, *inputs, carry=carry)
    choices: Choices = {}
    while True:
        positions, roles, candidates, products = _candidates(traced, choices, whole_heads, equal_channels)
        refused = candidates[positions.is_blocked(candidates)]
        # An ambiguous reshape has several readings, and the neurons may be removable in another one.
        following = next_choices(positions, choices, refused)
        if following is None:
            break
        choices = following
    groups = _groups(traced, positions, roles, candidates, products)
    anew = set() if keep_counts else counted_anew(fn, traced, groups, params, inputs)
    refused_here = [
        (", ".join(described(s) for s in groups[n].slices if s.role == "in"), COUNTED)
        for n in groups
        if n in anew
    ]
    return NeuronGroups(
        (group for group in groups.values() if group.name not in anew), [*groups.rejected, *refused_here]
    )


def _candidates(
    traced: Traced, choices: Choices, first_axes: bool, equal_channels: bool
) -> tuple[Positions, list[tuple[AxisOf, Role]], Indices, Indices]:
    """The linked program, the roles of leaf axes, the sets that a kernel produces, and those no kernel need read."""
    program, parameters = traced.program, len(traced.paths)
    positions = Positions(program, parameters, choices, first_axes, equal_channels)
    states, results = {before for before, _ in traced.carried}, program.outputs[len(traced.carried) :]
    for value in program.inputs[parameters:]:
        if value in states:
            continue
        for labels in positions.labels[value]:
            positions.block(labels, "is an input of fn")
    positions.interpret(program.equations)
    positions.carry(traced.carried)
    for value in results:
        for labels in positions.labels[value]:
            positions.block(labels, "is an output of fn")
    roles = _roles(positions)
    produced = [positions.of(program.inputs[k], i) for (k, i), role in roles if role == "in"]
    found = np.concatenate([np.empty(0, np.int64), *produced])
    candidates = found[np.sort(np.unique(found, return_index=True)[1])]
    return positions, roles, candidates, check_removable(positions, candidates)


def _roles(positions: Positions) -> list[tuple[AxisOf, Role]]:
    """((leaf, axis), role) in the order in which contractions use the leaves."""
    roles: dict[tuple[AxisOf, Role], None] = {}
    for equation, links in positions.order:
        sources = [positions.sources[v] for v in equation.ins]
        if all(s is not None for s in sources):
            continue  # a product of parameters is a kernel itself; the contraction that reads it gives the roles
        if not any(s is not None and any(s) for s in sources):
            sources = [_mixed_kernel(positions.mixed[v]) for v in equation.ins]
        if equation.name == "gather":  # the rows of an embedding
            carried = {m.axis for maps in links.outs[0] for m in maps if m.operand == 0}
            for i, leaf_axes in enumerate(sources[0] or ()):
                if i in carried:
                    roles.update({(leaf_axis, "in"): None for leaf_axis in sorted(leaf_axes)})
        if equation.name not in ("dot_general", "conv_general_dilated"):
            continue
        for k, kernel in enumerate(sources):
            contracted = {i for pair in links.contracted for j, i in pair if j == k}
            made = {maps[0].axis for maps in links.outs[0] if {m.operand for m in maps} == {k}}
            for i, leaf_axes in enumerate(kernel or ()):
                if i in contracted | made:
                    role: Role = "out" if i in contracted else "in"
                    roles.update({(leaf_axis, role): None for leaf_axis in sorted(leaf_axes)})
    return list(roles)


def _mixed_kernel(mixed: Sources | None) -> Sources | None:
    """Where the axes of a value come from, if two of them come from one leaf: a kernel that inputs are part of."""
    leaves = [leaf for axes in mixed or () for leaf in {k for k, _ in axes}]
    shared = {leaf for leaf in leaves if leaves.count(leaf) > 1}
    if not shared:
        return None
    return tuple(frozenset((k, i) for k, i in axes if k in shared) for axes in mixed or ())


def _groups(
    traced: Traced,
    positions: Positions,
    roles: list[tuple[AxisOf, Role]],
    candidates: Indices,
    contracted: Indices,
) -> NeuronGroups:
    program, paths = traced.program, traced.paths
    order = {leaf_axis: n for n, (leaf_axis, _) in enumerate(roles)}
    members = _members(traced, positions, candidates, order)
    reasons, role_of = positions.reasons(), _by_axis(roles)
    products = {*contracted.tolist()}
    # Neurons of one group: as many positions along the same axes, and the same reasons against them.
    patterns: dict[Any, list[int]] = {}
    for root in candidates.tolist():
        why = reasons.get(root, ())
        if not why and not any("out" in role_of.get(at, ()) for at in members[root]):
            why = () if root in products else ("is read by no kernel",)
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
    names = group_names([slices for _, slices in found], kernels)
    groups = (NeuronGroup(name, size, slices) for name, (size, slices) in zip(names, found, strict=True))
    return NeuronGroups(groups, rejected)


def _members(
    traced: Traced, positions: Positions, candidates: Indices, order: dict[AxisOf, int]
) -> dict[int, dict[AxisOf, list[int]]]:
    """The positions of every candidate set along the leaves' axes, those that produce it first."""
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
    if used and all(role == "in" for _, role in used):
        # A product of two activations, of which the one made last reads the other; or of one with itself.
        reading = used[-1][0]
        used = [(at, "in") for at, _ in used if at != reading or len(used) == 1] + [(reading, "out")]
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
