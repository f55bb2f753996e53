"""The temperature's loss and its update."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.optimizer import learning_rate
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.state import Networks


def target_entropy(params: Params, discrete: bool, config: Config) -> optax.Schedule:
    """The entropy that the temperature is learned for, in nats, over gradient steps."""
    outputs: int = params["actor"]["head"]["bias"].shape[0]
    default = 0.5 * math.log(outputs) if discrete else -outputs / 2
    first = default if config.target_entropy is None else config.target_entropy
    last = first if config.target_entropy_end is None else config.target_entropy_end
    return optax.linear_schedule(first, last, config.learning_steps)


def temperature_loss(log_alpha: jax.Array, entropy: jax.Array, target_entropy: float) -> jax.Array:
    """``α (H(π) − H̄)`` (Haarnoja et al. 2018, equation 18): α falls while the entropy is above its target."""
    return jnp.exp(log_alpha) * jax.lax.stop_gradient(entropy - target_entropy)


def update_temperature(
    networks: Networks, entropy: jax.Array, config: Config, discrete: bool
) -> tuple[jax.Array, Any]:
    """One optimiser step of log α, unless ``config.alpha`` fixes it; returns log α and optimiser state."""
    log_alpha, opt_state = networks.log_alpha, networks.opt_state.alpha
    if config.alpha is not None:
        return log_alpha, opt_state
    goal = target_entropy(networks.params, discrete, config)(networks.opt_state.actor.num_updates)
    gradient = jax.grad(temperature_loss)(log_alpha, entropy, goal)
    change, opt_state = optax.adam(learning_rate(config)).update(gradient, opt_state, log_alpha)
    return jnp.asarray(optax.apply_updates(log_alpha, change)), opt_state
