"""How many cores this process has."""

from __future__ import annotations

import os


def available_cores() -> int:
    """CPU cores that this process may use: a job scheduler may lend it only some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
