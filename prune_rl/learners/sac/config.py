"""Hyperparameters of SAC."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.validation import (
    check_at_least_one,
    check_at_most,
    check_finite_or_none,
    check_positive,
    refuse_if,
)


@dataclasses.dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyperparameters of SAC, for Box and for Discrete actions; frozen and hashable, so static under ``jit``."""

    TRACED: ClassVar[tuple[str, ...]] = (
        *LearnerConfig.TRACED,
        "tau",
        "target_entropy",
        "target_entropy_end",
        "reward_scale",
    )
    prune: Pruning | None = Pruning(end=0.98, rest=True, distill_ratio=4.0, distill_buffer=131_072)
    """How neurons are removed; None: none are. The learner rests meanwhile, and more is distilled than with PPO."""
    activation: str = "relu"
    """Activation of the hidden layers: tanh, relu, silu, gelu or elu."""
    num_envs: int = 4
    """Environments per seed, stepped together."""
    num_steps: int = 16
    """Steps per environment between two updates."""
    learning_rate_end: float = 3e-4
    """Adam's step size at the end; it changes linearly in between."""
    normalize_obs: bool = False
    """Normalise observations by their running mean and variance."""
    utd_ratio: float = 1.0
    """Gradient steps per environment step (update to data); an update makes utd_ratio * num_envs * num_steps."""
    batch_size: int = 256
    """Transitions per gradient step, drawn from the replay buffer with replacement."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer holds, the newest ones; no more memory is taken than training can fill."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions and without learning, at the start."""
    tau: float = 0.005
    """Share of the critics that goes into the target critics at each gradient step (Polyak averaging)."""
    alpha: float | None = None
    """Fixed temperature (weight of the entropy); by default it is learned."""
    init_alpha: float = 1.0
    """What the learned temperature starts from."""
    target_entropy: float | None = None
    """Entropy that the temperature is learned for, in nats, at the start; by default -size for Box actions, 0.5 log n
    for n Discrete ones."""
    target_entropy_end: float | None = None
    """That entropy at the end, by default the same; linear in between (after Xu et al. 2021, arXiv 2112.02852)."""
    entropy_backup: bool = True
    """Count the entropy of later actions as reward when the critics learn (soft values). Without it only the actor
    seeks entropy, and an episode is not drawn out for its sake (SACLite: Yu et al. 2022, arXiv 2201.12434)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning."""
    overlap: bool = False
    """Step host environments while an update runs, with the policy of before it. Not for backend jax."""

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in one update."""
        return round(self.utd_ratio * self.steps_per_update)

    @property
    def learning_steps(self) -> int:
        """Gradient steps in the whole of training."""
        return (self.num_updates - self.warmup_updates) * self.gradient_steps

    @property
    def warmup_updates(self) -> int:
        """Updates that only fill the replay buffer."""
        return -(-self.learning_starts // self.steps_per_update)

    @property
    def gradient_samples(self) -> int:
        """Samples that the gradient steps of one update look at, all together."""
        return self.gradient_steps * self.batch_size

    @property
    def acts_ahead(self) -> bool:
        """Whether host environments step with the parameters of before an update while it runs."""
        return self.overlap

    @property
    def first_mask_update(self) -> int:
        """No neuron is removed before the first gradient steps: until then no score says anything."""
        return self.warmup_updates + 1

    @property
    def capacity(self) -> int:
        """Transitions that the replay buffer has room for: whole rollouts, no more than training makes."""
        rollouts = max(1, min(self.buffer_size // self.steps_per_update, self.num_updates))
        return rollouts * self.steps_per_update

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        check_at_least_one(self, "batch_size", "buffer_size")
        super().check()
        check_positive(self, "utd_ratio", "init_alpha", "reward_scale")
        check_at_most(self, 1000.0, "utd_ratio")
        check_finite_or_none(self, "alpha", "target_entropy", "target_entropy_end")
        refuse_if(not 0.0 < self.tau <= 1.0, f"tau must lie in (0, 1], got {self.tau}")
        refuse_if((self.alpha or 0) < 0, f"alpha must be a finite number >= 0 or absent, got {self.alpha}")
        refuse_if(self.learning_starts < 0, f"learning_starts must be >= 0, got {self.learning_starts}")
        steps = self.steps_per_update
        refuse_if(
            self.warmup_updates >= self.num_updates,
            f"learning_starts = {self.learning_starts} leaves nothing of the {self.num_updates * steps} environment "
            "steps to learn in; lower it or train longer",
        )
        refuse_if(
            self.buffer_size < steps,
            f"buffer_size = {self.buffer_size} is less than the num_envs * num_steps = {steps} transitions of one "
            "rollout; raise it",
        )
        refuse_if(
            self.gradient_steps < 1,
            f"utd_ratio = {self.utd_ratio} of {steps} environment steps per update makes no gradient step; raise it, "
            "num_envs or num_steps",
        )
