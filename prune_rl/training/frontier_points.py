"""When a run keeps a policy while its network narrows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_schedules, planned_widths

# Below this many neurons every number of them is kept.
FEW = 12


def frontier_updates(
    config: LearnerConfig, groups: NeuronGroups, sizes: Mapping[str, int], number: int
) -> list[int]:
    """The updates after which the policy is kept: about ``number`` of them, and one per neuron among the last few.

    Each is the last one before a mask update, when the network has had the most training at its width. The widths of
    the schedule decide, in steps of equal ratio; other rules may leave more neurons.

    Args:
        config: of a pruned run.
        groups: the groups that may be pruned.
        sizes: {group name: neurons before any pruning}.
        number: 0 keeps none.
    """
    if config.prune is None or number < 1:
        return []
    actor = groups.within("actor")
    if not actor:
        return []
    schedule = mask_schedules(config)["actor"]
    total = sum(sizes[name] for name in actor)

    def neurons(update: int) -> int:
        planned = planned_widths(config, groups, sizes, update)
        return sum(planned[name] for name in actor)

    def level(count: int) -> int:
        return math.floor(number * math.log(total / max(count, 1)) / math.log(total))

    found = []
    for update in range(schedule.first, schedule.last + 1, schedule.every):
        before, after = neurons(update - 1), neurons(update)
        narrowed = before < total
        if narrowed and after < before and (level(after) > level(before) or before <= FEW):
            found.append(update - 1)
    return found
