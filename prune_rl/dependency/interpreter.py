"""The interpreter of programs that every analysis shares: the order of evaluation, calls, loops and branches.

A loop or branch is described once, by `CONTROL_FLOW`: which blocks it runs, what their inputs and outputs are outside,
and how to bind it again with other blocks. A new primitive of control flow is one more entry there.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from prune_rl.dependency.jaxpr import Block, Equation

# How an input of a block gets its value: as it is, at the first step only, or one slice along axis 0 per step.
Entry = Literal["constant", "carried", "slice"]
# Runs a block on arrays.
RunBlock = Callable[[Block, Sequence[Any]], list[Any]]


class Interpreter(abc.ABC):
    """Goes through equations in their order of evaluation."""

    def interpret(self, equations: Sequence[Equation]) -> None:
        """Apply the rule of each equation in turn."""
        for equation in equations:
            if equation.body is not None:
                self.call(equation)
            elif equation.blocks:
                self.control_flow(equation)
            else:
                self.primitive(equation)

    @abc.abstractmethod
    def primitive(self, equation: Equation) -> None:
        """Derive the outputs of one primitive from its inputs."""

    @abc.abstractmethod
    def control_flow(self, equation: Equation) -> None:
        """Derive the outputs of a loop or a branch."""

    def call(self, equation: Equation) -> None:
        """Derive the outputs of a call, whose body computes the same numbered values."""
        assert equation.body is not None
        self.interpret(equation.body)


class Analysis(Interpreter):
    """Abstract interpretation: a state of every value, which is an element of a lattice.

    A subclass keeps the states by value number; `primitive` is its transfer function. A branch's outputs are the
    join over its blocks, a loop is a fixpoint iteration over what it carries.
    """

    @abc.abstractmethod
    def enter(self, equation: Equation, inner: int, outer: int, entry: Entry) -> None:
        """Set the state of a block's input from that of the value outside."""

    @abc.abstractmethod
    def join(self, new: int, old: int) -> bool:
        """Set the state of `old` to the join of both; whether it has changed, so that a loop must be repeated."""

    @abc.abstractmethod
    def leave(self, equation: Equation, inner: int, outer: int, stacked: bool = False) -> None:
        """Set the state of a control-flow output from a value inside, stacked over the steps on a new axis 0."""

    def control_flow(self, equation: Equation) -> None:
        rule = CONTROL_FLOW[equation.name]
        regions = rule.regions(equation)
        if rule.loop:
            self._loop(equation, regions)
        else:
            self._branch(equation, regions)

    def _branch(self, equation: Equation, regions: Sequence[Region]) -> None:
        for k, region in enumerate(regions):
            self._enter(equation, region)
            self.interpret(region.block.equations)
            for inner, outer in zip(region.block.outs, equation.outs, strict=True):
                if k == 0:
                    self.leave(equation, inner, outer)
                else:
                    self.join(inner, outer)

    def _loop(self, equation: Equation, regions: Sequence[Region]) -> None:
        for region in regions:
            self._enter(equation, region)
        # The body comes last. The condition of a while loop has the same carry, so it is joined as well.
        outs = regions[-1].block.outs
        changed = True
        while changed:
            for region in regions:
                self.interpret(region.block.equations)
            changed = False
            for region in regions:
                for new, old in zip(outs, region.carried, strict=False):
                    changed |= self.join(new, old)
        carried = regions[-1].carried
        for inner, outer in zip(carried, equation.outs, strict=False):
            self.leave(equation, inner, outer)
        for inner, outer in zip(outs[len(carried) :], equation.outs[len(carried) :], strict=True):
            self.leave(equation, inner, outer, stacked=True)

    def _enter(self, equation: Equation, region: Region) -> None:
        for inner, outer, entry in region.entries():
            self.enter(equation, inner, outer, entry)


# --- loops and branches ---


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A block as part of its loop or branch.

    operands: the value outside for each input of the block. The first `constants` of the inputs stay as they are,
    the next `carry` are carried from step to step, the others are slices of their operand.
    """

    block: Block
    operands: tuple[int, ...]
    constants: int
    carry: int = 0

    @property
    def carried(self) -> tuple[int, ...]:
        """The inputs of the block that are carried."""
        return self.block.ins[self.constants : self.constants + self.carry]

    def entries(self) -> Iterator[tuple[int, int, Entry]]:
        """(input of the block, value outside, how it enters)."""
        for k, (inner, outer) in enumerate(zip(self.block.ins, self.operands, strict=True)):
            stepped = k >= self.constants + self.carry
            yield inner, outer, "constant" if k < self.constants else "slice" if stepped else "carried"


@dataclasses.dataclass(frozen=True, eq=False)
class ControlFlow:
    """The rule of one primitive of control flow.

    regions: the blocks of an equation in their order of evaluation. loop: whether they are repeated, rather than
    alternatives. The body of a loop comes last; its outputs are what it carries and, stacked, the rest. bind: the
    outputs for some arguments, computed by a function that runs a block on arrays.
    """

    regions: Callable[[Equation], tuple[Region, ...]]
    loop: bool
    bind: Callable[[Equation, Sequence[Any], RunBlock], list[Any]]


def _cond_regions(equation: Equation) -> tuple[Region, ...]:
    operands = equation.ins[1:]
    return tuple(Region(block, operands, len(operands)) for block in equation.blocks)


def _bind_cond(equation: Equation, arguments: Sequence[Any], run: RunBlock) -> list[Any]:
    branches = [lambda *inner, block=block: run(block, inner) for block in equation.blocks]
    return list(jax.lax.switch(arguments[0], branches, *arguments[1:]))


def _scan_regions(equation: Equation) -> tuple[Region, ...]:
    params = equation.params
    (block,) = equation.blocks
    return (Region(block, equation.ins, params["num_consts"], params["num_carry"]),)


def _bind_scan(equation: Equation, arguments: Sequence[Any], run: RunBlock) -> list[Any]:
    params, (block,) = equation.params, equation.blocks
    constants, carry = params["num_consts"], params["num_carry"]

    def step(carried: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        out = run(block, [*arguments[:constants], *carried, *x])
        return out[:carry], out[carry:]

    carried, stacked = jax.lax.scan(
        step,
        list(arguments[constants : constants + carry]),
        list(arguments[constants + carry :]),
        params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carried, *stacked]


def _while_regions(equation: Equation) -> tuple[Region, ...]:
    ins, (body, condition) = equation.ins, equation.blocks
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    carry = len(ins) - second
    return (
        Region(condition, (*ins[:first], *ins[second:]), first, carry),
        Region(body, ins[first:], second - first, carry),
    )


def _bind_while(equation: Equation, arguments: Sequence[Any], run: RunBlock) -> list[Any]:
    body, condition = equation.blocks
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    return list(
        jax.lax.while_loop(
            lambda carried: run(condition, [*arguments[:first], *carried])[0],
            lambda carried: run(body, [*arguments[first:second], *carried]),
            list(arguments[second:]),
        )
    )


def _shard_map_regions(equation: Equation) -> tuple[Region, ...]:
    """What each device runs, on its part of the operands: axes that are split are shorter there."""
    (block,) = equation.blocks
    return (Region(block, equation.ins, len(equation.ins)),)


def _bind_shard_map(equation: Equation, arguments: Sequence[Any], run: RunBlock) -> list[Any]:
    params, (block,) = equation.params, equation.blocks
    shard_map: Callable[..., Any] = jax.shard_map
    mapped = shard_map(
        lambda *shards: tuple(run(block, shards)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return list(mapped(*arguments))


CONTROL_FLOW: Mapping[str, ControlFlow] = {
    "cond": ControlFlow(_cond_regions, loop=False, bind=_bind_cond),
    "scan": ControlFlow(_scan_regions, loop=True, bind=_bind_scan),
    "while": ControlFlow(_while_regions, loop=True, bind=_bind_while),
    "shard_map": ControlFlow(_shard_map_regions, loop=False, bind=_bind_shard_map),
}
