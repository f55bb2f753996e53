"""Hyperparameters of SAC."""

from __future__ import annotations

import dataclasses
import math

from prune_rl.learners.networks import ACTIVATIONS
from prune_rl.learners.pruning_config import Pruning


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters of SAC, for Box and for Discrete actions; frozen and hashable, so static under ``jit``."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, of the actor and both critics alike."""
    activation: str = "relu"
    """Activation of the hidden layers: tanh, relu, silu, gelu or elu."""
    num_envs: int = 4
    """Environments per seed, stepped together."""
    num_steps: int = 16
    """Steps per environment between two updates."""
    utd_ratio: float = 1.0
    """Gradient steps per environment step (update to data); an update makes utd_ratio * num_envs * num_steps."""
    batch_size: int = 256
    """Transitions per gradient step, drawn from the replay buffer with replacement."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer holds, the newest ones; no more memory is taken than training can fill."""
    learning_starts: int = 10_000
    """Environment steps with uniformly random actions and without learning, at the start."""
    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and temperature, at the start."""
    learning_rate_end: float = 3e-4
    """Adam's step size at the end; it changes linearly in between."""
    gamma: float = 0.99
    """Discount factor."""
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
    """That entropy at the end; it changes linearly in between (after Xu et al. 2021, arXiv 2112.02852). By default it
    stays as at the start."""
    entropy_backup: bool = True
    """Count the entropy of later actions as reward when the critics learn (soft values). Without it only the actor
    seeks entropy, and an episode is not drawn out for its sake (SACLite: Yu et al. 2022, arXiv 2201.12434)."""
    normalize_obs: bool = False
    """Normalise observations by their running mean and variance."""
    clip_obs: float = 10.0
    """Normalised observations are clipped to this range."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before learning."""
    total_timesteps: int = 500_000
    """Environment steps per seed in the whole of training, rounded up to whole rollouts: what the learning rate and the
    pruning schedule count against."""
    prune: Pruning | None = Pruning()
    """How neurons are removed; None: train the wide network and remove nothing."""

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Updates in the whole of training."""
        return -(-self.total_timesteps // self.steps_per_update)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in one update."""
        return round(self.utd_ratio * self.steps_per_update)

    @property
    def warmup_updates(self) -> int:
        """Updates that only fill the replay buffer."""
        return -(-self.learning_starts // self.steps_per_update)

    @property
    def capacity(self) -> int:
        """Transitions that the replay buffer has room for: whole rollouts, no more than training makes."""
        return (
            max(1, min(self.buffer_size // self.steps_per_update, self.num_updates)) * self.steps_per_update
        )

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        for name in ("num_envs", "num_steps", "batch_size", "buffer_size", "total_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each >= 1, got {self.hidden}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        if self.learning_starts < 0:
            raise ValueError(f"learning_starts must be >= 0, got {self.learning_starts}")
        if self.warmup_updates >= self.num_updates:
            raise ValueError(
                f"learning_starts = {self.learning_starts} leaves nothing of the "
                f"{self.num_updates * self.steps_per_update} environment steps to learn in; lower it or train longer"
            )
        if self.buffer_size < self.steps_per_update:
            raise ValueError(
                f"buffer_size = {self.buffer_size} is less than the num_envs * num_steps = {self.steps_per_update} "
                "transitions of one rollout; raise it"
            )
        for name in ("learning_rate", "clip_obs", "utd_ratio", "init_alpha", "reward_scale"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number > 0, got {getattr(self, name)}")
        if self.gradient_steps < 1:
            raise ValueError(
                f"utd_ratio = {self.utd_ratio} of {self.steps_per_update} environment steps per update makes no "
                "gradient step; raise it, num_envs or num_steps"
            )
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")
        if not 0.0 < self.tau <= 1.0:
            raise ValueError(f"tau must lie in (0, 1], got {self.tau}")
        if not (self.learning_rate_end >= 0 and math.isfinite(self.learning_rate_end)):
            raise ValueError(f"learning_rate_end must be a finite number >= 0, got {self.learning_rate_end}")
        if self.alpha is not None and not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha must be a finite number >= 0 or absent, got {self.alpha}")
        for name in ("target_entropy", "target_entropy_end"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite or absent, got {value}")
        if self.prune is not None:
            self.prune.check(self.hidden, self.num_updates)
