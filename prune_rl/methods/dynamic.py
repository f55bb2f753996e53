"""Prune while training goes on, by the learner's options ``prune``."""

from __future__ import annotations

from prune_rl.learners.config import LearnerConfig
from prune_rl.methods.dense import control as control

TITLE = "dynamic pruning"
SETS_ACTOR_WIDTHS = False


def learner_config(learner: LearnerConfig) -> LearnerConfig:
    """The learner as it is. Raises ``ValueError`` if it has no pruning options."""
    if learner.prune is None:
        raise ValueError(
            "learner.prune is null, but method 'dynamic' prunes: set its options, or choose method 'dense'"
        )
    return learner
