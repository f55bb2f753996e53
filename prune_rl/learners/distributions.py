"""Action distributions from network outputs: categorical for ``Discrete``, diagonal Gaussian for ``Box``."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Standard deviations from the mean beyond which nothing lies.
FAR = 1e3
# A finite stand-in for bounds that are infinite.
NO_BOUND = 1e9


class Categorical(NamedTuple):
    """Actions 0 … n − 1 with log-probabilities ``log_softmax(logits)``; logits float32[…, n]."""

    logits: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """int32[…] by the Gumbel trick; ``noise`` from ``sample_noise``, shape [..., n]."""
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    @staticmethod
    def sample_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard Gumbel noise."""
        return jax.random.gumbel(key, shape, jnp.float32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """float32[…] for int32[…] actions."""
        log_probs = jax.nn.log_softmax(self.logits)
        # A comparison and a sum are cheaper here than a gather, and so is their gradient.
        chosen = action[..., None] == jnp.arange(log_probs.shape[-1]).reshape((1,) * action.ndim + (-1,))
        return jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)

    def entropy(self) -> jax.Array:
        """float32[…], in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl_divergence(self, other: Categorical) -> jax.Array:
        """KL(self ‖ other), float32[…], in nats."""
        log_probs, others = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - others), axis=-1)


class Gaussian(NamedTuple):
    """Independent normal components; mean float32[…, size], log_std float32[size] or of the shape of the mean."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """float32[…, size] from standard normal ``noise`` of that shape."""
        return self.mean + self._like_mean(jnp.exp(self.log_std)) * noise

    @staticmethod
    def sample_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal noise."""
        return jax.random.normal(key, shape, jnp.float32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """float32[…], summed over the components."""
        standard = (action - self.mean) * self._like_mean(jnp.exp(-self.log_std))
        constant = self._like_mean(self.log_std + 0.5 * math.log(2.0 * math.pi))
        return jnp.sum(-0.5 * jnp.square(standard) - constant, axis=-1)

    def entropy(self) -> jax.Array:
        """float32[…], in nats: the same for every observation."""
        total = jnp.sum(self.log_std + 0.5 * math.log(2.0 * math.pi * math.e))
        return jnp.broadcast_to(total, self.mean.shape[:-1])

    def kl_divergence(self, other: Gaussian) -> jax.Array:
        """KL(self ‖ other), float32[…], in nats, summed over the components."""
        log_std, others = self._like_mean(self.log_std), self._like_mean(other.log_std)
        spread = jnp.exp(2.0 * (log_std - others)) + jnp.square((self.mean - other.mean) * jnp.exp(-others))
        return jnp.sum(others - log_std + 0.5 * (spread - 1.0), axis=-1)

    def clipped_kl_divergence(self, other: Gaussian, bounds: jax.Array) -> jax.Array:
        """KL(self ‖ other), float32[…], of actions clipped to ``bounds`` float32[2, size] or float32[2].

        A clipped action equals a bound with the probability that lies beyond it, and has the normal density between the
        bounds, so that means well beyond a bound are the same. Bounds may be infinite.
        """
        std, other_std = (self._like_mean(jnp.exp(x.log_std)) for x in (self, other))
        # Finite, for gradients without 0 · ∞; so far out no float32 probability is left.
        bounds = jnp.clip(bounds, -NO_BOUND, NO_BOUND)
        (low, high), (other_low, other_high) = (
            [jnp.clip((self._like_mean(bound) - mean) / spread, -FAR, FAR) for bound in bounds]
            for mean, spread in ((self.mean, std), (other.mean, other_std))
        )
        ndtr, log_ndtr, pdf = jax.scipy.special.ndtr, jax.scipy.special.log_ndtr, jax.scipy.stats.norm.pdf
        at_low = ndtr(low) * (log_ndtr(low) - log_ndtr(other_low))
        at_high = ndtr(-high) * (log_ndtr(-high) - log_ndtr(-other_high))
        # Moments of a standard normal variable between the bounds, of order 0, 1 and 2.
        inside, first = ndtr(high) - ndtr(low), pdf(low) - pdf(high)
        second = jnp.maximum(inside + low * pdf(low) - high * pdf(high), 0.0)
        apart, log_ratio = (self.mean - other.mean) / other_std, self._like_mean(self.log_std - other.log_std)
        ratio = jnp.exp(log_ratio)
        between = 0.5 * jnp.square(apart) * inside + apart * ratio * first
        between += 0.5 * (jnp.square(ratio) - 1.0) * second - log_ratio * inside
        return jnp.sum(at_low + between + at_high, axis=-1)

    def _like_mean(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, self.mean.shape)


class SquashedGaussian(NamedTuple):
    """``tanh`` of independent normal components (Haarnoja et al. 2018, appendix C); both float32[…, size]."""

    mean: jax.Array
    log_std: jax.Array

    def sample_and_log_prob(self, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions in [−1, 1], float32[…, size], from standard normal ``noise`` of that shape; log-density float32[…].

        The change of variables, ``log(1 − tanh²x) = 2 (log 2 − x − softplus(−2x))``, is exact where tanh saturates.
        """
        x = self.mean + jnp.exp(self.log_std) * noise
        normal = -0.5 * jnp.square(noise) - self.log_std - 0.5 * math.log(2.0 * math.pi)
        squash = 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))
        return jnp.tanh(x), jnp.sum(normal - squash, axis=-1)
