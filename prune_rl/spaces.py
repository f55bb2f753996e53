"""What a learner needs to know about an environment: the sizes of its observation and its action."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions start … start + n − 1. A learner counts them from 0, an exported policy from ``start``."""

    n: int
    start: int = 0

    @property
    def bounded(self) -> bool:
        """Whether every action lies between finite bounds."""
        return True

    @property
    def num_outputs(self) -> int:
        """Network outputs that describe one action distribution: one logit per action."""
        return self.n


@dataclasses.dataclass(frozen=True)
class Box:
    """Actions of any shape, with flattened bounds (which may be infinite).

    A learner's actions are float32; an exported policy's have ``dtype``, a name in NumPy, and are rounded where it is
    one of integers. Bounds of integers are Python's, which are exact.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == self.size:
            raise ValueError(
                f"a Box of shape {self.shape} needs {self.size} lower and upper bounds, "
                f"got {len(self.low)} and {len(self.high)}"
            )

    @property
    def size(self) -> int:
        """Number of action components."""
        return math.prod(self.shape)

    @property
    def bounded(self) -> bool:
        """Whether every action lies between finite bounds."""
        return all(map(math.isfinite, (*self.low, *self.high)))

    @property
    def num_outputs(self) -> int:
        """Network outputs that describe one action distribution: one mean per component."""
        return self.size


@dataclasses.dataclass(frozen=True)
class Spec:
    """Flattened observation size, action space, and the observation's own shape, by default [observation_size]."""

    observation_size: int
    action: Discrete | Box
    observation_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.observation_shape is None:
            object.__setattr__(self, "observation_shape", (self.observation_size,))
