"""Seconds of a call that is compiled, over a few repeats."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from prune_rl.bench_device.options import Options


def timed(call: Callable[[int], Any], options: Options, most: int) -> dict[str, Any]:
    """Median, lowest and highest seconds per unit of ``call(n)``, which does n units of work and waits for them.

    Everything must be compiled. A repeat has as many units as fit ``options.repeat_seconds``, but at most ``most``.
    """
    start = time.perf_counter()
    call(1)
    once = max(time.perf_counter() - start, 1e-9)
    n = min(max(1, math.ceil(options.repeat_seconds / once)), most)
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        call(n)
        seconds.append((time.perf_counter() - start) / n)
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "repeats": options.repeats,
        "per_repeat": n,
    }
