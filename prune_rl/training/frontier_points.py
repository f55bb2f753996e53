"""When a run keeps a policy while its network narrows, and which of them it keeps."""

from __future__ import annotations

import math

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_schedules

# At most so many times a run looks whether there is a policy to keep.
LOOKS = 150
# From this many neurons on, one level for every number of them.
FEW = 12
# Of each level, so many of the newest policies are kept until they have been played.
NEWEST = 16


def frontier_updates(config: LearnerConfig, number: int) -> list[int]:
    """The updates after which there may be a policy to keep; ``number`` as in ``frontier_level``.

    From the first mask update on, each is the last one before a mask update can be due: a network has had the most
    training at its width then. Without pruning they lie in the second half of training.
    """
    if number < 1:
        return []
    total = config.num_updates
    if config.prune is None or not config.hidden:
        every = -(-total // LOOKS)
        return list(range(total - every * (NEWEST - 1), total, every))
    schedule = mask_schedules(config)["actor"]
    due = range(schedule.first, total + 1, schedule.every)
    return [update - 1 for update in due[:: -(-len(due) // LOOKS)] if update > schedule.first]


def frontier_level(neurons: int, total: int, number: int) -> int:
    """Which of the policies that a run keeps one of so many neurons would be; 0: it is as wide as at the start.

    Levels are ``number`` steps of equal ratio between ``total`` neurons and one, and one per number of neurons among
    the last few.
    """
    if neurons >= total:
        return 0
    if neurons <= FEW:
        return -1 - neurons
    return 1 + math.floor(number * math.log(total / neurons) / math.log(total))
