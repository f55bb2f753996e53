"""Run a traced program again: to see the values inside, or on arrays smaller than the traced ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.index_maps import Indices
from prune_rl.dependency.jaxpr import Block, Equation, Program, flatten_jaxpr, shape_struct
from prune_rl.dependency.resizing import Kept, settle
from prune_rl.dependency.union_find import Flags


def evaluate(
    program: Program, leaves: Sequence[Any], kept: Kept | None = None, watched: Iterable[int] = ()
) -> dict[int, Any]:
    """Run a program; with `kept`, on arrays of which only those positions are there.

    Returns the values of the program's outputs and of `watched`, by number. Calls with a custom derivative
    rule keep it, except those that compute a watched value inside.
    """
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    values = {**_constants(program, kept), **dict(zip(program.inputs, arrays, strict=True))}
    watched = frozenset(watched)
    _run(program, program.equations, values, kept, watched)
    return {v: values[v] for v in {*program.outputs, *watched}}


def _constants(program: Program, kept: Kept | None) -> dict[int, Any]:
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


def _scope(
    program: Program, values: Mapping[int, Any], ins: Sequence[int], arguments: Sequence[Any]
) -> dict[int, Any]:
    """What a call, a loop or a branch sees: its arguments and the constants, which `values` holds."""
    return {**{v: values[v] for v in program.constants}, **dict(zip(ins, arguments, strict=True))}


def _run(
    program: Program,
    equations: Sequence[Equation],
    values: dict[int, Any],
    kept: Kept | None,
    watched: frozenset[int] = frozenset(),
) -> None:
    """Compute the outputs of `equations` into `values`."""
    for equation in equations:
        if equation.body is not None and _computes(equation.body, watched.difference(equation.outs)):
            _run(program, equation.body, values, kept, watched)
            continue
        arguments = [values[v] for v in equation.ins]
        with equation.source.ctx.manager:
            if kept is None or not any(map(kept.changed, (*equation.ins, *equation.outs))):
                results = equation.bind(arguments)
            elif equation.body is not None:
                results = _resized_call(program, equation, values, kept)
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
        mine = _scope(program, values, block.ins, inner)
        _run(program, block.equations, mine, kept)
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


# --- calls with a derivative rule or a rematerialisation policy of their own ---


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A kept call. Its derivative rule is traced at full size and resized in turn."""

    program: Program
    equation: Equation
    kept: Kept

    @property
    def ins(self) -> tuple[int, ...]:
        """Its arguments, each value once: a repeated one would get a share of its gradient."""
        return tuple(dict.fromkeys(self.equation.ins))

    @property
    def real_ins(self) -> list[int]:
        """Positions, among `ins`, of those that have derivatives."""
        return self._real(self.ins)

    @property
    def real_outs(self) -> list[int]:
        """Positions of the results that have derivatives."""
        return self._real(self.equation.outs)

    def _real(self, values: Sequence[int]) -> list[int]:
        avals = self.program.avals
        return [i for i, v in enumerate(values) if jnp.issubdtype(avals[v].dtype, jnp.inexact)]

    def full(self, primals: list[Any], moving: Sequence[Any]) -> list[Any]:
        """At full size and with its own rule, as a function of the real-valued arguments `moving`."""
        values = dict(zip(self.ins, primals, strict=True))
        values |= {self.ins[i]: x for i, x in zip(self.real_ins, moving, strict=True)}
        out = self.equation.bind([values[v] for v in self.equation.ins])
        return [out[i] for i in self.real_outs]


def _resized_call(program: Program, equation: Equation, values: dict[int, Any], kept: Kept) -> list[Any]:
    """Run a kept call on resized arrays."""
    call = _Call(program, equation, kept)

    def primal(*arguments: Any) -> list[Any]:
        inner = _scope(program, values, call.ins, arguments)
        _run(program, equation.body or (), inner, kept)
        return [inner[v] for v in equation.outs]

    arguments = [jnp.asarray(values[v]) for v in call.ins]
    if equation.name == "custom_jvp_call":
        return list(_with_jvp(call, primal)(*arguments))
    if equation.name == "custom_vjp_call":
        return list(_with_vjp(call, primal)(*arguments))
    policy, prevent_cse = equation.params.get("policy"), equation.params.get("prevent_cse", True)
    return list(jax.checkpoint(primal, policy=policy, prevent_cse=prevent_cse)(*arguments))


def _with_jvp(call: _Call, primal: Callable[..., list[Any]]) -> Callable[..., Any]:
    def full_rule(primals: list[Any], tangents: list[Any]) -> list[Any]:
        moving = [primals[i] for i in call.real_ins]
        out, out_tangents = jax.jvp(lambda *xs: call.full(primals, xs), tuple(moving), tuple(tangents))
        return [*out, *out_tangents]

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        numbers = (*call.ins, *(call.ins[i] for i in call.real_ins))
        outs = tuple(call.equation.outs[i] for i in call.real_outs)
        given = [list(primals), [tangents[i] for i in call.real_ins]]
        results = _resized_rule(call, full_rule, numbers, given, (*outs, *outs))
        out: list[Any] = primal(*primals)
        out_tangents: list[Any] = [
            np.zeros(call.kept.shape(v), jax.dtypes.float0) for v in call.equation.outs
        ]
        for k, i in enumerate(call.real_outs):
            out[i], out_tangents[i] = results[k], results[len(outs) + k]
        return out, out_tangents

    function = jax.custom_jvp(primal)
    function.defjvp(rule)
    return function


def _with_vjp(call: _Call, primal: Callable[..., list[Any]]) -> Callable[..., Any]:
    def full_rule(primals: list[Any], cotangents: list[Any]) -> list[Any]:
        _, pull = jax.vjp(lambda *xs: call.full(primals, xs), *(primals[i] for i in call.real_ins))
        return list(pull(cotangents))

    def forward(*primals: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return primal(*primals), primals

    def backward(primals: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
        numbers = (*call.ins, *(call.equation.outs[i] for i in call.real_outs))
        given = [list(primals), [cotangents[i] for i in call.real_outs]]
        outs = tuple(call.ins[i] for i in call.real_ins)
        made = _resized_rule(call, full_rule, numbers, given, outs)
        by_position = dict(zip(call.real_ins, made, strict=True))
        return tuple(by_position.get(i) for i in range(len(call.ins)))

    function = jax.custom_vjp(primal)
    function.defvjp(forward, backward)
    return function


def _resized_rule(
    call: _Call,
    full_rule: Callable[..., list[Any]],
    numbers: tuple[int, ...],
    arguments: list[list[Any]],
    outs: tuple[int, ...],
) -> list[Any]:
    """Run a derivative rule, traced at full size, on arrays shaped like the values `numbers`.

    Its results are shaped like the values `outs`.
    """
    structs = iter([shape_struct(call.program.avals[v], "value") for v in numbers])
    closed = jax.make_jaxpr(full_rule)(*[[next(structs) for _ in part] for part in arguments])
    rule = flatten_jaxpr(closed)

    def assign(inner: Kept) -> None:
        for mine, theirs in zip((*rule.inputs, *rule.outputs), (*numbers, *outs), strict=True):
            for axis in range(len(call.program.shape(theirs))):
                inner.set(mine, axis, call.kept.along(theirs, axis))

    inner = settle(rule, 0, assign)
    results = evaluate(rule, jax.tree_util.tree_leaves(arguments), inner)
    return [results[v] for v in rule.outputs]
