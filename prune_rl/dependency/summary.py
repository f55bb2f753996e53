"""Neuron groups as text: their names, the parts of leaves they have, and a table of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import IO

from prune_rl.dependency.groups import ROLES, NeuronGroups, Slice, path_string
from prune_rl.dependency.tree_paths import KeyPath

# Names that layers of a value function usually have; "value" alone is one of the projections of attention.
CRITIC = re.compile(
    r"critic|(^|[/_])(vf|qf\d?|q_?net\w*|value_?(head|net\w*|function))($|[/_\d])", re.IGNORECASE
)
CAUTION = (
    "{names} look like groups of a critic. Pruning a critic as hard as the actor costs return, and only the actor is "
    "needed to act. Leave the critic out (find_groups of the actor's output alone, or groups.select), or give it a "
    "smaller share (prune_rl.shares)."
)


def explain(groups: NeuronGroups, file: IO[str] | None = None) -> None:
    """Print what `find_groups` found, and what it refused and why.

    One row per group: its name, its neurons, and the leaves and axes that lose their positions when a neuron goes,
    by role: "in" makes the neuron, "bias" is joined to it, "out" reads it. Below, axes that look like neurons but
    cannot be removed exactly, with the reason and the primitive of JAX responsible. Where some of the groups have the
    name of a critic, a caution follows.

    Args:
      groups: from `find_groups`.
      file: where to print; standard output if None.
    """
    from rich.console import Console
    from rich.table import Table

    found = Table("group", "neurons", "role", "leaf and axis", title="Neuron groups", title_justify="left")
    for group in groups.values():
        first = True
        for role in ROLES:
            pieces = [described(piece) for piece in group.slices if piece.role == role]
            if pieces:
                found.add_row(
                    *((group.name, str(group.size)) if first else ("", "")), role, "\n".join(pieces)
                )
                first = False
        found.add_section()
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    console.print(found)
    if groups.rejected:
        refused = Table("leaf and axis", "because its axis", title="Not removable", title_justify="left")
        for what, reason in groups.rejected:
            refused.add_row(what, reason)
            refused.add_section()
        console.print(refused)
    critics = [name for name in groups if CRITIC.search(name)]
    if 0 < len(critics) < len(groups):
        console.print(CAUTION.format(names=", ".join(critics)))


def described(piece: Slice) -> str:
    """The leaf and its axis, with the range of positions where the group has a part of it."""
    text = f"{path_string(piece.path)} axis {piece.axis}"
    if piece.positions is None:
        return text
    taken = sorted(itertools.chain.from_iterable(piece.positions))
    if len(taken) == piece.length:
        return text
    return f"{text} {_ranges(taken)}"


def _ranges(taken: list[int]) -> str:
    """[0:3, 6:9] for the positions 0, 1, 2, 6, 7, 8."""
    runs: list[list[int]] = []
    for position in taken:
        if runs and runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    shown = ", ".join(f"{start}:{stop}" for start, stop in runs[:4])
    return f"[{shown}{', …' if len(runs) > 4 else ''}]"


def group_names(groups: list[tuple[Slice, ...]], kernels: set[KeyPath]) -> list[str]:
    """The layer's path where only this group's kernels lie under it, else the path of the incoming leaf."""
    names = []
    for slices in groups:
        incoming = [s.path for s in slices if s.role != "out"]
        own = {s.path for s in slices if s.role == "in"}
        layer = incoming[0][:-1]
        while any(path[: len(layer)] != layer for path in incoming):
            layer = layer[:-1]
        shared = any(path[: len(layer)] == layer for path in kernels - own)
        names.append(path_string(incoming[0] if shared or not layer else layer))
    # One kernel with several free axes gives several groups the same path, as does one that is split.
    marks: tuple[Callable[[Slice], str], ...] = (
        lambda piece: f"[{piece.axis}]",
        lambda piece: _ranges(sorted(itertools.chain(*piece.positions or ()))),
    )
    for mark in marks:
        suffixes = [mark(slices[0]) for slices in groups]
        taken = {name: {s for n, s in zip(names, suffixes, strict=True) if n == name} for name in names}
        names = [
            name + suffix if len(taken[name]) > 1 else name
            for name, suffix in zip(names, suffixes, strict=True)
        ]
    again = {name: [n for n, other in enumerate(names) if other == name] for name in names}
    return [
        f"{name}#{again[name].index(n)}" if len(again[name]) > 1 else name for n, name in enumerate(names)
    ]
