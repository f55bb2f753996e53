"""Classes of positions that are the same neuron: a union-find on arrays of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from prune_rl.dependency.index_maps import Indices

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Classes:
    """Positions by number, and what holds of whole classes of them: that they cannot be taken out, and why."""

    def __init__(self) -> None:
        self._parent = np.arange(1024)
        self._blocked = np.zeros(1024, bool)
        self._marked = np.zeros(1024, bool)
        self._size = 0
        self._reasons: list[tuple[Indices, str]] = []

    @property
    def size(self) -> int:
        """How many positions there are."""
        return self._size

    def find(self, labels: Indices) -> Indices:
        """The class of every position."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def union(self, a: Indices, b: Indices) -> None:
        """Positions a[n] and b[n] are the same neuron, and so are the classes they are in."""
        if a is b:
            return
        a, b = self.find(a), self.find(b)
        different = a != b
        parent = self._parent
        for x, y in zip(a[different].tolist(), b[different].tolist(), strict=True):
            while parent[x] != x:
                x = int(parent[x])
            while parent[y] != y:
                y = int(parent[y])
            if x != y:
                parent[y] = x
                self._blocked[x] |= self._blocked[y]
                self._marked[x] |= self._marked[y]

    def block(self, labels: Indices, reason: str) -> None:
        """Positions that cannot be taken out."""
        self._reasons.append((labels, reason))
        self._blocked[self.find(labels)] = True

    def mark(self, labels: Indices) -> None:
        """Positions of parameters."""
        self._marked[self.find(labels)] = True

    def is_marked(self, labels: Indices) -> Flags:
        """Which positions are the same neuron as one of a parameter."""
        return self._marked[self.find(labels)]

    def is_blocked(self, labels: Indices) -> Flags:
        """Which positions cannot be taken out."""
        return self._blocked[self.find(labels)]

    def reasons(self) -> dict[int, tuple[str, ...]]:
        """Why the blocked classes are."""
        found: dict[int, dict[str, None]] = {}
        for labels, reason in self._reasons:
            for root in np.unique(self.find(labels)).tolist():
                found.setdefault(root, {})[reason] = None
        return {root: tuple(reasons) for root, reasons in found.items()}

    def new(self, count: int) -> Indices:
        """So many positions, each in a class of its own."""
        while self._size + count > len(self._parent):
            n = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(n, 2 * n)])
            self._blocked, self._marked = (
                np.concatenate([flags, np.zeros(n, bool)]) for flags in (self._blocked, self._marked)
            )
        self._size += count
        return np.arange(self._size - count, self._size)
