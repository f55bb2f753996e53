"""The gate against its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.gate import NO_PERFORMANCE, gate_is_open, raise_reference


def walk(performances: Sequence[float], tolerance: float | None) -> list[tuple[bool, float]]:
    """(open, reference) at each of them."""
    reference, seen = jnp.float32(NO_PERFORMANCE), []
    for value in performances:
        reference = raise_reference(reference, jnp.float32(value))
        seen.append((bool(gate_is_open(reference, jnp.float32(value), tolerance)), float(reference)))
    return seen


def test_it_is_closed_while_performance_is_low() -> None:
    assert walk([100, 95, 85, 91, 200, 179], 0.1) == [
        (True, 100.0), (True, 100.0), (False, 100.0), (True, 100.0), (True, 200.0), (False, 200.0),
    ]  # fmt: skip


def test_negative_performances_have_the_same_tolerance_below() -> None:
    assert [opened for opened, _ in walk([-100, -109, -111, -50, -56, -54], 0.1)] == [
        True, True, False, True, False, True,
    ]  # fmt: skip
    assert [opened for opened, _ in walk([0.0, -1e-3, 0.0], 0.1)] == [True, False, True]


def test_an_unknown_performance_opens_it_and_leaves_the_reference() -> None:
    for unknown in (math.nan, -math.inf, math.inf):
        assert walk([unknown, 10, unknown, 5], 0.1) == [
            (True, -math.inf), (True, 10.0), (True, 10.0), (False, 10.0),
        ]  # fmt: skip


def test_without_tolerance_it_is_always_open_and_with_zero_tolerance_only_at_the_best() -> None:
    assert walk([5, -1e9, 3], None) == [(True, 5.0)] * 3
    assert [opened for opened, _ in walk([5, 4.99, 5, 6], 0.0)] == [True, False, True, True]


def test_under_jit_scan_and_vmap(count_traces: Any) -> None:
    def run(performances: jax.Array, tolerance: jax.Array) -> Any:
        def step(reference: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            reference = raise_reference(reference, value)
            return reference, gate_is_open(reference, value, tolerance)

        return jax.lax.scan(step, jnp.float32(NO_PERFORMANCE), performances)

    counted = count_traces(jax.vmap(run, (0, None)))
    jitted = jax.jit(counted)
    series = [[100, 95, 85, 91], [-100, -109, -111, -50]]
    for tolerance in (0.1, 0.01):
        references, opened = jitted(jnp.asarray(series, jnp.float32), jnp.float32(tolerance))
        for i, performances in enumerate(series):
            expected = walk(performances, tolerance)
            np.testing.assert_array_equal(opened[i], [each for each, _ in expected])
            assert float(references[i]) == expected[-1][1]
    assert counted.traces == 1
