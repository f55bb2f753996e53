"""The gate: neurons are removed only while training goes well."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NO_PERFORMANCE = -float("inf")
"""A performance that is not known yet. Any value that is not finite means the same."""


def raise_reference(reference: jax.Array, performance: jax.Array) -> jax.Array:
    """The highest performance so far, float32[]; a performance that is not finite leaves it unchanged."""
    known = jnp.isfinite(performance)
    return jnp.where(known, jnp.maximum(reference, performance), reference).astype(jnp.float32)


def gate_is_open(
    reference: jax.Array, performance: jax.Array, tolerance: float | jax.Array | None
) -> jax.Array:
    """``performance ≥ reference − δ |reference|`` with δ = ``tolerance``, as bool[].

    The gate is also open without a tolerance, without a reference, and while the performance is not finite. Do not
    pass the returns of evaluation episodes: a policy must not be selected on the episodes that are reported.

    Args:
        reference: float32[], from ``raise_reference``; −inf if there is none yet.
        performance: float32[], higher is better, such as the running training return.
        tolerance: δ ≥ 0, or None for a gate that is always open.
    """
    if tolerance is None:
        return jnp.ones((), bool)
    known = jnp.isfinite(reference) & jnp.isfinite(performance)
    best = jnp.where(known, reference, 0.0)
    return ~known | (performance >= best - tolerance * jnp.abs(best))
