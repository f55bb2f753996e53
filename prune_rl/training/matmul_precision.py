"""The precision of products of matrices while a run trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import jax

MatmulPrecision = Literal["default", "high", "highest"]


@contextlib.contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Programs that are traced inside have this precision, where an operation names none; "default" changes nothing.

    In all threads, which ``jax.default_matmul_precision`` does not reach: programs are compiled ahead in another one.
    """
    if precision == "default":
        yield
        return
    config: Any = jax.config  # its attributes and methods have no types
    before = config.jax_default_matmul_precision
    config.update("jax_default_matmul_precision", precision)
    try:
        yield
    finally:
        config.update("jax_default_matmul_precision", before)
