"""Run a traced program again: to see the values inside, or on arrays smaller than the traced ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.links import Indices
from prune_rl.pruning.positions import Choices, Positions, link, next_choices
from prune_rl.pruning.removal import check_removable
from prune_rl.pruning.tracing import Block, Equation, Program

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Kept:
    """Which positions of a program's values are kept: all but those of the classes that were taken out."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self._removed = np.zeros(positions.size, bool)
        self._claims: list[tuple[Indices, Flags]] = []

    def set(self, value: int, axis: int, keep: Flags) -> None:
        """Keep these positions along an axis of a value, bool[length], and all that are the same neurons."""
        roots = self.positions.of(value, axis)
        self._claims.append((roots, keep))
        self._removed[roots[~keep]] = True

    @property
    def removed(self) -> Indices:
        """The classes that were taken out."""
        return np.flatnonzero(self._removed)

    def along(self, value: int, axis: int) -> Flags:
        """Which positions along an axis are kept, bool[traced length]."""
        flags: Flags = ~self._removed[self.positions.of(value, axis)]
        return flags

    def shape(self, value: int) -> tuple[int, ...]:
        """The present shape of a value."""
        rank = len(self.positions.program.shape(value))
        return tuple(int(self.along(value, i).sum()) for i in range(rank))

    def changed(self, value: int) -> bool:
        return any(self._removed[self.positions.of(value, i)].any() for i in range(len(self.shape(value))))

    def refused(self) -> Indices:
        """Classes that were taken out in one place and kept in another, or that `find_groups` would have refused."""
        torn = [roots[keep & self._removed[roots]] for roots, keep in self._claims]
        gone = self.removed
        return np.concatenate([*torn, gone[self.positions.is_blocked(gone)]]).astype(np.int64)

    def check(self) -> None:
        """Raise ValueError where `find_groups` would have refused."""
        refused, reasons = self.refused(), self.positions.reasons()
        for root in refused.tolist():
            why = reasons.get(root, ("belongs to neurons that are kept and to others that are not",))
            raise ValueError(
                f"this function cannot run on fewer neurons, because their axis {'; '.join(why)}. "
                "Find the groups in this same function."
            )


def settle(program: Program, parameters: int, assign: Callable[[Kept], None], exact: bool = False) -> Kept:
    """What is kept of a program, where `assign` says what is of some of its values.

    With `exact`, what was taken out must have been removable: the masked function is then the smaller one.

    Raises:
      ValueError: the program cannot run on that.
    """
    choices: Choices = {}
    while True:
        kept = Kept(link(program, parameters, choices))
        assign(kept)
        if exact:
            check_removable(kept.positions, kept.removed)
        refused = kept.refused()
        following = next_choices(kept.positions, choices, refused) if len(refused) else None
        if following is None:
            kept.check()
            return kept
        choices = following


def evaluate(
    program: Program, leaves: Sequence[Any], kept: Kept | None = None, watched: Iterable[int] = ()
) -> dict[int, Any]:
    """Run a program; with `kept`, on arrays of which only those positions are there.

    Returns the values of the program's outputs and of `watched`, by number. Calls with a custom derivative
    rule keep it, except those that compute a watched value inside.
    """
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    values = {**constants(program, kept), **dict(zip(program.inputs, arrays, strict=True))}
    watched = frozenset(watched)
    run(program, program.equations, values, kept, watched)
    return {v: values[v] for v in {*program.outputs, *watched}}


def constants(program: Program, kept: Kept | None) -> dict[int, Any]:
    """The program's constants, of the present shapes."""
    if kept is None:
        return dict(program.constants)
    resized = {}
    for value, array in program.constants.items():
        if kept.changed(value):
            for axis in range(np.ndim(array)):
                array = np.compress(kept.along(value, axis), array, axis)
        resized[value] = array
    return resized


def run(
    program: Program,
    equations: Sequence[Equation],
    values: dict[int, Any],
    kept: Kept | None,
    watched: frozenset[int] = frozenset(),
) -> None:
    """Compute the outputs of `equations` into `values`."""
    for equation in equations:
        if equation.body is not None and _computes(equation.body, watched.difference(equation.outs)):
            run(program, equation.body, values, kept, watched)
            continue
        arguments = [values[v] for v in equation.ins]
        with equation.source.ctx.manager:
            if kept is None or not any(map(kept.changed, (*equation.ins, *equation.outs))):
                results = equation.bind(arguments)
            elif equation.body is not None:
                from prune_rl.pruning.derivatives import resized_call

                results = resized_call(program, equation, values, kept)
            elif equation.blocks:
                results = _control(program, equation, values, arguments, kept)
            else:
                results = _resized(equation, arguments, kept)
        values.update(zip(equation.outs, results, strict=True))


def _computes(equations: Sequence[Equation], watched: frozenset[int]) -> bool:
    return any(not watched.isdisjoint(e.outs) or _computes(e.body or (), watched) for e in equations)


def _resized(equation: Equation, arguments: list[Any], kept: Kept) -> list[Any]:
    """One primitive on arrays of the present shapes."""
    name, params, ins = equation.name, dict(equation.params), equation.ins
    shape = kept.shape(equation.outs[0])
    shape_of = {"broadcast_in_dim": "shape", "iota": "shape", "reshape": "new_sizes"}
    if name in shape_of:
        params[shape_of[name]] = shape
    elif name == "slice":
        return [_sliced(equation, arguments[0], kept)]
    elif name == "split":
        params["sizes"] = tuple(kept.shape(v)[params["axis"]] for v in equation.outs)
    elif name in ("dynamic_slice", "gather"):
        axis = _picked(equation, kept)
        if axis is not None:
            return [_regathered(equation, arguments, axis, kept)]
        full, now = kept.positions.program.shape(ins[0]), kept.shape(ins[0])
        params["slice_sizes"] = tuple(
            new if size == old else size
            for size, old, new in zip(params["slice_sizes"], full, now, strict=True)
        )
    elif name == "conv_general_dilated" and params["feature_group_count"] > 1:
        params["feature_group_count"] = kept.shape(ins[0])[params["dimension_numbers"].lhs_spec[1]]
    return equation.bind(arguments, params)


def _sliced(equation: Equation, array: Any, kept: Kept) -> Any:
    params, (value,) = equation.params, equation.ins
    strides = params["strides"] or (1,) * np.ndim(array)
    for axis, (start, stop, step) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        array = _take(array, np.arange(start, stop, step), axis, kept.along(value, axis))
    return array


def _take(array: Any, indices: Indices, axis: int, keep: Flags) -> Any:
    """The kept ones of the positions `indices`, numbered as before removal, along an axis of a resized array."""
    now = (np.cumsum(keep) - 1)[indices[keep[indices]]]
    if len(now) == 0 or bool((np.diff(now) == 1).all()):
        start = int(now[0]) if len(now) else 0
        return jax.lax.slice_in_dim(array, start, start + len(now), axis=axis)
    return jnp.take(array, now, axis, mode="clip")


def _picked(equation: Equation, kept: Kept) -> int | None:
    """The axis that a gather takes constant positions of, if it is one that was resized."""
    if equation.name != "gather" or equation.ins[1] not in kept.positions.integers:
        return None
    (axis, *others) = equation.params["dimension_numbers"].start_index_map
    return None if others or kept.along(equation.ins[0], axis).all() else int(axis)


def _regathered(equation: Equation, arguments: list[Any], axis: int, kept: Kept) -> Any:
    indices = kept.positions.integers[equation.ins[1]][:, 0].astype(np.int64)
    taken = _take(arguments[0], indices, axis, kept.along(equation.ins[0], axis))
    offset = equation.params["dimension_numbers"].offset_dims
    (out,) = (o for o in range(np.ndim(taken)) if o not in offset)
    return jnp.moveaxis(taken, axis, out)


def _control(
    program: Program, equation: Equation, values: dict[int, Any], arguments: list[Any], kept: Kept
) -> list[Any]:
    """A loop or a branch on resized arrays."""

    def call(block: Block, *inner: Any) -> list[Any]:
        mine = {**constants(program, kept), **dict(zip(block.ins, inner, strict=True))}
        run(program, block.equations, mine, kept)
        # A loop must carry exactly what it was given, weak types included.
        return [jax.lax.convert_element_type(mine[v], program.avals[v].dtype) for v in block.outs]

    params = equation.params
    if equation.name == "cond":
        branches = [lambda *inner, block=block: call(block, *inner) for block in equation.blocks]
        return list(jax.lax.switch(arguments[0], branches, *arguments[1:]))
    if equation.name == "scan":
        (block,), consts, carry = equation.blocks, params["num_consts"], params["num_carry"]

        def step(carried: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            out = call(block, *arguments[:consts], *carried, *x)
            return out[:carry], out[carry:]

        carried, stacked = jax.lax.scan(
            step,
            arguments[consts : consts + carry],
            arguments[consts + carry :],
            params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carried, *stacked]
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body = equation.blocks
    return list(
        jax.lax.while_loop(
            lambda carried: call(condition, *arguments[:first], *carried)[0],
            lambda carried: call(body, *arguments[first:second], *carried),
            arguments[second:],
        )
    )
