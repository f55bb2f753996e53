"""The losses of soft actor-critic, for Box actions (Haarnoja et al. 2018) and Discrete ones (Christodoulou 2019).

Which of the two is meant follows from the actions: with a ``Box`` the actor puts out mean and log standard deviation of
each component, and the critics read the action; with ``Discrete`` the actor puts out logits and the critics a value per
action, so that expectations take the place of samples.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from prune_rl.learners.distributions import Categorical, SquashedGaussian
from prune_rl.learners.networks import apply_ensemble, apply_mlp
from prune_rl.learners.sac.replay_buffer import Transitions

Params = Any
LOG_STD_RANGE = (-20.0, 2.0)


def policy(actor: Params, obs: jax.Array, activation: str, discrete: bool) -> Categorical | SquashedGaussian:
    """The action distribution for observations […, D] as the networks see them."""
    outputs = apply_mlp(actor, obs, activation)
    if discrete:
        return Categorical(outputs)
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    return SquashedGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))


def q_values(critic: Params, obs: jax.Array, action: jax.Array, activation: str, discrete: bool) -> jax.Array:
    """Q of every critic, float32[E, B]: at actions float32[B, size] in [−1, 1], or int32[B]."""
    if discrete:
        every = apply_ensemble(critic, obs, activation)
        chosen = jax.nn.one_hot(action, every.shape[-1], dtype=every.dtype)
        return jnp.sum(every * chosen[None], axis=-1)
    return jnp.squeeze(apply_ensemble(critic, jnp.concatenate([obs, action], -1), activation), -1)


def soft_value(
    actor: Params,
    critic: Params,
    alpha: jax.Array,
    obs: jax.Array,
    noise: jax.Array,
    activation: str,
    discrete: bool,
) -> tuple[jax.Array, jax.Array]:
    """``E[min_i Q_i(obs, a) − α log π(a | obs)]`` over a ~ π, and the policy's entropy, both float32[B].

    Discrete: the expectation itself (Christodoulou 2019, equation 10). Box: one sample from standard normal ``noise``
    [B, size], whose −log π is the estimate of the entropy (Haarnoja et al. 2018, equation 3).
    """
    distribution = policy(actor, obs, activation, discrete)
    if isinstance(distribution, Categorical):
        log_probs = jax.nn.log_softmax(distribution.logits)
        q = jnp.min(apply_ensemble(critic, obs, activation), axis=0)
        probs = jnp.exp(log_probs)
        return jnp.sum(probs * (q - alpha * log_probs), axis=-1), -jnp.sum(probs * log_probs, axis=-1)
    action, log_prob = distribution.sample_and_log_prob(noise)
    q = jnp.min(q_values(critic, obs, action, activation, discrete), axis=0)
    return q - alpha * log_prob, -log_prob


def critic_target(
    batch: Transitions, next_value: jax.Array, gamma: float, reward_scale: float = 1.0
) -> jax.Array:
    """``r + γ (1 − terminated) V(next_obs)``, float32[B]: a time limit bootstraps, a termination does not."""
    return reward_scale * batch.reward + gamma * (1.0 - batch.terminated) * next_value


def critic_loss(
    critic: Params, batch: Transitions, target: jax.Array, activation: str, discrete: bool
) -> jax.Array:
    """``Σ_i E[½ (Q_i − target)²]`` (Haarnoja et al. 2018, equation 5), summed over the critics."""
    q = q_values(critic, batch.obs, batch.action, activation, discrete)
    return 0.5 * jnp.sum(jnp.mean(jnp.square(q - target[None]), axis=-1))


def actor_loss(
    actor: Params,
    critic: Params,
    alpha: jax.Array,
    obs: jax.Array,
    noise: jax.Array,
    activation: str,
    discrete: bool,
) -> tuple[jax.Array, jax.Array]:
    """``E[α log π − min_i Q_i]`` (Haarnoja et al. 2018, equation 7), and the mean entropy of the policy."""
    value, entropy = soft_value(actor, critic, alpha, obs, noise, activation, discrete)
    return -jnp.mean(value), jnp.mean(entropy)


def alpha_loss(log_alpha: jax.Array, entropy: jax.Array, target_entropy: float) -> jax.Array:
    """``α (H(π) − H̄)`` (Haarnoja et al. 2018, equation 18): α falls while the entropy is above its target."""
    return jnp.exp(log_alpha) * jax.lax.stop_gradient(entropy - target_entropy)
