"""A `main` for the exported C code, which compares its actions with those that NumPy gave on export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prune_rl.export.activations import Array
from prune_rl.export.c.literals import array, double_literal
from prune_rl.export.policy import Policy
from prune_rl.spaces import Discrete

_VECTORS = 12
_TOLERANCE = 1e-6  # of the width of the bounds, or of the action where there are none


def vectors(policy: Policy) -> Array:
    """Observations float32[N, D] for the test: random ones, and extreme ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_VECTORS, policy.observation_size)).astype(np.float32)
    if policy.normalisation is not None:
        mean, std, _ = policy.normalisation
        x = x * std + mean
    extremes = np.array([0.0, 1e30, -1e30, 1e-40], np.float32)
    x = np.concatenate([x, np.broadcast_to(extremes[:, None], (len(extremes), x.shape[1]))])
    return x[_is_clear(policy, x)]


def _is_clear(policy: Policy, x: Array) -> Array:
    """Whether rounding cannot decide which action is best."""
    if not isinstance(policy.action, Discrete) or policy.action.n == 1:
        return np.ones(len(x), bool)
    outputs = np.sort(policy.outputs(x).astype(np.float64), -1)
    return outputs[:, -1] - outputs[:, -2] > 1e-4 * (1.0 + np.abs(outputs).max(-1))


def self_test(policy: Policy, kind: str, size: int, act: Callable[[Array], Any] | None = None) -> str:
    """The C text, under a macro; `@` is the prefix of names. ``act``: what is expected instead of ``policy``."""
    obs = vectors(policy)
    actions = np.asarray((act or policy)(obs)).reshape(len(obs), size)
    if kind in ("float", "double"):
        values = actions.astype(np.float64)
        expected = array("double", "@test_action", values, map(double_literal, values.ravel()))
        low, high = np.array(policy.action.low, np.float64), np.array(policy.action.high, np.float64)
        tolerance = np.where(np.isfinite(high - low), high - low, 1.0 + np.abs(values)) * _TOLERANCE
        # Half precision: one step of it, since rounding may decide which of two neighbours it is.
        if policy.action.dtype == "float16":
            tolerance = np.maximum(tolerance, np.spacing(np.abs(actions)).astype(np.float64))
        tolerance = np.broadcast_to(tolerance, values.shape)
        expected += array("double", "@test_tolerance", tolerance, map(double_literal, tolerance.ravel()))
        differs = (
            "const double difference = (double)action[j] - @test_action[k];\n"
            "            same = same && (difference <= @test_tolerance[k]) && (difference >= -@test_tolerance[k]);"
        )
    else:
        expected = array(kind, "@test_action", actions, _integers(actions, kind))
        differs = "same = same && (action[j] == @test_action[k]);"
    return f"""
#ifdef @PREFIX_SELF_TEST
#include <stdio.h>

{array("float", "@test_observation", obs)}{expected}
int main(void)
{{
    int failures = 0;
    for (uint32_t i = 0U; i < {len(obs)}U; i++) {{
        {kind} action[{size}];
        int same = @act(&@test_observation[i * {policy.observation_size}U], action) == 0;
        for (uint32_t j = 0U; j < {size}U; j++) {{
            const uint32_t k = (i * {size}U) + j;
            {differs}
        }}
        failures += same ? 0 : 1;
    }}
    (void)printf("%d of {len(obs)} actions differ from NumPy's\\n", failures);
    return failures;
}}
#endif
"""


def _integers(actions: Array, kind: str) -> list[str]:
    suffix = {"int64_t": "LL", "uint64_t": "ULL", "uint32_t": "UL"}.get(kind, "")
    # The most negative integer has no literal of its own.
    return [
        f"(-{-int(v) - 1}{suffix} - 1)" if int(v) in (-(2**31), -(2**63)) else f"{int(v)}{suffix}"
        for v in actions.ravel()
    ]
