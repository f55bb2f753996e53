"""What PPO distils into a network that has just lost neurons: the policy of the last good state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.learners.distributions import Categorical, Gaussian
from prune_rl.learners.ppo.config import Config
from prune_rl.learners.ppo.surrogate import actor_distribution
from prune_rl.pruning.dynamic_threshold import ThresholdState
from prune_rl.pruning.rules import PruningState


def good_policy(
    pruning: PruningState, obs: jax.Array, config: Config, discrete: bool
) -> Categorical | Gaussian | None:
    """The last good policy for normalised observations […, D], all its leaves […, size]; None: nothing is distilled."""
    if not config.distill_coef or not isinstance(pruning.threshold, ThresholdState):
        return None
    good = actor_distribution(pruning.threshold.good_params, obs, config, discrete)
    if isinstance(good, Gaussian):
        return good._replace(log_std=jnp.broadcast_to(good.log_std, good.mean.shape))
    return good


def distill_coef(pruning: PruningState, config: Config) -> jax.Array | float:
    """The weight of distillation, float32[]: 0 while no removal is on trial."""
    if not isinstance(pruning.threshold, ThresholdState):
        return 0.0
    return config.distill_coef * pruning.threshold.on_trial.astype(jnp.float32)
