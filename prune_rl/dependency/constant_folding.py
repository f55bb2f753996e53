"""The numbers that values hold at a removed neuron, and what primitives make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.index_maps import Tie
from prune_rl.dependency.jaxpr import Equation

UNKNOWN = 0
Codes = np.ndarray[Any, np.dtype[np.int64]]  # by position


class Numbers:
    """A table of scalars: values are handled as codes, its indices; `UNKNOWN` is the code of what is not known."""

    def __init__(self) -> None:
        self._numbers: list[Any] = [None]
        self._code_of: dict[tuple[str, bytes], int] = {}
        self._folded: dict[tuple[int, tuple[int, ...]], int] = {}

    def code(self, number: Any) -> int:
        """The code of a scalar array, `UNKNOWN` of None."""
        if number is None:
            return UNKNOWN
        if _is_zero(number):
            number = np.zeros_like(number)  # −0 is no other number
        key = (str(number.dtype), number.tobytes())
        if key not in self._code_of:
            self._code_of[key] = len(self._numbers)
            self._numbers.append(number)
        return self._code_of[key]

    def obstacle(self, row: tuple[int, ...]) -> str:
        """Why a contraction of these numbers at a removed neuron is not exact, or nothing."""
        numbers = [self._numbers[code] for code in row]
        for number in numbers:
            if _is_bad(number):
                return f"a removed neuron's activation would be {number}"
        if not any(map(_is_zero, numbers)):
            return "is contracted with a kernel that does not become 0 with its parameters"
        return ""

    def equals(self, code: int, number: Any) -> int:
        """1 if the code stands for this number, else 0."""
        known = self._numbers[code]
        return int(known is not None and bool(known == number))

    def elementwise(self, equation: Equation, row: tuple[int, ...]) -> int:
        """What an elementwise primitive makes of its operands' codes."""
        key = (id(equation), row)
        if key not in self._folded:
            self._folded[key] = self.code(_fold(equation, [self._numbers[code] for code in row]))
        return self._folded[key]

    def reduced(self, equation: Equation, code: int) -> int:
        """What a reduction makes of equal numbers, however many there are."""
        number = self._numbers[code]
        counts = ("sum", "prod", "logsumexp")
        exact = not equation.name.endswith(counts) or (_is_zero(number) and "log" not in equation.name)
        if not exact:
            return code if _is_bad(number) else UNKNOWN
        return code

    def product(self, row: tuple[int, ...], zero: int) -> int:
        """0 where every operand axis that carries the neuron on to the output is 0 there, else unknown."""
        numbers = [self._numbers[code] for code in row]
        if any(map(_is_bad, numbers)):
            return self.code(np.asarray(np.nan))
        return zero if all(map(_is_zero, numbers)) else UNKNOWN


def map_codes(codes: Sequence[Codes | int], function: Callable[[tuple[int, ...]], int]) -> Codes | int:
    """`function` of the operands' codes, position by position; a single code stands for all positions."""
    if all(isinstance(c, int) for c in codes):
        return function(tuple(int(c) for c in codes))
    rows = np.stack(np.broadcast_arrays(*codes), axis=-1)
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    results = np.array([function(tuple(row)) for row in unique.tolist()], np.int64)
    return results[inverse.reshape(-1)]


def put_together(pieces: Sequence[tuple[Codes, Tie]], length: int) -> Codes:
    """Codes along an axis that is made of others: what was held there, if all that come together hold the same."""
    low, high = np.full(length, np.iinfo(np.int64).max), np.full(length, -1)
    for codes, tie in pieces:
        target = np.arange(length) if tie.target is None else tie.target
        held = codes if tie.source is None else codes[tie.source]
        np.minimum.at(low, target, held)
        np.maximum.at(high, target, held)
    return np.where(low == high, low, UNKNOWN)


def _is_zero(number: Any) -> bool:
    return number is not None and bool(number == 0)


def _is_bad(number: Any) -> bool:
    return number is not None and not bool(np.isfinite(number))


def _fold(equation: Equation, numbers: list[Any]) -> Any:
    """An elementwise primitive on known (else None) numbers; nan where it may not be finite.

    Unknown numbers are taken to be finite and not 0: where they are not, the surviving neurons of the same
    layer have the same trouble.
    """
    name = equation.name
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        try:
            with jax.ensure_compile_time_eval():
                return np.asarray(equation.source.primitive.bind(*known, **equation.source.params))
        except FloatingPointError:  # jax_debug_nans
            return np.asarray(np.nan)
    if name == "select_n" and numbers[0] is not None:
        return numbers[1 + int(numbers[0])]
    real = jnp.issubdtype(equation.source.outvars[0].aval.dtype, jnp.inexact)
    divided_by_zero = name in ("div", "rem") and _is_zero(numbers[-1])
    power_of_zero = name == "pow" and _is_zero(numbers[0])
    bad = any(map(_is_bad, known)) and name not in ("max", "min", "clamp")
    if real and (bad or divided_by_zero or power_of_zero):
        return np.asarray(np.nan)
    if name == "mul" or (name == "div" and _is_zero(numbers[0])):
        return next((number for number in known if _is_zero(number)), None)
    if name == "select_n" and len(known) == len(numbers) - 1:
        return known[0] if all(number == known[0] for number in known) else None
    return None
