"""Which positions along the axes of a program's values are the same neuron, and which cannot be taken out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.index_maps import AxisOf, Choice, Indices, Links, Tie
from prune_rl.dependency.jaxpr import Equation, Program
from prune_rl.dependency.rules import ELEMENTWISE, MOVES, links_of
from prune_rl.dependency.union_find import Classes

Sources = tuple[frozenset[AxisOf], ...]  # by axis of a value: the input axes that it comes from
Choices = Mapping[int, int]  # by number of a reshape in the order of the walk: which of its options is taken

# Index arrays larger than this are not followed.
LARGEST_INDEX = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Fork:
    """A reshape that could have been read in another way: its number, how many ways, the positions it took."""

    number: int
    options: int
    taken: Indices


class Positions(Classes):
    """The classes of every position of every axis of a program's values, with the reasons that block some.

    `labels[v][i]` numbers the positions along axis i of value v; `find` gives the class of a position: what must
    go together. `order` lists the equations that did the work, calls and loops taken apart; `links` gives what each
    does. `sources[v][i]` names the input axes that axis i of a value made of parameters (and constants) alone comes
    from, None for other values. `integers` holds the known index arrays.
    """

    def __init__(self, program: Program, parameters: int = 0, choices: Choices | None = None) -> None:
        super().__init__()
        self.program = program
        self.order: list[tuple[Equation, Links]] = []
        self.links: dict[int, Links] = {}
        self.labels: dict[int, list[Indices]] = {}
        self.sources: dict[int, Sources | None] = {}
        self.integers: dict[int, np.ndarray[Any, Any]] = {}
        self.uniform: dict[int, Any] = {}
        self.forks: list[Fork] = []
        self._choices = choices or {}
        self._walked = 0
        for k, value in enumerate(program.inputs):
            self._define(value)
            if k < parameters:
                rank = len(program.shape(value))
                self.sources[value] = tuple(frozenset({(k, i)}) for i in range(rank))
                for labels in self.labels[value]:
                    self.mark(labels)
            else:
                self.sources[value] = None
        for value, array in program.constants.items():
            self._constant(value, array)

    def of(self, value: int, axis: int) -> Indices:
        """The class of every position along an axis."""
        return self.find(self.labels[value][axis])

    def _define(self, value: int) -> list[Indices]:
        self.labels[value] = [self.new(n) for n in self.program.shape(value)]
        return self.labels[value]

    def _constant(self, value: int, array: Any) -> None:
        labels = self._define(value)
        self.sources[value] = tuple(frozenset() for _ in labels)
        numeric = not jnp.issubdtype(self.program.avals[value].dtype, jax.dtypes.extended)
        if numeric and not isinstance(array, jax.core.Tracer):
            numbers = np.asarray(array)
            if numbers.dtype.kind in "iub" and numbers.size <= LARGEST_INDEX:
                self.integers[value] = numbers
            if numbers.size and bool((numbers == numbers.flat[0]).all()):
                self.uniform[value] = np.asarray(numbers.flat[0])
                return
        for axis in labels:
            self.block(axis, "joined with a constant array")

    # --- the walk ---

    def walk(self, equations: Sequence[Equation]) -> Positions:
        for equation in equations:
            if equation.body is not None:
                self.walk(equation.body)
            elif equation.blocks:
                self._control(equation)
            else:
                ins, outs = ([self.program.shape(v) for v in vs] for vs in (equation.ins, equation.outs))
                links = links_of(equation.name, ins, outs, equation.params)
                if equation.name == "gather" and not links.opaque:
                    links = self._picked(equation, links)
                links = self._resolved(equation, links)
                self.order.append((equation, links))
                self.links[id(equation)] = links
                self._apply(equation, links)
                self._fold_integers(equation)
        return self

    def _apply(self, equation: Equation, links: Links) -> None:
        ins = equation.ins
        for value, axes in zip(equation.outs, links.outs, strict=True):
            labels = []
            for n, ties in zip(self.program.shape(value), axes, strict=True):
                whole = next((t for t in ties if t.source is None and t.target is None), None)
                label = self.labels[ins[whole.operand]][whole.axis] if whole else self.new(n)
                for tie in ties:
                    mine = self.labels[ins[tie.operand]][tie.axis]
                    self.union(
                        mine if tie.source is None else mine[tie.source],
                        label if tie.target is None else label[tie.target],
                    )
                labels.append(label)
            self.labels[value] = labels
            self.sources[value] = _sources(axes, [self.sources[v] for v in ins])
        for (j, a), (k, b) in links.contracted:
            self.union(self.labels[ins[j]][a], self.labels[ins[k]][b])
        reason = f"goes through {equation.name!r}" + (", which has no rule" if links.opaque else "")
        for k, i in links.blocked:
            self.block(self.labels[ins[k]][i], reason)
        for k, i in links.batch:
            self.block(self.labels[ins[k]][i], f"is a batch axis of {equation.name!r}")
        for k, i in links.fixed:
            self.block(self.labels[equation.outs[k]][i], reason)

    def _resolved(self, equation: Equation, links: Links) -> Links:
        """`links` with one option taken of every reshape that has several."""
        outs, blocked, fixed = [list(axes) for axes in links.outs], [*links.blocked], [*links.fixed]
        for choice in links.choices:
            tie_of = self._taken(equation, choice)
            blocked += [(0, i) for i in choice.ins if tie_of is None or i != tie_of[0]]
            fixed += [(0, i) for i in choice.outs if tie_of is None or i != tie_of[1]]
            if tie_of is not None:
                outs[0][tie_of[1]] = (tie_of[2],)
        return dataclasses.replace(
            links, outs=tuple(map(tuple, outs)), blocked=tuple(blocked), fixed=tuple(fixed), choices=()
        )

    def _taken(self, equation: Equation, choice: Choice) -> tuple[int, int, Tie] | None:
        number, self._walked = self._walked, self._walked + 1
        labels = self.labels[equation.ins[0]]
        options = [o for o in choice.options if not self.is_blocked(labels[o[0]]).all()]
        # The axis of a parameter rather than one that was made by broadcasting.
        options.sort(key=lambda o: not self.is_marked(labels[o[0]]).any())
        if not options:
            return None
        mine, theirs = options[min(self._choices.get(number, 0), len(options) - 1)]
        self.forks.append(Fork(number, len(options), labels[mine]))
        return mine, theirs, choice.tie(mine, theirs)

    def _picked(self, equation: Equation, links: Links) -> Links:
        """The links of a gather along one axis by constant indices."""
        params, numbers = equation.params, equation.params["dimension_numbers"]
        indices = self.integers.get(equation.ins[1])
        if indices is None or indices.ndim != 2 or len(numbers.start_index_map) != 1:
            return links
        (axis,) = numbers.start_index_map
        length = self.program.shape(equation.ins[0])[axis]
        inside = bool(((indices >= 0) & (indices < length)).all())
        if numbers.collapsed_slice_dims != (axis,) or params["slice_sizes"][axis] != 1 or not inside:
            return links
        (out,) = (o for o in range(len(links.outs[0])) if o not in numbers.offset_dims)
        axes = list(links.outs[0])
        axes[out] = (Tie(0, axis, indices[:, 0].astype(np.int64), np.arange(len(indices))),)
        return dataclasses.replace(
            links,
            outs=(tuple(axes),),
            blocked=tuple(at for at in links.blocked if at != (0, axis)),
            fixed=tuple(at for at in links.fixed if at != (0, out)),
        )

    def _fold_integers(self, equation: Equation) -> None:
        """Follow index arrays that are made of constants."""
        avals = [self.program.avals[v] for v in equation.outs]
        known = equation.name in ELEMENTWISE | MOVES | {"iota"} and all(
            v in self.integers for v in equation.ins
        )
        if known and all(a.dtype.kind in "iub" and a.size <= LARGEST_INDEX for a in avals):
            with jax.ensure_compile_time_eval():
                arguments = [jnp.asarray(self.integers[v]) for v in equation.ins]
                made = equation.bind(arguments)
            self.integers.update(zip(equation.outs, map(np.asarray, made), strict=True))

    # --- loops and branches ---

    def _control(self, equation: Equation) -> None:
        params, ins = equation.params, equation.ins
        if equation.name == "scan":
            self._scan(equation, params["num_consts"], params["num_carry"])
        elif equation.name == "while":
            first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            for block, consts in zip(equation.blocks, (ins[:first], ins[first:second]), strict=True):
                self._enter(block.ins, (*consts, *ins[second:]))
                self._vary(block.ins[len(consts) :])
                self.walk(block.equations)
            self._leave(equation.blocks[1].outs, ins[second:], equation.outs)
        else:
            for block in equation.blocks:
                self._enter(block.ins, ins[1:])
                self.walk(block.equations)
                self._leave(block.outs, equation.blocks[0].outs, equation.outs)

    def _scan(self, equation: Equation, consts: int, carry: int) -> None:
        (block,), ins, reason = equation.blocks, equation.ins, "is stepped through by 'scan'"
        stepped = consts + carry
        self._enter(block.ins[:stepped], ins[:stepped])
        self._vary(block.ins[consts:stepped])
        for inner, outer in zip(block.ins[stepped:], ins[stepped:], strict=True):
            self.labels[inner] = self.labels[outer][1:]
            sources = self.sources[outer]
            self.sources[inner] = None if sources is None else sources[1:]
            self.block(self.labels[outer][0], reason)
        self.walk(block.equations)
        self._leave(block.outs[:carry], ins[consts:stepped], equation.outs[:carry])
        for inner, outer in zip(block.outs[carry:], equation.outs[carry:], strict=True):
            steps = self.new(self.program.shape(outer)[0])
            self.block(steps, reason)
            self.labels[outer], self.sources[outer] = [steps, *self.labels[inner]], None

    def _enter(self, inner: Sequence[int], outer: Sequence[int]) -> None:
        for mine, theirs in zip(inner, outer, strict=True):
            self.labels[mine], self.sources[mine] = self.labels[theirs], self.sources[theirs]
            if theirs in self.integers and mine not in self.integers:
                self.integers[mine] = self.integers[theirs]

    def _vary(self, values: Sequence[int]) -> None:
        """What a loop carries is only at first what it started from."""
        for value in values:
            self.sources[value] = None
            self.integers.pop(value, None)

    def _leave(self, inner: Sequence[int], same: Sequence[int], outer: Sequence[int]) -> None:
        """Outputs of a block are the same neurons as the values `same`, and are the values `outer` from now on."""
        for mine, twin, out in zip(inner, same, outer, strict=True):
            for a, b in zip(self.labels[mine], self.labels[twin], strict=True):
                self.union(a, b)
            self.labels[out], self.sources[out] = self.labels[twin], None


def _sources(axes: Sequence[Sequence[Tie]], operands: Sequence[Sources | None]) -> Sources | None:
    known = [sources for sources in operands if sources is not None]
    if len(known) < len(operands):
        return None
    return tuple(frozenset[AxisOf]().union(*(known[t.operand][t.axis] for t in ties)) for ties in axes)


def link(program: Program, parameters: int = 0, choices: Choices | None = None) -> Positions:
    """Tie the positions of a program whose first `parameters` inputs are parameter leaves."""
    return Positions(program, parameters, choices).walk(program.equations)


def next_choices(positions: Positions, choices: Choices, refused: np.ndarray[Any, Any]) -> Choices | None:
    """Other options for the reshapes that took part in the `refused` classes; None if there are none left."""
    changed = dict(choices)
    for fork in positions.forks:
        current = changed.get(fork.number, 0)
        if current + 1 < fork.options and np.isin(positions.find(fork.taken), refused).any():
            changed[fork.number] = current + 1
    return changed if changed != dict(choices) else None
