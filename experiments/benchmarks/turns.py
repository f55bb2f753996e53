"""Timing things in turns, and the ratios of what was timed.

The speed of a machine drifts and other processes disturb it, so no figure here is taken alone: contenders run one after
the other, again and again, and each repeat gives one ratio between neighbours in time.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """One repeat: how long it took, and how much was done in the unit of its section."""

    seconds: float
    work: float

    @property
    def speed(self) -> float:
        """Work per second."""
        return self.work / self.seconds


class Contender(Protocol):
    """Something that is compiled and warmed up, and does the same work in every call of ``run``."""

    def run(self) -> Timing: ...


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a ratio over repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(ratios: Sequence[float]) -> Spread:
        """Raises ``ValueError`` for no ratio."""
        if not ratios:
            raise ValueError("a spread needs at least one ratio")
        return Spread(statistics.median(ratios), min(ratios), max(ratios))


def take_turns(contenders: Mapping[str, Contender], repeats: int) -> dict[str, list[Timing]]:
    """``repeats`` timings of each contender; every second round is in the opposite order."""
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in list(contenders)[:: -1 if repeat % 2 else 1]:
            timings[name].append(contenders[name].run())
    return timings


def speed_ratio(timings: Sequence[Timing], baseline: Sequence[Timing]) -> Spread:
    """Speed over the baseline's speed, repeat by repeat: above 1 is faster than the baseline."""
    return Spread.of([own.speed / other.speed for own, other in zip(timings, baseline, strict=True)])


def time_ratio(timings: Sequence[Timing], baseline: Sequence[Timing]) -> Spread:
    """Time for the same work over the baseline's, repeat by repeat: above 1 is slower than the baseline."""
    return Spread.of([other.speed / own.speed for own, other in zip(timings, baseline, strict=True)])


def wait_for(tree: Any) -> None:
    """Return when every array of ``tree`` has been computed."""
    jax.tree.map(lambda x: x.block_until_ready(), tree)
