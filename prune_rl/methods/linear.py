"""Train a linear policy, without a hidden neuron, beside a critic that keeps its width."""

from __future__ import annotations

import dataclasses

from prune_rl.learners.config import LearnerConfig
from prune_rl.methods.small import control as control

TITLE = "linear policy"
SETS_ACTOR_WIDTHS = True


def learner_config(learner: LearnerConfig) -> LearnerConfig:
    """No hidden layers in the actor; those of the critic as they were. No pruning."""
    return dataclasses.replace(learner, prune=None, hidden=(), critic_hidden=learner.critic_widths)
