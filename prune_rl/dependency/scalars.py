"""The scalars that values hold at removed neurons, and what primitives make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.jaxpr import Equation

UNKNOWN = (
    0  # the id of what is not a known scalar: finite and not 0, or else the kept neurons have the same defect
)
MIXED = 1  # of what is finite, but may be 0 where those of kept neurons are not
NOT_FINITE = 2  # of what may not be finite
SHARED = 3  # of what does not depend on the neuron: whatever it is, it is the same at those that are kept
Ids = np.ndarray[Any, np.dtype[np.int64]]  # by position, indices into a ScalarTable
# Finite wherever their operands are, 0 included.
FINITE = frozenset(
    (
        "abs", "add", "add_any", "and", "asinh", "atan", "bessel_i0e", "bessel_i1e", "ceil", "clamp", "complex", "conj",
        "convert_element_type", "copy", "copy_p", "cos", "cosh", "eq", "erf", "erfc", "exp", "exp2", "expm1", "floor",
        "ge", "gt", "imag", "is_finite", "le", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "not", "or",
        "real", "reduce_precision", "round", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
        "sub", "tan", "tanh", "xor",
    )
)  # fmt: skip
POSITIVE = frozenset(("cosh", "exp", "exp2", "logistic"))  # never 0


class ScalarTable:
    """Known scalars, each stored once and referred to by its id, and what primitives make of them."""

    def __init__(self) -> None:
        self._scalars: list[Any] = [
            None,
            None,
            np.asarray(np.nan),
            None,
        ]  # UNKNOWN, MIXED, NOT_FINITE, SHARED
        self._id_of: dict[tuple[str, bytes], int] = {}
        self._folded: dict[tuple[int, tuple[int, ...]], int] = {}

    def id_of(self, scalar: Any) -> int:
        """The id of a scalar array, `UNKNOWN` of None."""
        if scalar is None:
            return UNKNOWN
        if _is_zero(scalar):
            scalar = np.zeros_like(scalar)  # -0 is the same as 0
        key = (str(scalar.dtype), scalar.tobytes())
        if key not in self._id_of:
            self._id_of[key] = len(self._scalars)
            self._scalars.append(scalar)
        return self._id_of[key]

    def contraction_obstacle(self, ids: tuple[int, ...]) -> str:
        """Why a contraction of these scalars at a removed neuron is not exact; empty if it is."""
        scalars = [self._scalars[i] for i in ids]
        for scalar in scalars:
            if _is_not_finite(scalar):
                return f"has activations that would be {scalar} where a neuron is removed"
        if not any(map(_is_zero, scalars)):
            return "is contracted with a kernel that does not become 0 with its parameters"
        return ""

    def equals(self, i: int, scalar: Any) -> int:
        """1 if `i` is the id of this scalar, else 0."""
        known = self._scalars[i]
        return int(known is not None and bool(known == scalar))

    def elementwise(self, equation: Equation, ids: tuple[int, ...]) -> int:
        """The result of an elementwise primitive."""
        key = (id(equation), ids)
        if key not in self._folded:
            self._folded[key] = self._elementwise(equation, ids)
        return self._folded[key]

    def _elementwise(self, equation: Equation, ids: tuple[int, ...]) -> int:
        name = equation.name
        if ids and all(i == SHARED for i in ids):
            return SHARED
        if name == "select_n" and not self.known(ids[0]):
            branches = [i for i in ids[1:] if i != SHARED]
            return self.joined([*branches, *([UNKNOWN] if len(branches) < len(ids) - 1 else [])])
        if name == "select_n":
            return ids[1 + int(self._scalars[ids[0]])]
        if NOT_FINITE in ids:
            return MIXED if equation.source.outvars[0].aval.dtype == np.bool_ else NOT_FINITE
        if MIXED in ids and ((name in ("div", "rem") and ids[1] == MIXED) or name == "pow"):
            return NOT_FINITE
        made = _fold(equation, [self._scalars[i] for i in ids])
        found = NOT_FINITE if made is not None and np.isnan(made).any() else self.id_of(made)
        if found == UNKNOWN and MIXED in ids and name not in POSITIVE:
            divides = name == "div" and ids[1] != MIXED
            powers = name == "integer_pow" and equation.params["y"] >= 0
            return MIXED if name in FINITE or divides or powers else NOT_FINITE
        return found

    def known(self, i: int) -> bool:
        """Whether the scalar is known."""
        return i > SHARED

    def joined(self, ids: Sequence[int]) -> int:
        """What may be any of these."""
        distinct = {*ids}
        if len(distinct) == 1:
            return distinct.pop()
        if any(_is_not_finite(self._scalars[i]) for i in distinct):
            return NOT_FINITE
        may_be_zero = any(i == MIXED or _is_zero(self._scalars[i]) for i in distinct)
        return MIXED if may_be_zero else UNKNOWN

    def along(self, array: np.ndarray[Any, Any], axis: int) -> Ids:
        """The ids of a known array by position along an axis."""
        rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if not rows.shape[1]:
            return np.full(len(rows), UNKNOWN)
        if len(rows) > 1 and (rows == rows[:1]).all() and not (rows == rows[0, 0]).all():
            return np.full(len(rows), SHARED)
        finite = np.isfinite(rows).all(1) if rows.dtype.kind in "fc" else np.ones(len(rows), bool)
        equal, zero = (rows == rows[:, :1]).all(1), (rows == 0).any(1)
        return np.array(
            [
                self.id_of(row[0]) if same else NOT_FINITE if not fine else MIXED if some_zero else UNKNOWN
                for row, same, fine, some_zero in zip(rows, equal, finite, zero, strict=True)
            ],
            np.int64,
        )

    def reduced(self, equation: Equation, i: int) -> int:
        """The result of a reduction over any number of equal scalars."""
        if i == SHARED:
            return SHARED
        scalar = self._scalars[i]
        depends_on_count = equation.name.endswith(("sum", "prod", "logsumexp"))
        if depends_on_count and not (_is_zero(scalar) and "log" not in equation.name):
            return i if _is_not_finite(scalar) or i == MIXED else UNKNOWN
        return i

    def product(self, ids: tuple[int, ...], zero: int) -> int:
        """The result of a contraction along an axis that operands carry to the output: 0 if one of them is 0."""
        scalars = [self._scalars[i] for i in ids]
        if any(map(_is_not_finite, scalars)):
            return NOT_FINITE
        if any(map(_is_zero, scalars)):
            return zero
        return MIXED if MIXED in ids else UNKNOWN

    def written(self, ids: tuple[int, ...]) -> int:
        """The result of a scatter of updates into an operand, whatever it does where they meet."""
        scalars = [self._scalars[i] for i in ids]
        return ids[0] if all(map(_is_zero, scalars)) else self.joined([*ids, MIXED])


def _is_zero(scalar: Any) -> bool:
    return scalar is not None and bool(scalar == 0)


def _is_not_finite(scalar: Any) -> bool:
    return scalar is not None and not bool(np.isfinite(scalar))


def _fold(equation: Equation, scalars: list[Any]) -> Any:
    """An elementwise primitive on known (else None) scalars; nan where the result may not be finite.

    Unknown scalars are taken to be finite and not 0: where they are not, the kept neurons of the same layer have
    the same defect.
    """
    name = equation.name
    known = [scalar for scalar in scalars if scalar is not None]
    if len(known) == len(scalars):
        try:
            with jax.ensure_compile_time_eval():
                return np.asarray(equation.source.primitive.bind(*known, **equation.source.params))
        except FloatingPointError:  # jax_debug_nans
            return np.asarray(np.nan)
    real = jnp.issubdtype(equation.source.outvars[0].aval.dtype, jnp.inexact)
    divided_by_zero = name in ("div", "rem") and _is_zero(scalars[-1])
    power_of_zero = name == "pow" and _is_zero(scalars[0])
    not_finite = any(map(_is_not_finite, known)) and name not in ("max", "min", "clamp")
    if real and (not_finite or divided_by_zero or power_of_zero):
        return np.asarray(np.nan)
    if name == "mul" or (name == "div" and _is_zero(scalars[0])):
        return next((scalar for scalar in known if _is_zero(scalar)), None)
    return None
