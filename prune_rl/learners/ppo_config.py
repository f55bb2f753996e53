"""Hyperparameters of PPO."""

from __future__ import annotations

import dataclasses
import math

from prune_rl.learners.config import Pruning
from prune_rl.learners.networks import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters of PPO; frozen and hashable, so static under ``jit``."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, of actor and critic alike."""
    activation: str = "tanh"
    """Activation of the hidden layers: tanh, relu, silu, gelu or elu."""
    num_envs: int = 8
    """Environments per seed, stepped together."""
    num_steps: int = 128
    """Steps per environment between two updates."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Minibatches per pass; must divide num_envs * num_steps."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_end: float = 0.0
    """Adam's step size at the end; it falls linearly in between."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Decay of the advantage trace."""
    clip: float = 0.2
    """Clipping range of the probability ratio."""
    clip_value: float | None = None
    """Clipping range of the value's change; None: not clipped."""
    entropy: float = 0.0
    """Coefficient of the entropy bonus."""
    value: float = 0.5
    """Coefficient of the value loss."""
    max_grad_norm: float = 0.5
    """The gradient of actor and critic together is scaled down to this global norm."""
    normalize_obs: bool = True
    """Normalise observations by their running mean and variance."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_obs: float = 10.0
    """Normalised observations are clipped to this range, rewards too."""
    total_updates: int = 1000
    """Updates in the whole of training: what the learning rate and the pruning schedule count against."""
    prune: Pruning = Pruning()
    """How neurons are removed."""

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        for name in ("num_envs", "num_steps", "epochs", "minibatches", "total_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each >= 1, got {self.hidden}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        if (self.num_envs * self.num_steps) % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide the rollout of num_envs * num_steps = "
                f"{self.num_envs} * {self.num_steps} = {self.num_envs * self.num_steps} transitions"
            )
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "max_grad_norm", "clip_obs"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number > 0, got {getattr(self, name)}")
        for name in ("learning_rate_end", "entropy", "value"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}")
        if self.clip_value is not None and not 0 < self.clip_value < math.inf:
            raise ValueError(f"clip_value must be a finite number > 0 or absent, got {self.clip_value}")
        self.prune.check(self.hidden)
        if self.prune.enabled and self.prune.every > self.prune.end * self.total_updates:
            raise ValueError(
                f"prune.every = {self.prune.every} is more than the updates up to prune.end = {self.prune.end} of "
                f"{self.total_updates}, so nothing would ever be removed; lower it or train longer"
            )
