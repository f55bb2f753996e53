"""The rules of JAX's primitives on arrays that positions were removed from, by name.

A rule of `RESIZED` binds the primitive on arrays smaller than the traced ones; a primitive without one takes its shapes
from its operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.jaxpr import Equation
from prune_rl.dependency.rules import GENERATED, MARKS
from prune_rl.dependency.structural_rules import Shape
from prune_rl.dependency.tree_paths import Flags, Indices


class Kept(Protocol):
    """What is kept of the values of a program."""

    def shape(self, value: int) -> Shape:
        """The shape after removal."""

    def along(self, value: int, axis: int) -> Flags:
        """Which positions are kept, bool[traced length]."""

    def array(self, value: int) -> np.ndarray[Any, Any] | None:
        """The traced array that a value is known to be, since it is made of constants alone."""

    def changed(self, value: int) -> bool:
        """Whether a value has lost positions."""

    def compress(self, value: int, array: Any) -> Any:
        """The kept positions of an array of the traced shape."""


ResizedRule = Callable[[Equation, list[Any], Kept], list[Any]]


def bind_resized(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """The outputs of one primitive on arrays that hold only the kept positions."""
    if equation.name in GENERATED:
        whole = zip(equation.outs, equation.bind(arguments), strict=True)
        return [kept.compress(value, array) for value, array in whole]
    known = [kept.array(value) for value in equation.outs]
    if all(array is not None for array in known):
        return [
            kept.compress(value, jnp.asarray(array))
            for value, array in zip(equation.outs, known, strict=True)
        ]
    rule = RESIZED.get(equation.name)
    return equation.bind(arguments) if rule is None else rule(equation, arguments, kept)


def _with_shape(name: str) -> ResizedRule:
    """The parameter `name` is the shape of the output."""

    def rule(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
        return equation.bind(arguments, {**equation.params, name: kept.shape(equation.outs[0])})

    return rule


def _resized_slice(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    params, (array,), (value,) = equation.params, arguments, equation.ins
    strides = params["strides"] or (1,) * np.ndim(array)
    ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (start, stop, step) in enumerate(ranges):
        array = _take(array, np.arange(start, stop, step), axis, kept.along(value, axis))
    return [array]


def _take(array: Any, indices: Indices, axis: int, keep: Flags) -> Any:
    """The kept ones of the positions `indices`, numbered as before removal, along an axis of a resized array."""
    now = (np.cumsum(keep) - 1)[indices[keep[indices]]]
    if len(now) == 0 or bool((np.diff(now) == 1).all()):
        start = int(now[0]) if len(now) else 0
        return jax.lax.slice_in_dim(array, start, start + len(now), axis=axis)
    return jnp.take(array, now, axis, mode="clip")


def _resized_split(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    axis = equation.params["axis"]
    return equation.bind(
        arguments, {**equation.params, "sizes": tuple(kept.shape(v)[axis] for v in equation.outs)}
    )


def _resized_gather(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    indices, numbers = kept.array(equation.ins[1]), equation.params["dimension_numbers"]
    (axis, *others) = numbers.start_index_map
    if indices is None or others or kept.along(equation.ins[0], axis).all():
        return _resized_window(equation, arguments, kept)
    keep = kept.along(equation.ins[0], axis)
    taken = _take(arguments[0], indices[:, 0].astype(np.int64), int(axis), keep)
    (out,) = (o for o in range(np.ndim(taken)) if o not in numbers.offset_dims)
    return [jnp.moveaxis(taken, int(axis), out)]


def _resized_window(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """Axes that were taken whole still are."""
    sizes, traced = equation.params["slice_sizes"], equation.source.invars[0].aval.shape
    lengths = zip(sizes, traced, kept.shape(equation.ins[0]), strict=True)
    slice_sizes = tuple(new if size == old else size for size, old, new in lengths)
    return equation.bind(arguments, {**equation.params, "slice_sizes": slice_sizes})


def _resized_conv(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    params = dict(equation.params)
    if params["feature_group_count"] > 1:
        numbers, aval = params["dimension_numbers"], equation.source.outvars[0].aval
        channels, shape = kept.shape(equation.ins[0])[numbers.lhs_spec[1]], kept.shape(equation.outs[0])
        if not channels or not shape[numbers.out_spec[1]]:
            return [jnp.zeros(shape, aval.dtype)]
        # Either whole groups have gone, or equally many channels of each.
        if kept.along(equation.ins[1], numbers.rhs_spec[1]).all():
            each = equation.source.invars[1].aval.shape[numbers.rhs_spec[1]]
            params["feature_group_count"] = channels // each
    return equation.bind(arguments, params)


def _resized_mark(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """Where an array lies is not said anew for one of another shape, which its devices may not divide."""
    return list(arguments)


RESIZED: dict[str, ResizedRule] = {
    **dict.fromkeys(MARKS - {"optimization_barrier", "pvary", "pbroadcast"}, _resized_mark),
    "broadcast_in_dim": _with_shape("shape"),
    "conv_general_dilated": _resized_conv,
    "dynamic_slice": _resized_window,
    "gather": _resized_gather,
    "reshape": _with_shape("new_sizes"),
    "slice": _resized_slice,
    "split": _resized_split,
}
