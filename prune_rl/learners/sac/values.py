"""Policy and soft values of SAC, for Box actions (Haarnoja et al. 2018) and Discrete ones (Christodoulou 2019).

With Box actions the actor's outputs are mean and log standard deviation of each component, and the critics read the
action; with Discrete ones they are logits, and the critics' outputs a value per action: expectations replace samples.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.distributions import Categorical, SquashedGaussian
from prune_rl.learners.networks import apply_ensemble, apply_mlp

LOG_STD_RANGE = (-20.0, 2.0)


class Architecture(NamedTuple):
    """What the params do not say of the networks: their activation, and whether the actions are Discrete."""

    activation: str
    discrete: bool


def policy(actor: Params, obs: jax.Array, arch: Architecture) -> Categorical | SquashedGaussian:
    """The action distribution for observations […, D] as the networks see them."""
    outputs = apply_mlp(actor, obs, arch.activation)
    if arch.discrete:
        return Categorical(outputs)
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    return SquashedGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))


def critic_input(obs: jax.Array, action: jax.Array, arch: Architecture) -> jax.Array:
    """What the critics read: float32[B, D], and with Box actions in [−1, 1], float32[B, D + size]."""
    return obs if arch.discrete else jnp.concatenate([obs, action], -1)


def q_values(critic: Params, obs: jax.Array, action: jax.Array, arch: Architecture) -> jax.Array:
    """Q of every critic, float32[E, B]: at actions float32[B, size] in [−1, 1], or int32[B]."""
    outputs = apply_ensemble(critic, critic_input(obs, action, arch), arch.activation)
    if not arch.discrete:
        return jnp.squeeze(outputs, -1)
    chosen = jax.nn.one_hot(action, outputs.shape[-1], dtype=outputs.dtype)
    return jnp.sum(outputs * chosen[None], axis=-1)


def soft_value(
    actor: Params, critic: Params, alpha: jax.Array, obs: jax.Array, noise: jax.Array, arch: Architecture
) -> tuple[jax.Array, jax.Array]:
    """``E[min_i Q_i(obs, a) − α log π(a | obs)]`` over a ~ π, and the policy's entropy, both float32[B].

    Discrete: the expectation itself (Christodoulou 2019, equation 10). Box: one sample from standard normal ``noise``
    [B, size], whose −log π is the estimate of the entropy (Haarnoja et al. 2018, equation 3).
    """
    distribution = policy(actor, obs, arch)
    if isinstance(distribution, Categorical):
        log_probs = jax.nn.log_softmax(distribution.logits)
        q = jnp.min(apply_ensemble(critic, obs, arch.activation), axis=0)
        probs = jnp.exp(log_probs)
        return jnp.sum(probs * (q - alpha * log_probs), axis=-1), -jnp.sum(probs * log_probs, axis=-1)
    action, log_prob = distribution.sample_and_log_prob(noise)
    q = jnp.min(q_values(critic, obs, action, arch), axis=0)
    return q - alpha * log_prob, -log_prob
