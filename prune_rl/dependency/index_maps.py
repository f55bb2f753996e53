"""What a primitive does to the positions along the axes of its operands, as data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

AxisOf = tuple[int, int]  # (position of the operand, input or output; its axis)
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True, eq=False)
class Tie:
    """Positions of one operand axis that are the same neurons as positions of an output axis.

    Position source[n] of axis `axis` of operand `operand` is position target[n] of the output axis; None: all
    positions, in order. Several sources may share a target and the other way round.
    """

    operand: int
    axis: int
    source: Indices | None = None
    target: Indices | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """A reshape that folds several axes into one, or takes one apart: only one of the several can be the neurons'.

    `ins` and `outs`: the input and output axes that take part, one of them a single one; `lengths`: of the several.
    """

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def options(self) -> list[tuple[int, int]]:
        """(input axis, output axis), one for each way; the last of the several first, as features mostly are."""
        return [(i, o) for i in reversed(self.ins) for o in reversed(self.outs)]

    def tie(self, mine: int, theirs: int) -> Tie:
        """The tie of one option: every position of the single axis to its coordinate along one of the several."""
        folds = len(self.outs) == 1
        which = self.ins.index(mine) if folds else self.outs.index(theirs)
        along = np.arange(math.prod(self.lengths))
        coordinate = along // math.prod(self.lengths[which + 1 :]) % self.lengths[which]
        return Tie(0, mine, coordinate, along) if folds else Tie(0, mine, along, coordinate)


@dataclasses.dataclass(frozen=True, eq=False)
class Links:
    """What a primitive does to the axes of its operands.

    outs[k][i]: ties of axis i of output k (none: new positions). contracted: pairs of operand axes summed
    against each other. summed: operand axes that are reduced. batch: operand axes that index independent
    products. blocked: operand axes used in a way that fixes their length. fixed: output axes (output, axis) of a
    fixed length. choices: see `Choice`. opaque: the primitive has no rule.
    """

    outs: tuple[tuple[tuple[Tie, ...], ...], ...]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    summed: tuple[AxisOf, ...] = ()
    batch: tuple[AxisOf, ...] = ()
    blocked: tuple[AxisOf, ...] = ()
    fixed: tuple[AxisOf, ...] = ()
    choices: tuple[Choice, ...] = ()
    opaque: bool = False


def opaque(ins: list[tuple[int, ...]], outs: list[tuple[int, ...]]) -> Links:
    """The links of a primitive without a rule: every axis it touches is fixed."""
    every = tuple((k, i) for k, shape in enumerate(ins) for i in range(len(shape)))
    made = tuple((k, i) for k, shape in enumerate(outs) for i in range(len(shape)))
    return Links(tuple(tuple(() for _ in shape) for shape in outs), blocked=every, fixed=made, opaque=True)
