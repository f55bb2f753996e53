"""Train an actor of few neurons from scratch, beside a critic that keeps its width (after Mysore et al. 2021, arXiv
2102.11893).
"""

from __future__ import annotations

import dataclasses

from prune_rl.learners.config import LearnerConfig

TITLE = "small actor from scratch"
SETS_ACTOR_WIDTHS = True


def learner_config(learner: LearnerConfig) -> LearnerConfig:
    """Without pruning. Raises ``ValueError`` unless actor and critic have widths of their own."""
    if learner.critic_hidden is None:
        raise ValueError(
            "method 'small' needs the widths of its actor: give --like RUN, the run whose compact policy it shall be "
            "as wide as, or --hidden and --critic-hidden"
        )
    return dataclasses.replace(learner, prune=None)


def control(learner: LearnerConfig) -> LearnerConfig:
    """An actor as wide as the critic."""
    return dataclasses.replace(learner, prune=None, hidden=learner.critic_widths, critic_hidden=None)
