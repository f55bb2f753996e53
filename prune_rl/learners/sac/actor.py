"""The actor's loss and its update."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.learners.sac.config import Config
from prune_rl.learners.sac.state import Networks, apply_gradient
from prune_rl.learners.sac.values import Architecture, soft_value
from prune_rl.pruning.transforms.group_sparse import GroupSparseState


def actor_loss(
    actor: Params, critic: Params, alpha: jax.Array, obs: jax.Array, noise: jax.Array, arch: Architecture
) -> tuple[jax.Array, jax.Array]:
    """``E[α log π − min_i Q_i]`` (Haarnoja et al. 2018, equation 7), and the mean entropy of the policy."""
    value, entropy = soft_value(actor, critic, alpha, obs, noise, arch)
    return -jnp.mean(value), jnp.mean(entropy)


def update_actor(
    networks: Networks,
    critic: Params,
    obs: jax.Array,
    noise: jax.Array,
    masks: Masks,
    config: Config,
    arch: Architecture,
) -> tuple[Params, GroupSparseState, dict[str, jax.Array]]:
    """One optimiser step of the actor against ``critic``; returns params, optimiser state and metrics.

    ``noise`` is standard normal, float32[B, size], for the actions at ``obs``.
    """
    (loss, entropy), gradient = jax.value_and_grad(actor_loss, has_aux=True)(
        networks.params["actor"], critic, jnp.exp(networks.log_alpha), obs, noise, arch
    )
    actor, opt_state = apply_gradient("actor", networks, gradient, masks, config)
    return actor, opt_state, {"actor_loss": loss, "entropy": entropy}
