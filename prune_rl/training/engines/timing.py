"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from prune_rl.runs.json_text import number, read_object

# The three parts of making a program; loading one from the persistent cache counts as compiling it.
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace_seconds",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_seconds",
    "/jax/core/compile/backend_compile_duration": "compile_seconds",
}
_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Timing:
    """Wall-clock seconds of a run by what it did, and what compilation cost.

    ``stepping`` is acting and environments (0 where these are on the device), ``learning`` the rest of training,
    ``compiling`` the time that training waited for programs, ``shrinking`` the gathering into smaller arrays. The last
    five count the work of all threads: ``trace_seconds``, ``lower_seconds`` and ``compile_seconds`` of ``programs``, of
    which ``cached`` were loaded from the persistent cache.
    """

    stepping: float = 0.0
    learning: float = 0.0
    compiling: float = 0.0
    shrinking: float = 0.0
    checkpoints: float = 0.0
    evaluation: float = 0.0
    total: float = 0.0
    trace_seconds: float = 0.0
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    programs: int = 0
    cached: int = 0

    @contextlib.contextmanager
    def measured(self, phase: str) -> Iterator[None]:
        """Adds the seconds inside to the field ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, phase, getattr(self, phase) + time.perf_counter() - start)

    @contextlib.contextmanager
    def counting_programs(self) -> Iterator[None]:
        """Counts what is traced, lowered and compiled inside, in any thread."""

        def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
            name = _EVENTS.get(event)
            if name is not None:
                setattr(self, name, getattr(self, name) + duration_secs)
                self.programs += name == "compile_seconds"

        def on_event(event: str, **_: str | int) -> None:
            self.cached += event == _HIT

        jax.monitoring.register_event_duration_secs_listener(on_duration)
        jax.monitoring.register_event_listener(on_event)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(on_duration)
            jax.monitoring.unregister_event_listener(on_event)

    def add(self, other: Mapping[str, Any]) -> None:
        """Adds what an earlier part of the same run measured, from ``to_json``."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + other.get(field.name, 0))

    def to_json(self) -> dict[str, Any]:
        """The fields, seconds to the millisecond."""
        values = dataclasses.asdict(self)
        return {
            name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()
        }

    @classmethod
    def read(cls, path: Path) -> Timing:
        """From a file that holds ``to_json``; all 0 where there is none, or it cannot be read."""
        try:
            data = read_object(path)
            values: dict[str, Any] = {
                field.name: number(data[field.name]) for field in dataclasses.fields(cls)
            }
            return cls(**values)
        except (OSError, ValueError, KeyError):
            return cls()

    def compilation(self) -> str:
        """One sentence about what compilation cost."""
        work = self.trace_seconds + self.lower_seconds + self.compile_seconds
        return (
            f"{self.programs} programs compiled in {work:.1f} s, {self.cached} of them from the cache; "
            f"training waited {self.compiling:.1f} s for them"
        )
