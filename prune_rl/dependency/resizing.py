"""Which positions of a program's values are kept, when some neurons are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prune_rl.dependency.exactness import check_removable
from prune_rl.dependency.jaxpr import Program
from prune_rl.dependency.propagation import Choices, Positions, link, next_choices
from prune_rl.dependency.tree_paths import Flags, Indices


class KeptPositions:
    """Which positions of a program's values are kept: all but those in the sets that were removed."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self._removed = np.zeros(positions.size, bool)
        self._assigned: list[tuple[Indices, Flags]] = []

    def assign(self, value: int, axis: int, keep: Flags) -> None:
        """Keep only these positions along an axis of a value, bool[length], and those in one set with them."""
        roots = self.positions.of(value, axis)
        self._assigned.append((roots, keep))
        self._removed[roots[~keep]] = True

    @property
    def removed(self) -> Indices:
        """The roots of the sets that were removed."""
        return np.flatnonzero(self._removed)

    def along(self, value: int, axis: int) -> Flags:
        """Which positions along an axis are kept, bool[traced length]."""
        flags: Flags = ~self._removed[self.positions.of(value, axis)]
        return flags

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value after removal."""
        rank = len(self.positions.program.shape(value))
        return tuple(int(self.along(value, i).sum()) for i in range(rank))

    def changed(self, value: int) -> bool:
        """Whether a value has lost positions."""
        return self.shape(value) != self.positions.program.shape(value)

    def array(self, value: int) -> np.ndarray[Any, Any] | None:
        """The traced array that a value is known to be, since it is made of constants alone."""
        return self.positions.array(value)

    def compress(self, value: int, array: Any) -> Any:
        """The kept positions of an array of the traced shape; NumPy for NumPy."""
        for axis in range(np.ndim(array)):
            keep = self.along(value, axis)
            if not keep.all():
                array = array.take(np.flatnonzero(keep), axis)
        return array

    def refused(self) -> Indices:
        """Sets that were removed at one value and kept at another, or that are blocked."""
        inconsistent = [roots[keep & self._removed[roots]] for roots, keep in self._assigned]
        removed = self.removed
        blocked = removed[self.positions.is_blocked(removed)]
        return np.concatenate([*inconsistent, blocked]).astype(np.int64)

    def check(self) -> None:
        """Raise ValueError if a set is refused."""
        refused, reasons = self.refused(), self.positions.reasons()
        for root in refused.tolist():
            why = reasons.get(root, ("belongs to neurons that are kept and to others that are not",))
            raise ValueError(
                f"this function cannot run on fewer neurons, because their axis {'; '.join(why)}. "
                "Find the groups in this same function."
            )


def resize(
    program: Program,
    parameters: int,
    assign: Callable[[KeptPositions], None],
    exact: bool = False,
    carried: Sequence[tuple[int, int]] = (),
) -> KeptPositions:
    """What is kept of every value of a program, given what `assign` keeps of some.

    With `exact`, the removal must be exact: the function on smaller arrays is the masked one.

    Raises:
      ValueError: the program cannot run without the removed positions.
    """
    choices: Choices = {}
    while True:
        kept = KeptPositions(link(program, parameters, choices, carried))
        assign(kept)
        if exact:
            check_removable(kept.positions, kept.removed)
        refused = kept.refused()
        following = next_choices(kept.positions, choices, refused) if len(refused) else None
        if following is None:
            kept.check()
            return kept
        choices = following
