"""What the neurons of each group put out, read from a function's jaxpr without a hook in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.evaluation import evaluate
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.jaxpr import Equation, Traced, trace
from prune_rl.dependency.resizing import KeptPositions, resize
from prune_rl.dependency.slices import axis_slices, checked_slices, kept_positions
from prune_rl.dependency.tree_paths import Indices, Params

Reading = tuple[int, int, Indices]  # value, axis, positions of each neuron along it


def activations(
    fn: Callable[..., Any], groups: NeuronGroups, params: Params, *inputs: Any
) -> dict[str, jax.Array]:
    """The value that each group's outgoing kernels are multiplied with: after the nonlinearity.

    Jittable and vmappable. A group that is read several times at different values (a residual stream, a
    layer called on two inputs) has them stacked on a new leading axis where their shapes agree, else with
    their leading axes flattened into one.

    Args:
      fn: the function the groups were found in, or any that uses the same layers.
      groups: from `find_groups`.
      params: the pytree that the groups were found in, full-size.
      *inputs: the further arguments of fn.

    Returns:
      {group name: float32[batch…, size]} (float64 where the layer is), the batch axes being those of the layer's input.

    Raises:
      ValueError: the groups do not fit params, or fn does not read a group.
    """
    checked_slices(groups, params)
    traced = trace(fn, params, *inputs)
    readings = _readings(traced, groups)
    missing = [name for name in groups if name not in readings]
    if missing:
        raise ValueError(
            f"the function reads no activation of the groups {missing} outside of loops and branches: give the "
            "function that they were found in, or .select the groups that it uses"
        )
    watched = {value for found in readings.values() for value, *_ in found}
    values = evaluate(traced.program, jax.tree_util.tree_leaves((params, inputs)), watched=watched)
    return {name: _joined([_along(values[v], i, where) for v, i, where in readings[name]]) for name in groups}


def _readings(traced: Traced, groups: NeuronGroups) -> dict[str, list[Reading]]:
    """By group name, what every outgoing kernel is contracted with, each once."""
    value_of = dict(zip(traced.paths, traced.program.inputs, strict=False))

    def all_gone(kept: KeptPositions) -> None:
        none = {name: np.zeros(group.size, bool) for name, group in groups.items()}
        for path, axes in axis_slices(groups).items():
            for axis, pieces in axes.items():
                kept.assign(value_of[path], axis, kept_positions(pieces, none))

    positions = resize(traced.program, len(traced.paths), all_gone).positions
    neuron_of: dict[int, tuple[str, int]] = {}
    for group in groups.values():
        piece = group.slices[0]
        roots = positions.of(value_of[piece.path], piece.axis)[piece.indices(group.size)[:, 0]]
        neuron_of.update({root: (group.name, j) for j, root in enumerate(roots.tolist())})
    inside = _inside(traced.program.equations)
    found: dict[str, dict[tuple[int, int], Reading]] = {}
    for equation, links in positions.order:
        for pair in links.contracted:
            for k, axis in pair:
                value = equation.ins[k]
                if positions.sources[value] is not None or value in inside:
                    continue
                for name, where in _read(positions.of(value, axis).tolist(), neuron_of, groups).items():
                    found.setdefault(name, {})[value, axis] = (value, axis, where)
    return {name: list(entries.values()) for name, entries in found.items()}


def _read(
    roots: list[int], neuron_of: dict[int, tuple[str, int]], groups: NeuronGroups
) -> dict[str, Indices]:
    """By group, the positions of its neurons along an axis, int64[size, positions per neuron]."""
    rows: dict[str, list[list[int]]] = {}
    for position, root in enumerate(roots):
        if root in neuron_of:
            name, j = neuron_of[root]
            rows.setdefault(name, [[] for _ in range(groups[name].size)])[j].append(position)
    return {name: np.array(row) for name, row in rows.items() if len({len(r) for r in row}) == 1}


def _inside(equations: Iterable[Equation], looped: bool = False) -> set[int]:
    """The values that exist only while a loop or a branch runs."""
    found: set[int] = set()
    for equation in equations:
        found |= {*(equation.outs if looped else ()), *_inside(equation.body or (), looped)}
        for block in equation.blocks:
            found |= {*block.ins, *_inside(block.equations, True)}
    return found


def _along(value: jax.Array, axis: int, where: Indices) -> jax.Array:
    """The neurons last; several positions of a neuron count as further examples."""
    moved = jnp.moveaxis(value, axis, -1).astype(jnp.promote_types(value.dtype, jnp.float32))
    if where.shape == (moved.shape[-1], 1) and bool((where[:, 0] == np.arange(len(where))).all()):
        return moved
    taken = moved[..., where]
    return taken[..., 0] if where.shape[1] == 1 else jnp.moveaxis(taken, -1, 0)


def _joined(arrays: list[jax.Array]) -> jax.Array:
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape for array in arrays}) == 1:
        return jnp.stack(arrays)
    return jnp.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
