"""Hyperparameters that every learner has."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.validation import (
    check_at_least_one,
    check_at_most,
    check_network,
    check_not_negative,
    check_positive,
    check_shares,
    refuse_if,
)


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """Hyperparameters that every learner has; frozen and hashable, so static under ``jit``."""

    # Numbers that one program can have many values of, see `prune_rl.learners.traced_numbers`.
    TRACED: ClassVar[tuple[str, ...]] = ("learning_rate", "learning_rate_end", "gamma")

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of the actor; none for a linear policy."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers of the critic; by default those of the actor."""
    critic_layer_norm: bool = False
    """Layer normalisation in the critic's hidden layers, before the activation: it bounds the values of actions never
    taken (Ball et al. 2023, arXiv 2302.02948, section 4.2). Not with --prune.critic."""
    skip: bool = False
    """Add a linear path from the observation to the outputs of the actor, beside its hidden layers: these may then lose
    their last neuron (--prune.min-width 0), and the policy end linear."""
    activation: str = "tanh"
    """Activation of the hidden layers: tanh, relu, silu, gelu or elu."""
    num_envs: int = 8
    """Environments per seed, stepped together."""
    num_steps: int = 128
    """Steps per environment between two updates."""
    total_timesteps: int = 500_000
    """Environment steps per seed in the whole of training, rounded up to whole rollouts: what the learning rate and the
    pruning schedule count against."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    learning_rate_end: float = 0.0
    """Adam's step size at the end; it changes linearly in between."""
    width_exponent: float = 0.0
    """In a pruned run, steps of the weights that read a layer grow with (width of the arrays / width left) to this
    power; 0.5 keeps the effect of a step on what the next layer receives about the same."""
    gamma: float = 0.99
    """Discount factor."""
    normalize_obs: bool = True
    """Normalise observations by their running mean and variance."""
    clip_obs: float = 10.0
    """Normalised observations are clipped to this range, normalised rewards too."""
    prune: Pruning | None = Pruning()
    """How neurons are removed; None: train the wide network and remove nothing."""

    @property
    def critic_widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers of the critic."""
        return self.hidden if self.critic_hidden is None else self.critic_hidden

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Updates in the whole of training."""
        return -(-self.total_timesteps // self.steps_per_update)

    @property
    def warmup_updates(self) -> int:
        """Updates at the start that make no gradient step."""
        return 0

    @property
    def learning_steps(self) -> int:
        """Gradient steps in the whole of training; each learner defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many gradient steps it makes")

    @property
    def gradient_samples(self) -> int:
        """Samples that the gradient steps of one update look at, all together."""
        return self.steps_per_update

    @property
    def distills(self) -> bool:
        """Whether distillation follows removals: not where neurons go by a schedule."""
        return self.prune is not None and self.prune.tolerance is not None and self.prune.distill_ratio > 0

    @property
    def rests(self) -> bool:
        """Whether the learner rests once neurons may go, see ``Pruning.rest``."""
        return self.distills and self.prune is not None and self.prune.rest

    @property
    def distillation_samples(self) -> int:
        """Samples that the gradient steps of distillation look at per update, while it goes on."""
        if self.prune is None or self.prune.tolerance is None:
            return 0
        return round(self.prune.distill_ratio * self.steps_per_update * self.prune.distill_batch_size)

    @property
    def acts_ahead(self) -> bool:
        """Whether host environments step with the parameters of before an update while it runs."""
        return False

    @property
    def first_mask_update(self) -> int:
        """No neuron is removed before this update."""
        return 0

    def check(self) -> None:
        """Raise ``ValueError`` for any value that cannot work."""
        check_at_least_one(self, "num_envs", "num_steps", "total_timesteps")
        check_network(self.activation, hidden=self.hidden, critic_hidden=self.critic_widths)
        check_positive(self, "learning_rate", "clip_obs")
        check_not_negative(self, "learning_rate_end", "width_exponent")
        # Adam moves every weight by about its step size: the largest ones of the field are below 0.1.
        check_at_most(self, 1.0, "learning_rate", "learning_rate_end")
        check_at_most(self, 2.0, "width_exponent")
        check_shares(self, "gamma")
        if self.prune is not None:
            refuse_if(
                not self.hidden,
                "hidden is (), which leaves nothing to prune: give the actor hidden layers, or choose method 'linear'",
            )
            least_width = 0 if self.skip else 1
            self.prune.check(self.hidden, least_width=least_width)
            if self.prune.critic:
                refuse_if(
                    not self.critic_widths,
                    "critic_hidden is (), so there is nothing to prune in the critic",
                )
                refuse_if(
                    self.critic_layer_norm,
                    "critic_layer_norm joins the neurons of a layer, so that none can be pruned alone: leave it or "
                    "prune.critic out",
                )
                self.prune.check(self.critic_widths, least_width=least_width)
