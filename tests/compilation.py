"""Compilation for programs that tests run a few times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

# The compiler's options, for other ways to compile.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def quick_jit(fn: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit`` that compiles in a sixth of the time, to slower programs, whatever the environment says."""
    return jax.jit(fn, compiler_options=QUICK, **options)


def optimized_jit(fn: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit`` with the optimisations that a run has, which the tests' environment turns off."""
    full = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    return jax.jit(fn, compiler_options=full, **options)
