"""A `main` for the exported C code, which compares its actions with those that NumPy gave on export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_rl.export.activations import Array
from prune_rl.export.c.literals import array, double_literal
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete

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


def _is_clear(policy: Policy, x: Array) -> NDArray[np.bool_]:
    """Whether rounding cannot decide which action is best; the first one where that is true of none."""
    outputs, action = policy.outputs(x).astype(np.float64), policy.action
    clear: Any = np.ones(len(x), bool)
    if isinstance(action, Discrete) and action.n > 1:
        ranked = np.sort(outputs, -1)
        clear = ranked[:, -1] - ranked[:, -2] > 1e-4 * (1.0 + np.abs(outputs).max(-1))
    elif isinstance(action, Box) and np.dtype(action.dtype).kind in "iub":
        clear = (np.abs(outputs - np.floor(outputs) - 0.5) > 1e-3).all(-1)
    found: NDArray[np.bool_] = clear if clear.any() else np.arange(len(x)) == 0
    return found


def self_test(policy: Policy, kind: str, size: int, act: Callable[[Array], Any] | None = None) -> str:
    """The C text, under a macro; `@` is the prefix of names. ``act``: what is expected instead of ``policy``."""
    obs, action = vectors(policy), policy.action
    actions = np.asarray((act or policy)(obs)).reshape(len(obs), size)
    if isinstance(action, Box):
        values = actions.astype(np.float64)
        low, high = np.array(action.low, np.float64), np.array(action.high, np.float64)
        tolerance = np.where(np.isfinite(high - low), high - low, 1.0 + np.abs(values)) * _TOLERANCE
        # Half precision: one step of it, since rounding may decide which of two neighbours it is.
        if action.dtype == "float16":
            tolerance = np.maximum(tolerance, np.spacing(np.abs(actions)).astype(np.float64))
        tolerance = np.broadcast_to(tolerance, values.shape)
        expected = array("double", "@test_action", values, map(double_literal, values.ravel()))
        expected += array("double", "@test_tolerance", tolerance, map(double_literal, tolerance.ravel()))
        differs = (
            "const double difference = (double)action[j] - @test_action[k];\n"
            "            same = same && (difference <= @test_tolerance[k]) && (difference >= -@test_tolerance[k]);"
        )
    else:
        suffix = "LL" if kind == "int64_t" else ""
        expected = array(kind, "@test_action", actions, [f"{value}{suffix}" for value in actions.ravel()])
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
