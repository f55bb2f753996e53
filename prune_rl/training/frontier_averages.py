"""Means of the policies that a run kept: of each seed and set of neurons one, a further candidate of the frontier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prune_rl.export.policy import Policy
from prune_rl.export.policy_average import average_policies
from prune_rl.runs.frontier import Kept
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.training.config import Config

# The mean of fewer policies is no candidate, and more of them do not belong together: a narrow policy moves on.
LEAST_AVERAGED, MOST_AVERAGED = 4, 8


def averages(config: Config, path: Path, policies: Mapping[Kept, Policy]) -> dict[Kept, Policy]:
    """The mean of the newest policies of each seed and set of neurons, at the step of the last one.

    While a network narrows, the return of consecutive policies varies with the noise of the updates. Their mean has
    less of it: docs/design.md, "Dynamic threshold". Policies have the same neurons where the run in ``path`` had the
    same masks. Those at steps whose masks are missing or damaged are left out.
    """
    history = MaskHistory(path / "masks")
    same: dict[tuple[int, bytes], dict[Kept, Policy]] = {}
    for key, policy in sorted(policies.items()):
        # Where nothing is pruned, the neurons stay.
        member = config.all_seeds.index(key.seed)
        neurons = b"" if config.learner.prune is None else _neurons(history, key.step, member)
        if neurons is not None and not key.averaged:
            same.setdefault((key.seed, neurons), {})[key] = policy
    groups = [group for group in same.values() if len(group) >= LEAST_AVERAGED]
    newest = [dict(list(group.items())[-MOST_AVERAGED:]) for group in groups]
    return {max(group)._replace(averaged=True): average_policies(list(group.values())) for group in newest}


def _neurons(history: MaskHistory, step: int, member: int) -> bytes | None:
    """What is equal where the neurons of a member's actor are; None if that is not known."""
    try:
        masks = history.read(step)
        return b"".join(masks[name][member].tobytes() for name in sorted(masks) if name.startswith("actor/"))
    except (ValueError, IndexError):
        return None
