"""Calls with a derivative rule or a rematerialisation policy of their own, on arrays smaller than the traced ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.reevaluation import Kept, constants, evaluate, run, settle
from prune_rl.pruning.tracing import Equation, Program, flatten_jaxpr, shape_struct


def resized_call(program: Program, equation: Equation, values: dict[int, Any], kept: Kept) -> list[Any]:
    """Run a kept call on resized arrays. Its derivative rule is traced at full size and resized in turn."""
    # Each value once: a repeated one would get a share of its gradient.
    ins = tuple(dict.fromkeys(equation.ins))

    def primal(*arguments: Any) -> list[Any]:
        inner = {**constants(program, kept), **dict(zip(ins, arguments, strict=True))}
        run(program, equation.body or (), inner, kept)
        return [inner[v] for v in equation.outs]

    arguments = [jnp.asarray(values[v]) for v in ins]
    if equation.name == "custom_jvp_call":
        return list(_with_jvp(program, equation, ins, primal, kept)(*arguments))
    if equation.name == "custom_vjp_call":
        return list(_with_vjp(program, equation, ins, primal, kept)(*arguments))
    policy, prevent_cse = equation.params.get("policy"), equation.params.get("prevent_cse", True)
    return list(jax.checkpoint(primal, policy=policy, prevent_cse=prevent_cse)(*arguments))


def _with_jvp(
    program: Program,
    equation: Equation,
    ins: tuple[int, ...],
    primal: Callable[..., list[Any]],
    kept: Kept,
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
        results = _resized_rule(program, full_rule, numbers, given, (*outs, *outs), kept)
        out: list[Any] = primal(*primals)
        out_tangents: list[Any] = [np.zeros(kept.shape(v), jax.dtypes.float0) for v in equation.outs]
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
    kept: Kept,
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
        made = _resized_rule(program, full_rule, numbers, given, tuple(ins[i] for i in real_ins), kept)
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
        out = equation.bind([values[v] for v in equation.ins])
        return [out[i] for i in real_outs]

    return call


def _resized_rule(
    program: Program,
    full_rule: Callable[..., list[Any]],
    numbers: tuple[int, ...],
    arguments: list[list[Any]],
    outs: tuple[int, ...],
    kept: Kept,
) -> list[Any]:
    """Run a derivative rule, traced at full size, on arrays shaped like the values `numbers`.

    Its results are shaped like the values `outs`.
    """
    structs = iter([shape_struct(program.avals[v], "value") for v in numbers])
    closed = jax.make_jaxpr(full_rule)(*[[next(structs) for _ in part] for part in arguments])
    rule = flatten_jaxpr(closed)

    def assign(inner: Kept) -> None:
        for mine, theirs in zip((*rule.inputs, *rule.outputs), (*numbers, *outs), strict=True):
            for axis in range(len(program.shape(theirs))):
                inner.set(mine, axis, kept.along(theirs, axis))

    inner = settle(rule, 0, assign)
    results = evaluate(rule, jax.tree_util.tree_leaves(arguments), inner)
    return [results[v] for v in rule.outputs]
