"""Run a traced program again: to see the values inside, or on arrays that some neurons were removed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.interpreter import CONTROL_FLOW, Interpreter
from prune_rl.dependency.jaxpr import Block, Equation, Program, flatten_jaxpr
from prune_rl.dependency.resized_rules import Kept, ResizedRule, bind_resized
from prune_rl.dependency.resizing import KeptPositions, resize
from prune_rl.dependency.tree_paths import shape_struct


def evaluate(
    program: Program, leaves: Sequence[Any], kept: KeptPositions | None = None, watched: Iterable[int] = ()
) -> dict[int, Any]:
    """Run a program; with `kept`, on arrays that hold only those positions.

    Returns the values of the program's outputs and of `watched`, by number. Calls with a custom derivative
    rule keep it, except those that compute a watched value inside.
    """
    constants = {
        value: array if kept is None or not kept.changed(value) else kept.compress(value, array)
        for value, array in program.constants.items()
    }
    inputs = zip(program.inputs, map(jnp.asarray, leaves), strict=True)
    evaluation = _Evaluation(program, kept, {**constants, **dict(inputs)}, frozenset(watched))
    evaluation.interpret(program.equations)
    return {v: evaluation.values[v] for v in {*program.outputs, *watched}}


class _Evaluation(Interpreter):
    """Concrete evaluation: `values` holds an array for each value number that was computed."""

    def __init__(
        self,
        program: Program,
        kept: KeptPositions | None,
        values: dict[int, Any],
        watched: frozenset[int] = frozenset(),
    ) -> None:
        self.program, self.kept, self.values, self.watched = program, kept, values, watched

    def run(
        self, equations: Sequence[Equation], ins: Sequence[int], arguments: Sequence[Any], outs: Sequence[int]
    ) -> list[Any]:
        """The values `outs` of equations that see only the program's constants and their arguments."""
        constants = {v: self.values[v] for v in self.program.constants}
        values = {**constants, **dict(zip(ins, arguments, strict=True))}
        inner = _Evaluation(self.program, self.kept, values)
        inner.interpret(equations)
        return [inner.values[v] for v in outs]

    def _bind(self, equation: Equation, resized: ResizedRule) -> None:
        arguments = [self.values[v] for v in equation.ins]
        with equation.source.ctx.manager:
            if self.kept is None or not any(map(self.kept.changed, (*equation.ins, *equation.outs))):
                results = equation.bind(arguments)
            else:
                results = resized(equation, arguments, self.kept)
        self.values.update(zip(equation.outs, results, strict=True))

    def primitive(self, equation: Equation) -> None:
        self._bind(equation, bind_resized)

    def control_flow(self, equation: Equation) -> None:
        def run(block: Block, arguments: Sequence[Any]) -> list[Any]:
            results = self.run(block.equations, block.ins, arguments, block.outs)
            # A loop must carry exactly what it was given, weak types included.
            dtypes = [self.program.avals[v].dtype for v in block.outs]
            return [jax.lax.convert_element_type(x, dtype) for x, dtype in zip(results, dtypes, strict=True)]

        self._bind(equation, lambda e, arguments, _: CONTROL_FLOW[e.name].bind(e, arguments, run))

    def call(self, equation: Equation) -> None:
        if _computes(equation.body or (), self.watched.difference(equation.outs)):
            super().call(equation)
        else:
            self._bind(equation, lambda e, _, kept: _resized_call(self, e, kept))


def _computes(equations: Sequence[Equation], watched: frozenset[int]) -> bool:
    return any(not watched.isdisjoint(e.outs) or _computes(e.body or (), watched) for e in equations)


# --- calls with a derivative rule or a rematerialisation policy of their own ---


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call that is not inlined. Its derivative rule is traced at full size and resized in turn."""

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

    def full(self, primals: list[Any], differentiated: Sequence[Any]) -> list[Any]:
        """At full size and with its own rule, as a function of the real-valued arguments."""
        values = dict(zip(self.ins, primals, strict=True))
        values |= {self.ins[i]: x for i, x in zip(self.real_ins, differentiated, strict=True)}
        out = self.equation.bind([values[v] for v in self.equation.ins])
        return [out[i] for i in self.real_outs]


def _resized_call(evaluation: _Evaluation, equation: Equation, kept: Kept) -> list[Any]:
    """Run a call on resized arrays, with the derivative rule or the rematerialisation policy that it has."""
    call = _Call(evaluation.program, equation, kept)

    def primal(*arguments: Any) -> list[Any]:
        return evaluation.run(equation.body or (), call.ins, arguments, equation.outs)

    arguments = [jnp.asarray(evaluation.values[v]) for v in call.ins]
    if equation.name == "custom_jvp_call":
        return list(_with_jvp(call, primal)(*arguments))
    if equation.name == "custom_vjp_call":
        return list(_with_vjp(call, primal)(*arguments))
    policy, prevent_cse = equation.params.get("policy"), equation.params.get("prevent_cse", True)
    return list(jax.checkpoint(primal, policy=policy, prevent_cse=prevent_cse)(*arguments))


def _with_jvp(call: _Call, primal: Callable[..., list[Any]]) -> Callable[..., Any]:
    def full_rule(primals: list[Any], tangents: list[Any]) -> list[Any]:
        real = tuple(primals[i] for i in call.real_ins)
        out, out_tangents = jax.jvp(lambda *xs: call.full(primals, xs), real, tuple(tangents))
        return [*out, *out_tangents]

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        like = (*call.ins, *(call.ins[i] for i in call.real_ins))
        outs = tuple(call.equation.outs[i] for i in call.real_outs)
        given = [list(primals), [tangents[i] for i in call.real_ins]]
        results = _resized_rule(call, full_rule, like, given, (*outs, *outs))
        out: list[Any] = primal(*primals)
        shapes = map(call.kept.shape, call.equation.outs)
        out_tangents: list[Any] = [np.zeros(shape, jax.dtypes.float0) for shape in shapes]
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
        like = (*call.ins, *(call.equation.outs[i] for i in call.real_outs))
        given = [list(primals), [cotangents[i] for i in call.real_outs]]
        outs = tuple(call.ins[i] for i in call.real_ins)
        made = _resized_rule(call, full_rule, like, given, outs)
        by_position = dict(zip(call.real_ins, made, strict=True))
        return tuple(by_position.get(i) for i in range(len(call.ins)))

    function = jax.custom_vjp(primal)
    function.defvjp(forward, backward)
    return function


def _resized_rule(
    call: _Call,
    full_rule: Callable[..., list[Any]],
    like: tuple[int, ...],
    arguments: list[list[Any]],
    outs: tuple[int, ...],
) -> list[Any]:
    """Run a derivative rule, traced at full size, on arrays shaped like the values `like`.

    Its results are shaped like the values `outs`.
    """
    structs = iter([shape_struct(call.program.avals[v], "value") for v in like])
    closed = jax.make_jaxpr(full_rule)(*[[next(structs) for _ in part] for part in arguments])
    rule = flatten_jaxpr(closed)

    def assign(inner: KeptPositions) -> None:
        for mine, theirs in zip((*rule.inputs, *rule.outputs), (*like, *outs), strict=True):
            for axis in range(len(call.program.shape(theirs))):
                inner.assign(mine, axis, call.kept.along(theirs, axis))

    inner = resize(rule, 0, assign)
    results = evaluate(rule, jax.tree_util.tree_leaves(arguments), inner)
    return [results[v] for v in rule.outputs]
