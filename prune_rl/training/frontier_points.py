"""When a run keeps a policy while its network narrows, and which of them it keeps."""

from __future__ import annotations

import math

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_schedules

# At most so many times a run looks whether there is a policy to keep.
LOOKS = 150
# From this many neurons on, one policy is kept for every number of them.
FEW = 12


def frontier_updates(config: LearnerConfig, number: int) -> list[int]:
    """The updates after which there may be a policy to keep; ``number`` as in ``frontier_level``.

    Each is the last one before a mask update: a network has had the most training at its width then. Where a gate can
    hold mask updates back, they go on to the end of training.
    """
    if config.prune is None or number < 1:
        return []
    schedule = mask_schedules(config)["actor"]
    last = config.num_updates if config.prune.gate is not None else schedule.last
    due = range(schedule.first, last + 1, schedule.every)
    return [update - 1 for update in due[:: -(-len(due) // LOOKS)] if update > schedule.first]


def frontier_level(neurons: int, total: int, number: int) -> int | None:
    """Which of the policies that a run keeps one of so many neurons would be; None: it is as wide as at the start.

    Levels are ``number`` steps of equal ratio between ``total`` neurons and one, and one per number of neurons among
    the last few.
    """
    if neurons >= total:
        return None
    if neurons <= FEW:
        return -neurons
    return 1 + math.floor(number * math.log(total / neurons) / math.log(total))
