"""The critics' loss and their update."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.learners.replay_buffer import Transitions
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.state import Networks, apply_gradient
from prune_rl.learners.sac.values import Architecture, q_values, soft_value
from prune_rl.pruning.transforms.group_sparse import GroupSparseState


def critic_target(batch: Transitions, value: jax.Array, gamma: float, scale: float = 1.0) -> jax.Array:
    """``scale · r + γ (1 − terminated) V(next_obs)``, float32[B]: a time limit bootstraps, a termination does not."""
    return scale * batch.reward + gamma * (1.0 - batch.terminated) * value


def critic_loss(critic: Params, batch: Transitions, target: jax.Array, arch: Architecture) -> jax.Array:
    """``Σ_i E[½ (Q_i − target)²]`` (Haarnoja et al. 2018, equation 5), summed over the critics."""
    q = q_values(critic, batch.obs, batch.action, arch)
    return 0.5 * jnp.sum(jnp.mean(jnp.square(q - target[None]), axis=-1))


def update_critic(
    networks: Networks, batch: Transitions, noise: jax.Array, masks: Masks, config: Config, arch: Architecture
) -> tuple[Params, GroupSparseState, dict[str, jax.Array]]:
    """One optimiser step of the critics; returns params, optimiser state and metrics.

    ``noise`` is standard normal, float32[B, size], for the actions at the next observations.
    """
    alpha, params = jnp.exp(networks.log_alpha), networks.params
    # Without the bonus, what follows an action is worth its rewards alone (SACLite: Yu et al. 2022, arXiv 2201.12434).
    bonus = alpha if config.entropy_backup else jnp.zeros_like(alpha)
    value, _ = soft_value(params["actor"], networks.target_critic, bonus, batch.next_obs, noise, arch)
    target = critic_target(batch, value, config.gamma, config.reward_scale)
    loss, gradient = jax.value_and_grad(critic_loss)(params["critic"], batch, target, arch)
    critic, opt_state = apply_gradient("critic", networks, gradient, masks, config)
    return critic, opt_state, {"critic_loss": loss, "q_target": jnp.mean(target)}
