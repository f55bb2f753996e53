"""Run a traced program again: to see the values inside, or on arrays smaller than the traced ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.axes import Axes, link
from prune_rl.pruning.tracing import Equation, Program, flatten_jaxpr, shape_struct


class Lengths:
    """The present length of every axis of a program: the traced one unless its class was given another."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self._changed: dict[int, int] = {}

    def set(self, value: int, axis: int, length: int) -> None:
        if length != self.axes.program.shape(value)[axis]:
            self._changed[self.axes.of(value)[axis]] = length

    def shape(self, value: int) -> tuple[int, ...]:
        roots, traced = self.axes.of(value), self.axes.program.shape(value)
        return tuple(self._changed.get(root, n) for root, n in zip(roots, traced, strict=True))

    def changed(self, value: int) -> bool:
        return self.shape(value) != self.axes.program.shape(value)

    def check(self) -> None:
        """Raise ValueError where `find_groups` would have refused the axis."""
        for root in self._changed:
            if self.axes.reasons(root):
                raise ValueError(
                    f"this function cannot run on fewer neurons, because their axis "
                    f"{'; '.join(self.axes.reasons(root))}. Find the groups in this same function."
                )


def evaluate(
    program: Program, leaves: Sequence[Any], lengths: Lengths | None = None, watched: Iterable[int] = ()
) -> dict[int, Any]:
    """Run a program; with `lengths`, on arrays of those shapes instead of the traced ones.

    Returns the values of the program's outputs and of `watched`, by number. Calls with a custom derivative
    rule keep it, except those that compute a watched value inside.
    """
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    values = {**program.constants, **dict(zip(program.inputs, arrays, strict=True))}
    watched = frozenset(watched)
    _run(program, program.equations, values, lengths, watched)
    return {v: values[v] for v in {*program.outputs, *watched}}


def _run(
    program: Program,
    equations: Sequence[Equation],
    values: dict[int, Any],
    lengths: Lengths | None,
    watched: frozenset[int] = frozenset(),
) -> None:
    for equation in equations:
        if equation.body is not None and _computes(equation.body, watched.difference(equation.outs)):
            _run(program, equation.body, values, lengths, watched)
            continue
        arguments = [values[v] for v in equation.ins]
        with equation.source.ctx.manager:
            if lengths is None or not any(map(lengths.changed, (*equation.ins, *equation.outs))):
                results = _bind(equation, arguments, equation.params)
            elif equation.body is not None:
                results = _resized_call(program, equation, values, lengths)
            else:
                results = _bind(equation, arguments, _resized_params(equation, lengths))
        values.update(zip(equation.outs, results, strict=True))


def _computes(equations: Sequence[Equation], watched: frozenset[int]) -> bool:
    return any(not watched.isdisjoint(e.outs) or _computes(e.body or (), watched) for e in equations)


def _bind(equation: Equation, arguments: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    primitive = equation.source.primitive
    bound = primitive.get_bind_params(params)
    # Some versions of jax give (functions, params), others params alone.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *arguments, **bound)
    return list(results) if primitive.multiple_results else [results]


def _resized_params(equation: Equation, lengths: Lengths) -> dict[str, Any]:
    """The parameters that name an output shape, with the present one."""
    shape_of = {"broadcast_in_dim": "shape", "reshape": "new_sizes"}
    params = dict(equation.params)
    if equation.name in shape_of:
        params[shape_of[equation.name]] = lengths.shape(equation.outs[0])
    return params


# --- calls with a derivative rule or a rematerialisation policy of their own ---


def _resized_call(
    program: Program, equation: Equation, values: dict[int, Any], lengths: Lengths
) -> list[Any]:
    """Run a kept call on resized arrays. Its derivative rule is traced at full size and resized in turn."""
    # Each value once: a repeated one would get a share of its gradient.
    ins = tuple(dict.fromkeys(equation.ins))

    def primal(*arguments: Any) -> list[Any]:
        inner = {**program.constants, **dict(zip(ins, arguments, strict=True))}
        _run(program, equation.body or (), inner, lengths)
        return [inner[v] for v in equation.outs]

    arguments = [jnp.asarray(values[v]) for v in ins]
    if equation.name == "custom_jvp_call":
        return list(_with_jvp(program, equation, ins, primal, lengths)(*arguments))
    if equation.name == "custom_vjp_call":
        return list(_with_vjp(program, equation, ins, primal, lengths)(*arguments))
    policy, prevent_cse = equation.params.get("policy"), equation.params.get("prevent_cse", True)
    return list(jax.checkpoint(primal, policy=policy, prevent_cse=prevent_cse)(*arguments))


def _with_jvp(
    program: Program,
    equation: Equation,
    ins: tuple[int, ...],
    primal: Callable[..., list[Any]],
    lengths: Lengths,
) -> Callable[..., Any]:
    real_ins, real_outs = _real(program, ins), _real(program, equation.outs)
    full = _differentiable(equation, ins, real_ins, real_outs)

    def full_rule(primals: list[Any], tangents: list[Any]) -> list[Any]:
        moving = [primals[i] for i in real_ins]
        out, out_tangents = jax.jvp(lambda *xs: full(primals, xs), tuple(moving), tuple(tangents))
        return [*out, *out_tangents]

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        numbers = (*ins, *(ins[i] for i in real_ins))
        outs = tuple(equation.outs[i] for i in real_outs)
        given = [list(primals), [tangents[i] for i in real_ins]]
        results = _resized_rule(program, full_rule, numbers, given, (*outs, *outs), lengths)
        out: list[Any] = primal(*primals)
        out_tangents: list[Any] = [np.zeros(lengths.shape(v), jax.dtypes.float0) for v in equation.outs]
        for k, i in enumerate(real_outs):
            out[i], out_tangents[i] = results[k], results[len(outs) + k]
        return out, out_tangents

    function = jax.custom_jvp(primal)
    function.defjvp(rule)
    return function


def _with_vjp(
    program: Program,
    equation: Equation,
    ins: tuple[int, ...],
    primal: Callable[..., list[Any]],
    lengths: Lengths,
) -> Callable[..., Any]:
    real_ins, real_outs = _real(program, ins), _real(program, equation.outs)
    full = _differentiable(equation, ins, real_ins, real_outs)

    def full_rule(primals: list[Any], cotangents: list[Any]) -> list[Any]:
        _, pull = jax.vjp(lambda *xs: full(primals, xs), *(primals[i] for i in real_ins))
        return list(pull(cotangents))

    def forward(*primals: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return primal(*primals), primals

    def backward(primals: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
        numbers = (*ins, *(equation.outs[i] for i in real_outs))
        given = [list(primals), [cotangents[i] for i in real_outs]]
        made = _resized_rule(program, full_rule, numbers, given, tuple(ins[i] for i in real_ins), lengths)
        by_position = dict(zip(real_ins, made, strict=True))
        return tuple(by_position.get(i) for i in range(len(ins)))

    function = jax.custom_vjp(primal)
    function.defvjp(forward, backward)
    return function


def _real(program: Program, values: Sequence[int]) -> list[int]:
    """Positions of the values that have derivatives."""
    return [i for i, v in enumerate(values) if jnp.issubdtype(program.avals[v].dtype, jnp.inexact)]


def _differentiable(
    equation: Equation, ins: tuple[int, ...], real_ins: list[int], real_outs: list[int]
) -> Callable[[list[Any], Sequence[Any]], list[Any]]:
    """The call, at full size and with its own rule, as a function of its real-valued arguments."""

    def call(primals: list[Any], moving: Sequence[Any]) -> list[Any]:
        values = dict(zip(ins, primals, strict=True)) | {
            ins[i]: x for i, x in zip(real_ins, moving, strict=True)
        }
        out = _bind(equation, [values[v] for v in equation.ins], equation.params)
        return [out[i] for i in real_outs]

    return call


def _resized_rule(
    program: Program,
    full_rule: Callable[..., list[Any]],
    numbers: tuple[int, ...],
    arguments: list[list[Any]],
    outs: tuple[int, ...],
    lengths: Lengths,
) -> list[Any]:
    """Run a derivative rule, traced at full size, on arrays shaped like the values `numbers`.

    Its results are shaped like the values `outs`.
    """
    structs = iter([shape_struct(program.avals[v], "value") for v in numbers])
    closed = jax.make_jaxpr(full_rule)(*[[next(structs) for _ in part] for part in arguments])
    rule = flatten_jaxpr(closed)
    inner = Lengths(link(rule))
    for mine, theirs in zip((*rule.inputs, *rule.outputs), (*numbers, *outs), strict=True):
        for axis, length in enumerate(lengths.shape(theirs)):
            inner.set(mine, axis, length)
    inner.check()
    results = evaluate(rule, jax.tree_util.tree_leaves(arguments), inner)
    return [results[v] for v in rule.outputs]
