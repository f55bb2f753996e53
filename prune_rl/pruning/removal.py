"""Is zeroing the slices of a neuron exactly the same as removing it?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.axes import Axes
from prune_rl.pruning.primitives import MOVES, REDUCTIONS, Links
from prune_rl.pruning.tracing import Equation


def check_removable(axes: Axes, candidates: set[int]) -> None:
    """Block every candidate class of axes whose removal would not be exact.

    Follows what each value holds at a removed neuron: parameter leaves hold 0 there, elementwise primitives
    map known numbers to known numbers, anything else is an unknown, finite number. A contraction over the
    axis is exact when one side is a parameter and the product at a removed neuron is 0.
    """
    state = _Removed(axes, candidates)
    for equation, links in axes.order:
        for (_, a), _ in links.contracted:
            root = axes.of(equation.ins[0])[a]
            if root in candidates:
                reason = state.obstacle(equation, root)
                if reason is not None:
                    axes.block_class(root, reason)
        if not links.opaque:
            state.step(equation, links)


class _Removed:
    """The number that each value holds at a removed neuron.

    at[v][root]: along a class of axes; everywhere[v]: for a value that is one known number throughout.
    Absent: not known.
    """

    def __init__(self, axes: Axes, candidates: set[int]) -> None:
        self.axes = axes
        self.candidates = candidates
        self.everywhere: dict[int, Any] = {}
        self.at: dict[int, dict[int, Any]] = {}
        for value, array in axes.program.constants.items():
            numeric = not jnp.issubdtype(axes.program.avals[value].dtype, jax.dtypes.extended)
            if np.ndim(array) == 0 and numeric and not isinstance(array, jax.core.Tracer):
                self.everywhere[value] = np.asarray(array)
        for value in axes.program.inputs:
            if axes.sources[value] is not None and self.roots(value):
                zero = np.zeros((), axes.program.avals[value].dtype)
                self.at[value] = dict.fromkeys(self.roots(value), zero)

    def roots(self, value: int) -> list[int]:
        return [root for root in dict.fromkeys(self.axes.of(value)) if root in self.candidates]

    def get(self, value: int, root: int | None) -> Any:
        known = self.everywhere.get(value)
        return known if root is None else self.at.get(value, {}).get(root, known)

    def obstacle(self, equation: Equation, root: int) -> str | None:
        """Why contracting this class of axes is not exact, or None."""
        sources = [self.axes.sources[v] for v in equation.ins]
        parameters = [s is not None and any(s) for s in sources]
        if all(parameters):
            return "is contracted between two parameters"
        if not any(parameters):
            return "is contracted by 'dot_general' with a value that is not a parameter"
        numbers = [self.get(v, root) for v in equation.ins]
        for number in numbers:
            if _is_bad(number):
                return f"a removed neuron's activation would be {number}"
        if not any(map(_is_zero, numbers)):
            return "is contracted with a kernel that does not become 0 with its parameters"
        return None

    def step(self, equation: Equation, links: Links) -> None:
        """Derive what the outputs of one equation hold."""
        for value in equation.outs:
            known = self._result(equation, links, None)
            if known is not None:
                self.everywhere[value] = known
            for root in self.roots(value):
                number = self._result(equation, links, root)
                if number is not None:
                    self.at.setdefault(value, {})[root] = number

    def _result(self, equation: Equation, links: Links, root: int | None) -> Any:
        numbers = [self.get(v, root) for v in equation.ins]
        if equation.name in MOVES:
            return numbers[0]
        if equation.name in REDUCTIONS:
            exact = equation.name not in ("reduce_sum", "reduce_prod") or _is_zero(numbers[0])
            return numbers[0] if exact or _is_bad(numbers[0]) else None
        if equation.name == "dot_general":
            return self._product(equation, links, numbers, root)
        return _fold(equation, numbers)

    def _product(self, equation: Equation, links: Links, numbers: list[Any], root: int | None) -> Any:
        """0 where every operand axis that carries the neuron on to the output is 0 there, else unknown."""
        if root is None:
            return None
        carriers = {k for tied in links.outs[0] for k, i in tied if self.axes.of(equation.ins[k])[i] == root}
        if any(_is_bad(numbers[k]) for k in carriers):
            return np.asarray(np.nan)
        if all(_is_zero(numbers[k]) for k in carriers):
            return np.zeros((), self.axes.program.avals[equation.outs[0]].dtype)
        return None


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
