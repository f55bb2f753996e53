"""Constant folding at removed neurons: the scalar that every value holds where a neuron's parameters are 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.interpreter import Analysis, Entry
from prune_rl.dependency.jaxpr import Equation
from prune_rl.dependency.propagation import Positions
from prune_rl.dependency.rules import (
    CUMULATIVE,
    ELEMENTWISE,
    MARKS,
    MOVES,
    POSITIONAL,
    REDUCTIONS,
    SCATTERS,
    WINDOWS,
)
from prune_rl.dependency.scalars import SHARED, UNKNOWN, Ids, ScalarTable
from prune_rl.dependency.structural_rules import AxisMap, Links
from prune_rl.dependency.tree_paths import Flags, Indices


class ConstantFolding(Analysis):
    """The scalar that each value holds at a removed neuron: parameter leaves hold 0 there.

    The state of a value v: along[v][i], its scalars by position along axis i; everywhere[v], if the whole value is
    one scalar. Absent: not known.
    """

    def __init__(self, positions: Positions, candidates: Indices) -> None:
        self.positions = positions
        self.is_candidate = np.zeros(positions.size, bool)  # by position, of the roots
        self.is_candidate[candidates] = True
        self.scalars = ScalarTable()
        self.everywhere: dict[int, int] = {}
        self.along: dict[int, dict[int, Ids]] = {}
        program = positions.program
        for value, scalar in positions.uniform.items():
            self.everywhere[value] = self.scalars.id_of(scalar)
        for value in program.inputs:
            numeric = not jnp.issubdtype(program.avals[value].dtype, jax.dtypes.extended)
            carried = any(value == before for before, _ in positions.carried)
            if numeric and (carried or positions.sources[value] is not None):
                zero = self.scalars.id_of(np.zeros((), program.avals[value].dtype))
                for axis in range(len(program.shape(value))):
                    removable = self.removable(value, axis)
                    if removable.any():
                        self.along.setdefault(value, {})[axis] = np.where(removable, zero, UNKNOWN)
        for value in program.constants:
            self._evaluated(value)

    def removable(self, value: int, axis: int) -> Flags:
        """Which positions along an axis are candidates for removal."""
        return self.is_candidate[self.positions.of(value, axis)]

    def at(self, value: int, axis: int) -> Ids | int:
        """The scalars along an axis; a single id where all are the same."""
        everywhere = self.everywhere.get(value, UNKNOWN)
        return everywhere if everywhere else self.along.get(value, {}).get(axis, UNKNOWN)

    def _set(self, value: int, axis: int, ids: Ids | int) -> None:
        if np.any(ids):
            n = self.positions.program.shape(value)[axis]
            self.along.setdefault(value, {})[axis] = np.broadcast_to(ids, (n,))

    def _clear(self, value: int) -> None:
        for table in (self.everywhere, self.along):
            table.pop(value, None)

    def run(self) -> None:
        """Go through the program; what it carries to the next call, until that changes nothing."""
        changed = True
        while changed:
            self.interpret(self.positions.program.equations)
            changed = False
            for before, after in self.positions.carried:
                changed |= self.join(after, before)

    def _evaluated(self, value: int) -> bool:
        """Whether a value is made of constants alone; if so, its scalars are read from the array."""
        axes = [i for i in range(len(self.positions.program.shape(value))) if self.removable(value, i).any()]
        array = self.positions.array(value) if axes else None
        if array is None or value in self.everywhere:
            return False
        self.along[value] = {axis: self.scalars.along(array, axis) for axis in axes}
        return True

    # --- the transfer function of a primitive ---

    def primitive(self, equation: Equation) -> None:
        for value in equation.outs:
            self._clear(value)
        links, ins = self.positions.links[id(equation)], equation.ins
        if links.opaque:
            return
        for k, value in enumerate(equation.outs):
            function = self._function(equation, k, moved=False)
            if function is not None:
                everywhere = function(tuple(self.everywhere.get(v, UNKNOWN) for v in ins))
                if self.scalars.known(everywhere):
                    self.everywhere[value] = everywhere
            if self._evaluated(value):
                continue
            for axis in range(len(links.outs[k])):
                if self.removable(value, axis).any():
                    self._set(value, axis, self._along(equation, links, k, axis))

    def _along(self, equation: Equation, links: Links, k: int, axis: int) -> Ids | int:
        """The scalars of output k along one of its axes."""
        name, ins, maps = equation.name, equation.ins, links.outs[k][axis]
        program = self.positions.program
        if name in ("dot_general", "conv_general_dilated"):
            size = program.shape(equation.outs[k])[axis]
            held = [self._carried(ins[m.operand], m, size) for m in maps]
            zero = self.scalars.id_of(np.zeros((), program.avals[equation.outs[k]].dtype))
            return map_ids(held, lambda ids: self.scalars.product(ids, zero)) if held else UNKNOWN
        function = self._function(equation, k, moved=True)
        if function is None:
            return UNKNOWN
        if all(m.source is None and m.target is None for m in maps):
            by_operand = {m.operand: self.at(ins[m.operand], m.axis) for m in maps}
            held = [by_operand.get(j, self.everywhere.get(v, SHARED)) for j, v in enumerate(ins)]
            if name == "select_n" and np.all(np.equal(held[0], SHARED)):
                held = [SHARED if v in self.everywhere else ids for v, ids in zip(ins, held, strict=True)]
            if name == "broadcast_in_dim" and not maps:
                return self.everywhere.get(ins[0], SHARED)
            if name in SCATTERS:
                held = [held[0], held[2]]
            if name in MOVES:
                held = [by_operand[j] for j in sorted(by_operand)]
                if name == "pad" and any(map(any, equation.params["padding_config"])):
                    held.append(self.everywhere.get(ins[1], UNKNOWN))
            return map_ids(held, function) if held else UNKNOWN
        pieces = [(self._broadcast(ins[m.operand], m.axis), m) for m in maps]
        return self._assembled(pieces, program.shape(equation.outs[k])[axis])

    def _broadcast(self, value: int, axis: int) -> Ids:
        return np.broadcast_to(self.at(value, axis), (self.positions.program.shape(value)[axis],))

    def _carried(self, value: int, m: AxisMap, size: int) -> Ids | int:
        """The scalars of an operand by position of the output's axis that it is mapped to."""
        if m.source is None and m.target is None:
            return self.at(value, m.axis)
        return self._assembled([(self._broadcast(value, m.axis), m)], size)

    def _assembled(self, pieces: Sequence[tuple[Ids, AxisMap]], length: int) -> Ids:
        """Ids along an axis made of positions of others, joined where several meet."""
        low, high = np.full(length, np.iinfo(np.int64).max), np.full(length, -1)
        met: list[tuple[Ids, Ids]] = []
        for ids, m in pieces:
            target = np.arange(length) if m.target is None else m.target
            mine = ids if m.source is None else ids[m.source]
            np.minimum.at(low, target, mine)
            np.maximum.at(high, target, mine)
            met.append((target, mine))
        made = np.where(low == high, low, UNKNOWN)
        for position in np.flatnonzero((low != high) & (high >= 0)).tolist():
            these = [i for target, mine in met for i in np.unique(mine[target == position]).tolist()]
            made[position] = self.scalars.joined(these)
        return made

    def _function(self, equation: Equation, k: int, moved: bool) -> Callable[[tuple[int, ...]], int] | None:
        """From the operands' ids to output k's, for the primitives that act on all positions of an axis alike."""
        name = equation.name
        if name in ELEMENTWISE:
            return lambda ids: self.scalars.elementwise(equation, ids)
        if name in MOVES:
            if (name in MARKS or name == "sort") and not moved:
                return lambda ids: ids[k]
            if name in ("dynamic_slice", "gather") and not moved:
                return lambda ids: ids[0]
            if name == "dynamic_update_slice" and not moved:
                return lambda ids: ids[0] if ids[0] == ids[1] else UNKNOWN
            if not moved:
                return lambda ids: ids[0] if all(i == ids[0] for i in ids) else UNKNOWN
            return self.scalars.joined
        if name in SCATTERS:
            return self.scalars.written if moved else None
        if name in REDUCTIONS | POSITIONAL | CUMULATIVE | WINDOWS:
            return lambda ids: self.scalars.reduced(equation, ids[0])
        return None

    # --- calls, loops and branches ---

    def enter(self, equation: Equation, inner: int, outer: int, entry: Entry) -> None:
        self._copy(outer, inner, -1 if entry == "slice" else 0)

    def leave(self, equation: Equation, inner: int, outer: int, stacked: bool = False) -> None:
        self._copy(inner, outer, 1 if stacked else 0)

    def _copy(self, source: int, target: int, shift: int) -> None:
        self._clear(target)
        if source in self.everywhere:
            self.everywhere[target] = self.everywhere[source]
        for axis, ids in self.along.get(source, {}).items():
            # An axis that devices share is of another length there.
            if axis + shift >= 0 and len(ids) == self.positions.program.shape(target)[axis + shift]:
                self.along.setdefault(target, {})[axis + shift] = ids

    def join(self, new: int, old: int) -> bool:
        before = (self.everywhere.get(old), self.along.get(old, {}))
        joined = {
            axis: map_ids([self.at(new, axis), self.at(old, axis)], self.scalars.joined)
            for axis in range(len(self.positions.program.shape(old)))
        }
        if self.everywhere.get(old) != self.everywhere.get(new):
            self.everywhere.pop(old, None)
        self.along.pop(old, None)
        if old not in self.everywhere:
            for axis, ids in joined.items():
                self._set(old, axis, ids)
        after = (self.everywhere.get(old), self.along.get(old, {}))
        same = before[0] == after[0] and before[1].keys() == after[1].keys()
        return not (same and all(np.array_equal(ids, after[1][i]) for i, ids in before[1].items()))


def map_ids(ids: Sequence[Ids | int], function: Callable[[tuple[int, ...]], int]) -> Ids | int:
    """`function` of the operands' ids, position by position; a single id stands for all positions."""
    if all(isinstance(i, int) for i in ids):
        return function(tuple(int(i) for i in ids))
    rows = np.stack(np.broadcast_arrays(*ids), axis=-1)
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    results = np.array([function(tuple(row)) for row in unique.tolist()], np.int64)
    return results[inverse.reshape(-1)]
