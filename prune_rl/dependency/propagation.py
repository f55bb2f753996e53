"""Which positions along the axes of a program's values are the same neuron, as disjoint sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.indexing_rules import gather_at
from prune_rl.dependency.interpreter import Analysis, Entry
from prune_rl.dependency.jaxpr import Equation, Program
from prune_rl.dependency.rules import (
    CUMULATIVE,
    ELEMENTWISE,
    GENERATED,
    KEYS,
    MOVES,
    REDUCTIONS,
    links_of,
)
from prune_rl.dependency.structural_rules import AxisMap, AxisOf, Links, ReshapeOptions
from prune_rl.dependency.tree_paths import Indices
from prune_rl.dependency.union_find import DisjointSets

Sources = tuple[frozenset[AxisOf], ...]  # by axis of a value: the input axes that it comes from
Choices = Mapping[
    int, int
]  # by number of an ambiguous primitive in the order of evaluation: which of its readings is taken

# Larger arrays that the program makes of constants are not evaluated, unless they are given as they are.
LARGEST_MADE = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Ambiguity:
    """A primitive with several readings: its number, how many readings, and the positions of the one taken."""

    number: int
    options: int
    taken: Indices


class Positions(DisjointSets, Analysis):
    """Disjoint sets over every position of every axis of a program's values: the positions that must go together.

    `labels[v][i]` numbers the positions along axis i of value v. `order` lists the primitives in their order of
    evaluation, inside calls and loops too, and `links` what each does to positions. `sources[v][i]` names the input
    axes that axis i of a value made of parameters, constants and random numbers alone comes from; None for other
    values. `mixed[v][i]` does so for values that inputs of the program are part of, too, such as a kernel with noise,
    but None for those that a contraction has made of them. `uniform` holds the scalar of constants that are equal
    everywhere.
    """

    def __init__(
        self,
        program: Program,
        parameters: int = 0,
        choices: Choices | None = None,
        first_axes: bool = False,
        equal_channels: bool = False,
    ) -> None:
        super().__init__()
        self.program = program
        self.order: list[tuple[Equation, Links]] = []
        self.links: dict[int, Links] = {}
        self.labels: dict[int, list[Indices]] = {}
        self.sources: dict[int, Sources | None] = {}
        self.mixed: dict[int, Sources | None] = {}
        self._arrays: dict[int, np.ndarray[Any, Any]] = {}
        self._made_by: dict[
            int, Equation
        ] = {}  # values that are made of constants alone, and not evaluated yet
        self.uniform: dict[int, Any] = {}
        self.carried: tuple[tuple[int, int], ...] = ()
        self.ambiguities: list[Ambiguity] = []
        self._choices = choices or {}
        self._first_axes = first_axes
        self._equal_channels = equal_channels
        self._ambiguous = 0
        for k, value in enumerate(program.inputs):
            self._define(value)
            if k < parameters:
                rank = len(program.shape(value))
                self.sources[value] = tuple(frozenset({(k, i)}) for i in range(rank))
                self.mixed[value] = self.sources[value]
                for labels in self.labels[value]:
                    self.mark(labels)
            else:
                self.sources[value] = None
                self.mixed[value] = tuple(frozenset() for _ in self.labels[value])
                if jnp.issubdtype(program.avals[value].dtype, jax.dtypes.prng_key):
                    self.sources[value] = self.mixed[value]
        for value, array in program.constants.items():
            self._constant(value, array)

    def of(self, value: int, axis: int) -> Indices:
        """The root of every position along an axis."""
        return self.find(self.labels[value][axis])

    def _define(self, value: int) -> list[Indices]:
        self.labels[value] = [self.new(n) for n in self.program.shape(value)]
        return self.labels[value]

    def _constant(self, value: int, array: Any) -> None:
        labels = self._define(value)
        self.sources[value] = self.mixed[value] = tuple(frozenset() for _ in labels)
        numeric = not jnp.issubdtype(self.program.avals[value].dtype, jax.dtypes.extended)
        if numeric and not isinstance(array, jax.core.Tracer):
            numbers = self._arrays[value] = np.asarray(array)
            if numbers.size and bool((numbers == numbers.flat[0]).all()):
                self.uniform[value] = np.asarray(numbers.flat[0])
            return
        for axis in labels:
            self.block(axis, "is joined with an array of an outer trace, whose values are not known")

    def array(self, value: int) -> np.ndarray[Any, Any] | None:
        """The array that a value is known to be, since it is made of constants alone."""
        if value in self._made_by:
            equation = self._made_by.pop(value)
            arguments = [self.array(v) for v in equation.ins]
            if all(argument is not None for argument in arguments):
                with jax.ensure_compile_time_eval():
                    made = equation.bind([jnp.asarray(argument) for argument in arguments])
                self._arrays.update(zip(equation.outs, map(np.asarray, made), strict=True))
        return self._arrays.get(value)

    def carry(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Tie the positions of outputs to those of the inputs that they are at the next call."""
        self.carried = tuple(pairs)
        for before, after in pairs:
            self.join(after, before)

    # --- the transfer function of a primitive ---

    def primitive(self, equation: Equation) -> None:
        ins, outs = ([self.program.shape(v) for v in vs] for vs in (equation.ins, equation.outs))
        links = links_of(equation.name, ins, outs, equation.params)
        if equation.name == "gather" and not links.opaque:
            indices = self.array(equation.ins[1])
            if indices is not None:
                links = gather_at(links, indices, ins[0], equation.params)
        links = self._resolved(equation, links)
        self.order.append((equation, links))
        self.links[id(equation)] = links
        self._apply(equation, links)
        self._follow_constants(equation)

    def _apply(self, equation: Equation, links: Links) -> None:
        ins = equation.ins
        for value, axes in zip(equation.outs, links.outs, strict=True):
            labels = []
            for n, maps in zip(self.program.shape(value), axes, strict=True):
                whole = next((m for m in maps if m.source is None and m.target is None), None)
                label = self.labels[ins[whole.operand]][whole.axis] if whole else self.new(n)
                for m in maps:
                    source = self.labels[ins[m.operand]][m.axis]
                    self.union(
                        source if m.source is None else source[m.source],
                        label if m.target is None else label[m.target],
                    )
                labels.append(label)
            self.labels[value] = labels
            self.sources[value] = _sources(axes, [self.sources[v] for v in ins])
            self.mixed[value] = _sources(axes, [self.mixed[v] for v in ins])
        if equation.name in GENERATED | KEYS:
            self.sources.update(
                (v, tuple(frozenset[AxisOf]() for _ in self.labels[v])) for v in equation.outs
            )
        elif (
            equation.name in ("dot_general", "conv_general_dilated")
            and self.sources[equation.outs[0]] is None
        ):
            self.mixed.update(dict.fromkeys(equation.outs))
        for (j, a), (k, b) in links.contracted:
            left, right = self.labels[ins[j]][a], self.labels[ins[k]][b]
            self.union(left, right if len(left) == len(right) else np.resize(right, len(left)))
        reason = f"goes through {equation.name!r}" + (", which has no rule" if links.opaque else "")
        for k, i in links.blocked:
            self.block(self.labels[ins[k]][i], reason)
        for k, i in links.fixed:
            self.block(self.labels[equation.outs[k]][i], reason)

    def _resolved(self, equation: Equation, links: Links) -> Links:
        """`links` with one reading of what is ambiguous."""
        if links.readings:
            links = self._taken(equation, links.readings)
        outs, blocked, fixed = [list(axes) for axes in links.outs], [*links.blocked], [*links.fixed]
        for reshape in links.reshapes:
            taken = self._reading(equation, reshape)
            blocked += [(0, i) for i in reshape.ins if taken is None or i != taken[0]]
            fixed += [(0, i) for i in reshape.outs if taken is None or i != taken[1]]
            if taken is not None:
                outs[0][taken[1]] = (reshape.axis_map(*taken),)
        return dataclasses.replace(
            links, outs=tuple(map(tuple, outs)), blocked=tuple(blocked), fixed=tuple(fixed), reshapes=()
        )

    def _reading(self, equation: Equation, reshape: ReshapeOptions) -> tuple[int, int] | None:
        """The (input axis, output axis) that are taken to be the neurons'; None if no axis can be."""
        number, self._ambiguous = self._ambiguous, self._ambiguous + 1
        labels = self.labels[equation.ins[0]]
        ordered = reversed(reshape.options) if self._first_axes else reshape.options
        options = [o for o in ordered if not self.is_blocked(labels[o[0]]).all()]
        # The axis of a parameter rather than one that was made by broadcasting.
        options.sort(key=lambda o: not self.is_marked(labels[o[0]]).any())
        if not options:
            return None
        taken = options[min(self._choices.get(number, 0), len(options) - 1)]
        self.ambiguities.append(Ambiguity(number, len(options), labels[taken[0]]))
        return taken

    def _taken(self, equation: Equation, readings: Sequence[Links]) -> Links:
        """One of the readings of a primitive, such as those of a grouped convolution."""
        number, self._ambiguous = self._ambiguous, self._ambiguous + 1
        ordered = list(reversed(readings)) if self._equal_channels else list(readings)
        ordered = [links for links in ordered if not self._ties_blocked(equation, links)] or ordered
        every = np.concatenate([axis for value in equation.ins for axis in self.labels[value]])
        self.ambiguities.append(Ambiguity(number, len(ordered), every))
        return ordered[min(self._choices.get(number, 0), len(ordered) - 1)]

    def _ties_blocked(self, equation: Equation, links: Links) -> bool:
        """Whether an axis that is blocked would be tied to another one."""
        tied = [m for axes in links.outs for maps in axes if len(maps) > 1 for m in maps]
        return any(self.is_blocked(self.labels[equation.ins[m.operand]][m.axis]).all() for m in tied)

    def _follow_constants(self, equation: Equation) -> None:
        """Remember arrays that are made of constants alone; they are evaluated where they are needed."""
        avals = [self.program.avals[v] for v in equation.outs]
        followed = equation.name in ELEMENTWISE | MOVES | REDUCTIONS | CUMULATIVE | {"iota"}
        known = followed and all(v in self._arrays or v in self._made_by for v in equation.ins)
        if known and all(a.dtype.kind in "biufcV" and a.size <= LARGEST_MADE for a in avals):
            self._made_by.update((v, equation) for v in equation.outs)

    # --- calls, loops and branches ---

    def enter(self, equation: Equation, inner: int, outer: int, entry: Entry) -> None:
        labels, sources = self.labels[outer], self.sources[outer]
        mixed = self.mixed[outer]
        if entry == "slice":
            self.block(labels[0], f"is stepped through by {equation.name!r}")
            labels, sources, mixed = labels[1:], sources and sources[1:], mixed and mixed[1:]
        labels = self._whole(equation, labels, self.program.shape(inner))
        # A carried value has the neurons of its first state, but neither its source nor its numbers.
        self.labels[inner], self.sources[inner] = labels, None if entry == "carried" else sources
        self.mixed[inner] = None if entry == "carried" else mixed
        if entry == "constant":
            for table in (self._arrays, self._made_by):
                if outer in table:
                    table[inner] = table[outer]  # type: ignore[assignment]

    def _whole(self, equation: Equation, labels: list[Indices], shape: tuple[int, ...]) -> list[Indices]:
        """`labels` for another shape: axes of another length are split over devices, and new ones."""
        fitted = list(labels)
        for axis, n in enumerate(shape):
            if len(labels[axis]) != n:
                fitted[axis] = self.new(n)
                for split in (labels[axis], fitted[axis]):
                    self.block(split, f"is split over devices by {equation.name!r}")
        return fitted

    def join(self, new: int, old: int) -> bool:
        for a, b in zip(self.labels[new], self.labels[old], strict=True):
            self.union(a, b)
        return False  # the sets only grow, and the equations inside need not be linked again

    def leave(self, equation: Equation, inner: int, outer: int, stacked: bool = False) -> None:
        labels = self.labels[inner]
        if stacked:
            steps = self.new(self.program.shape(outer)[0])
            self.block(steps, f"is stepped through by {equation.name!r}")
            labels = [steps, *labels]
        labels = self._whole(equation, labels, self.program.shape(outer))
        self.labels[outer], self.sources[outer], self.mixed[outer] = labels, None, None


def _sources(axes: Sequence[Sequence[AxisMap]], operands: Sequence[Sources | None]) -> Sources | None:
    known = [sources for sources in operands if sources is not None]
    if len(known) < len(operands):
        return None
    return tuple(frozenset[AxisOf]().union(*(known[m.operand][m.axis] for m in maps)) for maps in axes)


def link(
    program: Program,
    parameters: int = 0,
    choices: Choices | None = None,
    carried: Sequence[tuple[int, int]] = (),
) -> Positions:
    """The linked positions of a program whose first `parameters` inputs are parameter leaves."""
    positions = Positions(program, parameters, choices)
    positions.interpret(program.equations)
    positions.carry(carried)
    return positions


def next_choices(positions: Positions, choices: Choices, refused: np.ndarray[Any, Any]) -> Choices | None:
    """The next readings of what took part in the `refused` sets; None if there are none left."""
    changed = dict(choices)
    for ambiguity in positions.ambiguities:
        current = changed.get(ambiguity.number, 0)
        if current + 1 < ambiguity.options and np.isin(positions.find(ambiguity.taken), refused).any():
            changed[ambiguity.number] = current + 1
    return changed if changed != dict(choices) else None
