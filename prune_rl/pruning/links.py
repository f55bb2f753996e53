"""What a primitive does to the positions along the axes of its operands, as data."""

from __future__ import annotations

import dataclasses
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

    options: (input axis, output axis, tie), one for each way; `ins` and `outs`: all axes that take part.
    """

    options: tuple[tuple[int, int, Tie], ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]


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
