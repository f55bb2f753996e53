"""Hyperparameters of PPO."""

from __future__ import annotations

import dataclasses
import math

from prune_rl.learners.networks import ACTIVATIONS
from prune_rl.learners.pruning_config import Pruning


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
    update_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Minibatches per pass; must divide num_envs * num_steps."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_end: float = 0.0
    """Adam's step size at the end; it falls linearly in between."""
    gamma: float = 0.99
    """Discount factor."""
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
    normalize_obs: bool = True
    """Normalise observations by their running mean and variance."""
    normalize_reward: bool = True
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_obs: float = 10.0
    """Normalised observations are clipped to this range, rewards too."""
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

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        for name in ("num_envs", "num_steps", "update_epochs", "num_minibatches", "total_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each >= 1, got {self.hidden}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        if (self.num_envs * self.num_steps) % self.num_minibatches:
            raise ValueError(
                f"num_minibatches = {self.num_minibatches} does not divide the rollout of num_envs * num_steps = "
                f"{self.num_envs} * {self.num_steps} = {self.num_envs * self.num_steps} transitions"
            )
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("learning_rate", "clip_eps", "max_grad_norm", "clip_obs"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number > 0, got {getattr(self, name)}")
        for name in ("learning_rate_end", "ent_coef", "vf_coef"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}")
        if self.clip_range_vf is not None and not 0 < self.clip_range_vf < math.inf:
            raise ValueError(f"clip_range_vf must be a finite number > 0 or absent, got {self.clip_range_vf}")
        if self.prune is not None:
            self.prune.check(self.hidden, self.num_updates)
