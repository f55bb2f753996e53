"""Hyperparameters of PPO."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.validation import (
    check_at_least_one,
    check_not_negative,
    check_positive,
    check_shares,
)


@dataclasses.dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyperparameters of PPO; frozen and hashable, so static under ``jit``."""

    TRACED: ClassVar[tuple[str, ...]] = (
        *LearnerConfig.TRACED,
        "gae_lambda",
        "clip_eps",
        "clip_range_vf",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
    )

    update_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Minibatches per pass; must divide num_envs * num_steps."""
    gae_lambda: float = 0.95
    """Decay of the advantage trace."""
    clip_eps: float = 0.2
    """Clipping range of the probability ratio."""
    clip_range_vf: float | None = None
    """Clipping range of the value's change; None: not clipped."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    vf_coef: float = 0.5
    """Coefficient of the value loss."""
    max_grad_norm: float = 0.5
    """The gradient of actor and critic together is scaled down to this global norm."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""

    @property
    def learning_steps(self) -> int:
        """Gradient steps in the whole of training."""
        return self.num_updates * self.update_epochs * self.num_minibatches

    @property
    def gradient_samples(self) -> int:
        """Samples that the gradient steps of one update look at, all together."""
        return self.update_epochs * self.steps_per_update

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        check_at_least_one(self, "update_epochs", "num_minibatches")
        super().check()
        if self.steps_per_update % self.num_minibatches:
            raise ValueError(
                f"num_minibatches = {self.num_minibatches} does not divide the rollout of num_envs * num_steps = "
                f"{self.num_envs} * {self.num_steps} = {self.steps_per_update} transitions"
            )
        check_shares(self, "gae_lambda")
        check_positive(self, "clip_eps", "max_grad_norm")
        check_not_negative(self, "ent_coef", "vf_coef")
        if self.clip_range_vf is not None and not 0 < self.clip_range_vf < math.inf:
            raise ValueError(f"clip_range_vf must be a finite number > 0 or absent, got {self.clip_range_vf}")
