"""What is left of a program's values when neurons are taken out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prune_rl.dependency.exactness import check_removable
from prune_rl.dependency.index_maps import Indices
from prune_rl.dependency.jaxpr import Program
from prune_rl.dependency.propagation import Choices, Positions, link, next_choices
from prune_rl.dependency.union_find import Flags


class Kept:
    """Which positions of a program's values are kept: all but those of the classes that were taken out."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self._removed = np.zeros(positions.size, bool)
        self._claims: list[tuple[Indices, Flags]] = []

    def set(self, value: int, axis: int, keep: Flags) -> None:
        """Keep these positions along an axis of a value, bool[length], and all that are the same neurons."""
        roots = self.positions.of(value, axis)
        self._claims.append((roots, keep))
        self._removed[roots[~keep]] = True

    @property
    def removed(self) -> Indices:
        """The classes that were taken out."""
        return np.flatnonzero(self._removed)

    def along(self, value: int, axis: int) -> Flags:
        """Which positions along an axis are kept, bool[traced length]."""
        flags: Flags = ~self._removed[self.positions.of(value, axis)]
        return flags

    def shape(self, value: int) -> tuple[int, ...]:
        """The present shape of a value."""
        rank = len(self.positions.program.shape(value))
        return tuple(int(self.along(value, i).sum()) for i in range(rank))

    def changed(self, value: int) -> bool:
        """Whether a value has lost positions."""
        return self.shape(value) != self.positions.program.shape(value)

    def refused(self) -> Indices:
        """Classes that were taken out in one place and kept in another, or that `find_groups` would have refused."""
        torn = [roots[keep & self._removed[roots]] for roots, keep in self._claims]
        gone = self.removed
        return np.concatenate([*torn, gone[self.positions.is_blocked(gone)]]).astype(np.int64)

    def check(self) -> None:
        """Raise ValueError where `find_groups` would have refused."""
        refused, reasons = self.refused(), self.positions.reasons()
        for root in refused.tolist():
            why = reasons.get(root, ("belongs to neurons that are kept and to others that are not",))
            raise ValueError(
                f"this function cannot run on fewer neurons, because their axis {'; '.join(why)}. "
                "Find the groups in this same function."
            )


def settle(program: Program, parameters: int, assign: Callable[[Kept], None], exact: bool = False) -> Kept:
    """What is kept of a program, where `assign` says what is of some of its values.

    With `exact`, what was taken out must have been removable: the masked function is then the smaller one.

    Raises:
      ValueError: the program cannot run on that.
    """
    choices: Choices = {}
    while True:
        kept = Kept(link(program, parameters, choices))
        assign(kept)
        if exact:
            check_removable(kept.positions, kept.removed)
        refused = kept.refused()
        following = next_choices(kept.positions, choices, refused) if len(refused) else None
        if following is None:
            kept.check()
            return kept
        choices = following
