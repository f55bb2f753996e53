"""Whether a function counts its neurons: whether its constants change when it runs on smaller arrays itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup
from prune_rl.dependency.jaxpr import Program, Traced, primitives, trace
from prune_rl.dependency.tree_paths import KeyPath, Params, make_struct, shape_struct


def counts_anew(
    fn: Callable[..., Any], traced: Traced, group: NeuronGroup, params: Params, inputs: tuple[Any, ...]
) -> bool:
    """Whether fn runs on parameters without some neurons of a group as they are, but with other constants.

    It does not where it fixes its widths, so that it refuses smaller arrays, or where its constants are written down.
    Tried without half of the neurons, which fits functions that ask for multiples.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smaller = trace(fn, _smaller(group, params, (group.size + 1) // 2), *inputs)
    except Exception:  # whatever it is: fn does not run on smaller arrays
        return False
    return _constants(smaller.program) != _constants(traced.program)


def _smaller(group: NeuronGroup, params: Params, gone: int) -> Params:
    """Shapes of the params without so many neurons of a group."""
    lost = {(piece.path, piece.axis): piece.indices(group.size).shape[1] * gone for piece in group.slices}

    def shape(path: KeyPath, leaf: Any) -> Any:
        full = shape_struct(leaf, "params")
        lengths = tuple(n - lost.get((path, i), 0) for i, n in enumerate(full.shape))
        return make_struct(lengths, full.dtype, weak_type=full.weak_type)

    return jax.tree_util.tree_map_with_path(shape, params)


def _constants(program: Program) -> list[tuple[str, tuple[Any, ...]]]:
    """By primitive in the order of evaluation, the scalars among its operands."""

    def scalar(value: int) -> Any:
        array = program.constants.get(value)
        known = array is not None and np.size(array) == 1 and not isinstance(array, jax.core.Tracer)
        numeric = known and not jnp.issubdtype(program.avals[value].dtype, jax.dtypes.extended)
        return np.asarray(array).item() if numeric else None

    return [(e.name, tuple(map(scalar, e.ins))) for e in primitives(program.equations)]
