"""What engines in several processes tell each other after every call, so that all decide alike what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.learners.registry import Metrics
from prune_rl.processes.group import ProcessGroup
from prune_rl.training.engines.faults import Fault, Faults


def gather_updates(
    group: ProcessGroup, metrics: Metrics, masks: dict[str, Any]
) -> tuple[Metrics, dict[str, Any]]:
    """The metrics [n, S] and masks [S, size] of the members of all processes, from those of the own ones."""
    each = group.gather("updates", {"metrics": metrics, "masks": masks})
    return _joined([found["metrics"] for found in each], 1), _joined([found["masks"] for found in each], 0)


def gather_faults(group: ProcessGroup, faults: Faults) -> None:
    """Add what other processes found to ``faults``, which are of all members."""
    own = {"faults": faults.to_json(), "members": faults.members}
    for found in group.gather("faults", own):
        for fault, member in zip(found["faults"], found["members"], strict=True):
            faults.add(Fault(**fault), member)


def blank(tree: Any) -> Any:
    """A tree without NaN and without neurons, for a process all of whose members are frozen.

    The program goes on with it, since arrays get smaller in all processes at once.
    """

    def cleared(x: Any) -> Any:
        clear = (jnp.floating, jnp.bool_)
        return jnp.zeros_like(x) if any(jnp.issubdtype(x.dtype, kind) for kind in clear) else x

    return jax.tree.map(cleared, tree)


def _joined(trees: Sequence[Any], axis: int) -> Any:
    return jax.tree.map(lambda *x: np.concatenate(x, axis=axis), *trees)
