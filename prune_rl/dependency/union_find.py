"""Disjoint sets of numbered positions (union-find), as arrays."""

from __future__ import annotations

import numpy as np

from prune_rl.dependency.tree_paths import Flags, Indices


class DisjointSets:
    """A union-find on arrays of numbered positions. A set may be blocked, for reasons, and may hold parameters."""

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
        """The root of each position's set."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def union(self, a: Indices, b: Indices) -> None:
        """Unite the sets of a[n] and b[n], for every n."""
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
        """Mark the sets of these positions as not removable."""
        self._reasons.append((labels, reason))
        self._blocked[self.find(labels)] = True

    def mark(self, labels: Indices) -> None:
        """Mark the sets of these positions as holding a parameter's."""
        self._marked[self.find(labels)] = True

    def is_marked(self, labels: Indices) -> Flags:
        """Which positions are in a set with one of a parameter."""
        return self._marked[self.find(labels)]

    def is_blocked(self, labels: Indices) -> Flags:
        """Which positions are not removable."""
        return self._blocked[self.find(labels)]

    def reasons(self) -> dict[int, tuple[str, ...]]:
        """The reasons of every blocked set, by root, in the order in which they were found."""
        found: dict[int, dict[str, None]] = {}
        for labels, reason in self._reasons:
            for root in np.unique(self.find(labels)).tolist():
                found.setdefault(root, {})[reason] = None
        return {root: tuple(reasons) for root, reasons in found.items()}

    def new(self, count: int) -> Indices:
        """So many new positions, each in a set of its own."""
        while self._size + count > len(self._parent):
            n = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(n, 2 * n)])
            self._blocked, self._marked = (
                np.concatenate([flags, np.zeros(n, bool)]) for flags in (self._blocked, self._marked)
            )
        self._size += count
        return np.arange(self._size - count, self._size)
