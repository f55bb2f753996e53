"""Is zeroing the slices of a neuron exactly the same as removing it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.constant_folding import UNKNOWN, Codes, Numbers, map_codes, put_together
from prune_rl.dependency.index_maps import Indices, Links
from prune_rl.dependency.jaxpr import Equation
from prune_rl.dependency.propagation import Positions
from prune_rl.dependency.rules import CUMULATIVE, ELEMENTWISE, MOVES, REDUCTIONS, WINDOWS

# What a reduction may meet at a removed neuron without noticing.
NEUTRAL = {
    "reduce_sum": 0.0,
    "reduce_prod": 1.0,
    "reduce_max": -np.inf,
    "reduce_min": np.inf,
    "reduce_and": True,
    "reduce_or": False,
}
MEAN = (
    "goes through 'reduce_sum', whose result meets a constant in {name!r}, as in a mean, which would change with the "
    "number of neurons: normalise with prune_rl.layer_norm, which counts those that are left"
)


def check_removable(positions: Positions, candidates: Indices) -> None:
    """Block every candidate class of positions whose removal would not be exact.

    Follows what each value holds at a removed neuron: parameter leaves hold 0 there, elementwise primitives
    map known numbers to known numbers, anything else is an unknown, finite number. A contraction over the
    axis is exact when one side is a parameter and the product at a removed neuron is 0, a reduction when what
    it meets there is its neutral element, and the result is not divided by a constant, which may be a count.
    """
    _Removed(positions, candidates).run()


class _Removed:
    """The number that each value holds at a removed neuron.

    codes[v][i]: by position along axis i, as codes of `numbers`; everywhere[v]: for a value that is one known
    number throughout; sums[v]: the classes whose sum over the neurons it is. Absent: not known.
    """

    def __init__(self, positions: Positions, candidates: Indices) -> None:
        self.positions = positions
        self.candidates = candidates
        self.numbers = Numbers()
        self.everywhere: dict[int, int] = {}
        self.codes: dict[int, dict[int, Codes]] = {}
        self.sums: dict[int, Indices] = {}
        self.emit = True
        for value, number in positions.uniform.items():
            self.everywhere[value] = self.numbers.code(number)
        for value in positions.program.inputs:
            real = not jnp.issubdtype(positions.program.avals[value].dtype, jax.dtypes.extended)
            if real and positions.sources[value] is not None:
                zero = self.numbers.code(np.zeros((), positions.program.avals[value].dtype))
                for axis in range(len(positions.program.shape(value))):
                    mine = self.removable(value, axis)
                    if mine.any():
                        self.codes.setdefault(value, {})[axis] = np.where(mine, zero, UNKNOWN)

    def run(self) -> None:
        self._walk(self.positions.program.equations)

    # --- numbers and their codes ---

    def removable(self, value: int, axis: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which positions along an axis are candidates."""
        return np.isin(self.positions.of(value, axis), self.candidates)

    def at(self, value: int, axis: int) -> Codes | int:
        """Codes along an axis; a single one where all are the same."""
        everywhere = self.everywhere.get(value, UNKNOWN)
        return everywhere if everywhere else self.codes.get(value, {}).get(axis, UNKNOWN)

    def _set(self, value: int, axis: int, codes: Codes | int) -> None:
        if np.any(codes):
            n = self.positions.program.shape(value)[axis]
            self.codes.setdefault(value, {})[axis] = np.broadcast_to(codes, (n,))

    def _clear(self, values: Sequence[int]) -> None:
        for value in values:
            for table in (self.everywhere, self.codes, self.sums):
                table.pop(value, None)

    # --- the walk ---

    def _walk(self, equations: Sequence[Equation]) -> None:
        for equation in equations:
            if equation.body is not None:
                self._walk(equation.body)
            elif equation.blocks:
                self._control(equation)
            else:
                self._clear(equation.outs)
                links = self.positions.links[id(equation)]
                self._check(equation, links)
                if not links.opaque:
                    self._step(equation, links)

    def _block(self, value: int, axis: int, where: Any, reason: str) -> None:
        """Block the candidates among the positions `where` along an axis."""
        mine = self.removable(value, axis) & where
        if self.emit and mine.any():
            self.positions.block(self.positions.labels[value][axis][mine], reason)

    def _check(self, equation: Equation, links: Links) -> None:
        ins = equation.ins
        for (_, a), (_, b) in links.contracted:
            self._check_contraction(equation, a, b)
        for k, axis in links.summed:
            codes, neutral = self.at(ins[k], axis), NEUTRAL[equation.name]
            exact = map_codes([codes], lambda row, neutral=neutral: self.numbers.equals(row[0], neutral))  # type: ignore[misc]
            self._block(ins[k], axis, np.logical_not(exact), f"goes through {equation.name!r}")
        scaled = equation.name in ("mul", "div") and any(v in self.everywhere for v in ins)
        for value in ins if scaled and self.emit else ():
            if value in self.sums:
                self.positions.block(self.sums[value], MEAN.format(name=equation.name))

    def _check_contraction(self, equation: Equation, a: int, b: int) -> None:
        left, right = equation.ins[:2]
        if not self.removable(left, a).any():
            return
        parameters = [
            s is not None and any(s) for s in map(self.positions.sources.__getitem__, (left, right))
        ]
        if all(parameters):
            self._block(left, a, True, "is contracted between two parameters")
        elif not any(parameters):
            reason = f"is contracted by {equation.name!r} with a value that is not a parameter"
            self._block(left, a, True, reason)
        else:
            reasons = [""]

            def reason_of(row: tuple[int, ...]) -> int:
                reasons.append(self.numbers.obstacle(row))
                return len(reasons) - 1

            which = map_codes([self.at(left, a), self.at(right, b)], reason_of)
            for k, reason in enumerate(reasons):
                if reason:
                    self._block(left, a, np.equal(which, k), reason)

    def _step(self, equation: Equation, links: Links) -> None:
        """Derive what the outputs of one equation hold."""
        ins = equation.ins
        for k, value in enumerate(equation.outs):
            function = self._function(equation, k, moved=False)
            if function is not None:
                everywhere = function(tuple(self.everywhere.get(v, UNKNOWN) for v in ins))
                if everywhere:
                    self.everywhere[value] = everywhere
            for axis in range(len(links.outs[k])):
                if self.removable(value, axis).any():
                    self._set(value, axis, self._along(equation, links, k, axis))
        if equation.name == "reduce_sum":
            over = [self.positions.of(ins[k], i) for k, i in links.summed]
            classes = [roots[np.isin(roots, self.candidates)] for roots in over]
            self._mark_sum(equation.outs[0], classes)
        elif equation.name in MOVES | {
            "convert_element_type",
            "copy",
            "neg",
            "sqrt",
            "square",
            "integer_pow",
        }:
            for value in equation.outs:
                self._mark_sum(value, [self.sums[v] for v in ins if v in self.sums])

    def _mark_sum(self, value: int, classes: list[Indices]) -> None:
        if any(map(len, classes)):
            self.sums[value] = np.concatenate(classes)

    def _along(self, equation: Equation, links: Links, k: int, axis: int) -> Codes | int:
        """Codes of output k along one of its axes."""
        name, ins, ties = equation.name, equation.ins, links.outs[k][axis]
        n = self.positions.program.shape(equation.outs[k])[axis]
        if name in ("dot_general", "conv_general_dilated"):
            codes = []
            for tie in ties:
                along = self.at(ins[tie.operand], tie.axis)
                codes.append(along if tie.source is None or isinstance(along, int) else along[tie.source])
            zero = self.numbers.code(np.zeros((), self.positions.program.avals[equation.outs[k]].dtype))
            return map_codes(codes, lambda row: self.numbers.product(row, zero)) if codes else UNKNOWN
        function = self._function(equation, k, moved=True)
        if function is None:
            return UNKNOWN
        whole = [tie for tie in ties if tie.source is None and tie.target is None]
        if len(whole) == len(ties):
            mine = {tie.operand: self.at(ins[tie.operand], tie.axis) for tie in ties}
            codes = [mine.get(j, self.everywhere.get(v, UNKNOWN)) for j, v in enumerate(ins)]
            if name in MOVES:
                codes = [mine[j] for j in sorted(mine)]
                if name == "pad" and any(map(any, equation.params["padding_config"])):
                    codes.append(self.everywhere.get(ins[1], UNKNOWN))
            return map_codes(codes, function) if codes else UNKNOWN
        pieces = []
        for tie in ties:
            held, size = (
                self.at(ins[tie.operand], tie.axis),
                self.positions.program.shape(ins[tie.operand])[tie.axis],
            )
            pieces.append((np.broadcast_to(held, (size,)), tie))
        return put_together(pieces, n)

    def _function(self, equation: Equation, k: int, moved: bool) -> Callable[[tuple[int, ...]], int] | None:
        """From the operands' codes to output k's, for the primitives that act on whole hyperplanes alike."""
        name = equation.name
        if name in ELEMENTWISE:
            return lambda row: self.numbers.elementwise(equation, row)
        if name in MOVES:
            if name in ("optimization_barrier", "sort") and not moved:
                return lambda row: row[k]
            if name in ("dynamic_slice", "gather") and not moved:
                return lambda row: row[0]
            if name == "dynamic_update_slice" and not moved:
                return lambda row: row[0] if row[0] == row[1] else UNKNOWN
            return lambda row: row[0] if all(code == row[0] for code in row) else UNKNOWN
        if name in REDUCTIONS | CUMULATIVE | WINDOWS:
            return lambda row: self.numbers.reduced(equation, row[0])
        return None

    # --- loops and branches ---

    def _control(self, equation: Equation) -> None:
        self._clear(equation.outs)
        params, ins = equation.params, equation.ins
        if equation.name == "cond":
            for n, block in enumerate(equation.blocks):
                self._clear(block.ins)
                for inner, outer in zip(block.ins, ins[1:], strict=True):
                    self._copy(outer, inner)
                self._walk(block.equations)
                for inner, outer in zip(block.outs, equation.outs, strict=True):
                    self._join(inner, outer) if n else self._copy(inner, outer)
        elif equation.name == "scan":
            self._scan(equation, params["num_consts"], params["num_carry"])
        else:
            first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            condition, body = equation.blocks
            self._loop(body.ins, body.outs, body.equations, ins[first:second], ins[second:], equation.outs)
            for inner, outer in zip(condition.ins, (*ins[:first], *equation.outs), strict=True):
                self._clear([inner])
                self._copy(outer, inner)
            self._walk(condition.equations)

    def _scan(self, equation: Equation, consts: int, carry: int) -> None:
        (block,), ins, stepped = equation.blocks, equation.ins, consts + carry
        for inner, outer in zip(block.ins[stepped:], ins[stepped:], strict=True):
            self._clear([inner])
            self._copy(outer, inner, -1)
        self._loop(
            block.ins[:stepped], block.outs[:carry], block.equations, ins[:consts], ins[consts:stepped],
            equation.outs[:carry],
        )  # fmt: skip
        for inner, outer in zip(block.outs[carry:], equation.outs[carry:], strict=True):
            self._copy(inner, outer, 1)

    def _loop(
        self,
        inputs: Sequence[int],
        results: Sequence[int],
        equations: Sequence[Equation],
        consts: Sequence[int],
        start: Sequence[int],
        outs: Sequence[int],
    ) -> None:
        """A loop's body, until what it carries is what it was given."""
        self._clear(inputs)
        for inner, outer in zip(inputs, (*consts, *start), strict=True):
            self._copy(outer, inner)
        carried = inputs[len(consts) :]
        emit, self.emit = self.emit, False
        changed = True
        while changed:
            self._walk(equations)
            # Every one of them is joined, so no generator that stops at the first change.
            lost = [self._join(new, old) for new, old in zip(results, carried, strict=True)]
            changed = any(lost)
        self.emit = emit
        self._walk(equations)
        for inner, outer in zip(carried, outs, strict=True):
            self._copy(inner, outer)

    def _copy(self, source: int, target: int, shift: int = 0) -> None:
        if source in self.everywhere:
            self.everywhere[target] = self.everywhere[source]
        for axis, codes in self.codes.get(source, {}).items():
            if axis + shift >= 0:
                self.codes.setdefault(target, {})[axis + shift] = codes
        if source in self.sums:
            self.sums[target] = self.sums[source]

    def _join(self, new: int, old: int) -> bool:
        """Keep of `old` what also holds of `new`; whether anything was lost."""
        before = (self.everywhere.get(old), dict(self.codes.get(old, {})))
        codes = {
            axis: np.where(np.equal(self.at(new, axis), self.at(old, axis)), self.at(old, axis), UNKNOWN)
            for axis in range(len(self.positions.program.shape(old)))
        }
        if self.everywhere.get(old) != self.everywhere.get(new):
            self.everywhere.pop(old, None)
        self.codes.pop(old, None)
        if old not in self.everywhere:
            for axis, each in codes.items():
                self._set(old, axis, each)
        after = (self.everywhere.get(old), self.codes.get(old, {}))
        same = before[0] == after[0] and before[1].keys() == after[1].keys()
        return not (same and all(np.array_equal(codes, after[1][i]) for i, codes in before[1].items()))
