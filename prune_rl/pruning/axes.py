"""Which axes of a program's values are tied together and so must keep the same length, and which cannot change it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_rl.pruning.primitives import AxisOf, Links, links_of
from prune_rl.pruning.tracing import Equation, Program

Sources = tuple[frozenset[AxisOf], ...]  # by axis of a value: the input axes that it comes from


class Axes:
    """A union-find over the axes of a program's values, with the reasons that block a class of axes.

    `order` lists the equations that did the work, kept calls taken apart; `sources[v][i]` names the input
    axes that axis i of a value made of parameters (and constants) alone comes from, None for other values.
    """

    def __init__(self, program: Program, parameters: int) -> None:
        self.program = program
        self.order: list[tuple[Equation, Links]] = []
        self.sources: dict[int, Sources | None] = {}
        self._parent: list[int] = []
        self._labels: dict[int, tuple[int, ...]] = {}
        self._blocked: dict[int, dict[str, None]] = {}
        for k, value in enumerate(program.inputs):
            rank = len(self._define(value))
            self.sources[value] = tuple(frozenset({(k, i)}) for i in range(rank)) if k < parameters else None
        for value, array in program.constants.items():
            self._define(value)
            self.sources[value] = tuple(frozenset() for _ in program.shape(value))
            for i in range(np.ndim(array)):
                self.block(value, i, "joined with a constant array")

    def of(self, value: int) -> tuple[int, ...]:
        """The class of each axis of a value."""
        return tuple(self.find(label) for label in self._labels[value])

    def find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def block(self, value: int, axis: int, reason: str) -> None:
        self.block_class(self.of(value)[axis], reason)

    def block_class(self, root: int, reason: str) -> None:
        self._blocked.setdefault(root, {})[reason] = None

    def reasons(self, root: int) -> tuple[str, ...]:
        """Why a class of axes cannot change its length; empty where it can."""
        return tuple(self._blocked.get(root, {}))

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a
            self._blocked.setdefault(a, {}).update(self._blocked.pop(b, {}))

    def _define(self, value: int) -> tuple[int, ...]:
        """New labels for a value that has none yet."""
        if value not in self._labels:
            first = len(self._parent)
            self._labels[value] = tuple(range(first, first + len(self.program.shape(value))))
            self._parent.extend(self._labels[value])
        return self._labels[value]

    def walk(self, equations: Sequence[Equation]) -> None:
        for equation in equations:
            if equation.body is not None:
                self.walk(equation.body)
                continue
            ins, outs = ([self.program.shape(v) for v in values] for values in (equation.ins, equation.outs))
            links = links_of(equation.name, ins, outs, equation.params)
            self.order.append((equation, links))
            self._apply(equation, links)

    def _apply(self, equation: Equation, links: Links) -> None:
        ins = equation.ins
        for value, axes in zip(equation.outs, links.outs, strict=True):
            labels = self._define(value)
            for label, tied in zip(labels, axes, strict=True):
                for k, i in tied:
                    self.union(self._labels[ins[k]][i], label)
            self.sources[value] = _sources(axes, [self.sources[v] for v in ins])
        for (j, a), (k, b) in links.contracted:
            self.union(self._labels[ins[j]][a], self._labels[ins[k]][b])
        reason = f"goes through {equation.name!r}" + (", which has no rule" if links.opaque else "")
        for k, i in links.blocked:
            self.block(ins[k], i, reason)
        for k, i in links.batch:
            self.block(ins[k], i, "is a batch axis of 'dot_general'")
        for k, i in links.fixed:
            self.block(equation.outs[k], i, reason)


def _sources(axes: Sequence[Sequence[AxisOf]], operands: Sequence[Sources | None]) -> Sources | None:
    known = [sources for sources in operands if sources is not None]
    if len(known) < len(operands):
        return None
    return tuple(frozenset[AxisOf]().union(*(known[k][i] for k, i in tied)) for tied in axes)


def link(program: Program, parameters: int = 0) -> Axes:
    """Tie the axes of a program whose first `parameters` inputs are parameter leaves."""
    axes = Axes(program, parameters)
    axes.walk(program.equations)
    return axes
