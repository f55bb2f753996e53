"""How long a policy takes to act."""

from __future__ import annotations

import time

import numpy as np

from prune_rl.export.artefact import Artefact
from prune_rl.export.policy import Policy


def measure_latency(policy: Policy | Artefact, *, repeats: int = 2000) -> float:
    """Median time of one action at batch size 1, in seconds; includes about 0.05 µs for the clock.

    Raises:
        ValueError: `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    obs = np.random.default_rng(0).standard_normal(policy.observation_size).astype(np.float32)
    for _ in range(min(repeats, 100)):
        policy(obs)
    clock = time.perf_counter_ns
    times = np.empty(repeats)
    for i in range(repeats):
        start = clock()
        policy(obs)
        times[i] = clock() - start
    return float(np.median(times)) * 1e-9
