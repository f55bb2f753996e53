"""What a learner needs to know about an environment: the sizes of its observation and its action."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 … n − 1."""

    n: int

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
    """Real-valued actions of any shape, with flattened bounds (which may be infinite)."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

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
    """Flattened observation size and action space of an environment."""

    observation_size: int
    action: Discrete | Box
