"""What every method's module offers, and which methods there are."""

from __future__ import annotations

from typing import Protocol

from prune_rl.learners.config import LearnerConfig
from prune_rl.methods import dense, dynamic, linear, small


class Method(Protocol):
    """A method's module."""

    @property
    def TITLE(self) -> str:
        """The method in a few words, for tables and pictures."""

    @property
    def SETS_ACTOR_WIDTHS(self) -> bool:
        """Whether the hidden widths of the actor are part of the method, not of what it is applied to."""

    def learner_config(self, learner: LearnerConfig) -> LearnerConfig:
        """The hyperparameters that a run of this method trains with. Applied twice, it changes nothing more.

        Raises ``ValueError`` if they do not fit the method.
        """

    def control(self, learner: LearnerConfig) -> LearnerConfig:
        """Those of the dense run that such a run is compared with."""


METHODS: dict[str, Method] = {"dynamic": dynamic, "dense": dense, "small": small, "linear": linear}
