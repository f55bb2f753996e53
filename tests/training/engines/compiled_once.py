"""Engines of a test that have the same programs compile them once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

PROGRAMS: dict[tuple[Hashable, ...], dict[Any, Any]] = {}


def sharing_programs(engine: Any, *key: Hashable) -> Any:
    """``engine``, with what was compiled for another one of the same key, and whose own serves the next.

    Args:
        engine: a new one, of which nothing is compiled yet.
        key: all that its programs depend on beside the widths of its arrays, such as engine, environment, number of
            seeds, configuration and devices.
    """
    programs = PROGRAMS.setdefault(key, {})
    # An engine that is closed cancels what it has not begun to compile ahead.
    for name in [name for name, future in programs.items() if future.cancelled()]:
        del programs[name]
    engine._programs._futures = programs
    return engine
