"""PPO's loss and the minibatch epochs that minimise it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.distributions import Categorical, Gaussian
from prune_rl.learners.networks import apply_mlp
from prune_rl.learners.optimizer import pruned_adam
from prune_rl.learners.ppo.config import Config
from prune_rl.learners.rollout import Metrics
from prune_rl.pruning.transforms.group_sparse import GroupSparseState

ADAM_EPS = 1e-5


def actor_distribution(
    params: Params, obs: jax.Array, config: Config, discrete: bool
) -> Categorical | Gaussian:
    """The policy's action distribution for normalised observations […, D]."""
    outputs = apply_mlp(params["actor"], obs, config.activation)
    return Categorical(outputs) if discrete else Gaussian(outputs, params["actor"]["log_std"])


def values(params: Params, obs: jax.Array, config: Config) -> jax.Array:
    """V(obs) […] for normalised observations […, D]."""
    return jnp.squeeze(apply_mlp(params["critic"], obs, config.activation), -1)


@struct.dataclass
class Batch:
    """What the loss needs of each transition, [B, …]; ``obs`` is normalised."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    value: jax.Array


def loss(params: Params, batch: Batch, config: Config, discrete: bool) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate + value loss − entropy bonus (Schulman et al. 2017, equations 7 and 9), and its parts."""
    policy = actor_distribution(params, batch.obs, config, discrete)
    log_ratio = policy.log_prob(batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = (batch.advantage - jnp.mean(batch.advantage)) / (jnp.std(batch.advantage) + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
    policy_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))

    value, target = values(params, batch.obs, config), batch.advantage + batch.value
    error = jnp.square(value - target)
    if config.clip_range_vf is not None:
        near = batch.value + jnp.clip(value - batch.value, -config.clip_range_vf, config.clip_range_vf)
        error = jnp.maximum(error, jnp.square(near - target))
    value_loss = 0.5 * jnp.mean(error)

    entropy = jnp.mean(policy.entropy())
    total = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
    parts = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        # The low-variance, never negative estimate (ratio − 1) − log ratio.
        "approx_kl": jnp.mean(ratio - 1.0 - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > config.clip_eps),
    }
    return total, parts


def minibatch_epochs(
    params: Params,
    opt_state: GroupSparseState,
    batch: Batch,
    masks: dict[str, jax.Array],
    tx: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    config: Config,
    discrete: bool,
) -> tuple[Params, GroupSparseState, Metrics]:
    """``config.update_epochs`` passes over the batch [B, …] in shuffled minibatches; returns mean parts of the loss
    too.
    """
    size = batch.advantage.shape[0]

    def minibatch(carry: tuple[Params, Any], part: Batch) -> tuple[tuple[Params, Any], Metrics]:
        params, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(params, part, config, discrete)
        updates, opt_state = tx.update(grads, opt_state, params, masks=masks)
        return (optax.apply_updates(params, updates), opt_state), parts

    def epoch(carry: tuple[Params, Any], epoch_key: jax.Array) -> tuple[tuple[Params, Any], Metrics]:
        order = jax.random.permutation(epoch_key, size)
        parts = jax.tree.map(lambda x: x[order].reshape(config.num_minibatches, -1, *x.shape[1:]), batch)
        return jax.lax.scan(minibatch, carry, parts)

    epoch_keys = jax.random.split(key, config.update_epochs)
    (params, opt_state), losses = jax.lax.scan(epoch, (params, opt_state), epoch_keys)
    return params, opt_state, jax.tree.map(jnp.mean, losses)


def optimizer(groups: NeuronGroups, config: Config) -> optax.GradientTransformationExtraArgs:
    """Clipped Adam with pruning, for {"actor", "critic"}."""
    return pruned_adam(config, groups, eps=ADAM_EPS, max_grad_norm=config.max_grad_norm)
