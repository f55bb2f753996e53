"""C text of numbers and arrays."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def float_literal(value: float | np.floating) -> str:
    """A float32 with as many digits as give its bits back, as `-0.5f`; the largest finite ones for infinities."""
    text = f"{np.nan_to_num(np.float32(value)):.9g}"
    return text + ("f" if any(character in text for character in ".en") else ".0f")


def double_literal(value: float) -> str:
    """A float64, likewise."""
    text = f"{np.nan_to_num(float(value)):.17g}"
    return text if any(character in text for character in ".en") else text + ".0"


def array(kind: str, name: str, values: ArrayLike, literals: Iterable[str] | None = None) -> str:
    """The definition of a constant array; ``literals`` where they are not float32 or plain integers."""
    flat = np.ravel(values)
    if literals is None:
        literals = map(float_literal, flat) if flat.dtype.kind == "f" else map(str, flat.tolist())
    body = textwrap.fill(", ".join(literals), 116, initial_indent="    ", subsequent_indent="    ")
    return f"static const {kind} {name}[{len(flat)}] = {{\n{body}\n}};\n"


def blocked(kernel: np.ndarray) -> np.ndarray:
    """A kernel [in, out] in the order in which the C code reads it: [out // 4, in, 4], then the other outputs' rows."""
    full = kernel.shape[1] // 4 * 4
    blocks = kernel[:, :full].reshape(kernel.shape[0], -1, 4).transpose(1, 0, 2)
    return np.concatenate([blocks.ravel(), kernel[:, full:].T.ravel()])
