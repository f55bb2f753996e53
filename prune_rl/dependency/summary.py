"""A table of neuron groups for people."""

from __future__ import annotations

from typing import IO

from prune_rl.dependency.find_groups import described
from prune_rl.dependency.groups import ROLES, NeuronGroups


def explain(groups: NeuronGroups, file: IO[str] | None = None) -> None:
    """Print what `find_groups` found, and what it refused and why.

    One row per group: its name, its neurons, and the leaves and axes that lose their positions when a neuron goes,
    by role: "in" makes the neuron, "bias" is joined to it, "out" reads it. Below, axes that look like neurons but
    cannot be removed exactly, with the reason and the primitive of JAX responsible.

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
