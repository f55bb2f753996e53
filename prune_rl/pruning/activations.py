"""What the neurons of each group put out, read from a function's jaxpr without a hook in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prune_rl.pruning.axes import link
from prune_rl.pruning.groups import NeuronGroups
from prune_rl.pruning.masks import axis_groups
from prune_rl.pruning.reevaluation import evaluate
from prune_rl.pruning.tracing import Traced, trace


def activations(
    fn: Callable[..., Any], groups: NeuronGroups, params: Any, *inputs: Any
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
      {group name: float32[batch…, size]}, the batch axes being those of the layer's input.

    Raises:
      ValueError: the groups do not fit params, or fn does not read a group.
    """
    table = axis_groups(groups, params)
    traced = trace(fn, params, *inputs)
    readings = _readings(traced, table, len(traced.paths))
    missing = [name for name in groups if name not in readings]
    if missing:
        raise ValueError(
            f"the function reads no activation of the groups {missing}: give the function that they were "
            "found in, or .select the groups that it uses"
        )
    watched = {value for found in readings.values() for value, _ in found}
    values = evaluate(traced.program, jax.tree_util.tree_leaves((params, inputs)), watched=watched)
    return {
        name: _joined([jnp.moveaxis(values[v], axis, -1).astype(jnp.float32) for v, axis in readings[name]])
        for name in groups
    }


def _readings(
    traced: Traced, table: dict[Any, dict[int, str]], parameters: int
) -> dict[str, list[tuple[int, int]]]:
    """{group name: (value, axis) of every operand that an outgoing kernel is contracted with}, each once."""
    axes = link(traced.program, parameters)
    name_of = {
        axes.of(value)[axis]: name
        for path, value in zip(traced.paths, traced.program.inputs, strict=False)
        for axis, name in table.get(path, {}).items()
    }
    found: dict[str, dict[tuple[int, int], None]] = {}
    for equation, links in axes.order:
        for pair in links.contracted:
            root = axes.of(equation.ins[pair[0][0]])[pair[0][1]]
            for k, axis in pair:
                value = equation.ins[k]
                if root in name_of and axes.sources[value] is None:
                    found.setdefault(name_of[root], {})[value, axis] = None
    return {name: list(entries) for name, entries in found.items()}


def _joined(arrays: list[jax.Array]) -> jax.Array:
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape for array in arrays}) == 1:
        return jnp.stack(arrays)
    return jnp.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
