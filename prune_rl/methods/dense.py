"""Train the wide network and remove nothing."""

from __future__ import annotations

import dataclasses

from prune_rl.learners.config import LearnerConfig

TITLE = "dense, nothing pruned"
SETS_ACTOR_WIDTHS = False


def learner_config(learner: LearnerConfig) -> LearnerConfig:
    """Without pruning options, whatever was set for them."""
    return dataclasses.replace(learner, prune=None)


control = learner_config
