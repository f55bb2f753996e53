"""Running mean and variance as a pure value, and their use on observations and rewards."""

from __future__ import annotations

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class RunningStatistics:
    """Mean and variance of everything seen; ``count`` is float32[] so that it never overflows."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @staticmethod
    def create(shape: tuple[int, ...]) -> RunningStatistics:
        """Mean 0, variance 1, count 0: normalising with it changes nothing."""
        return RunningStatistics(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))

    def update(self, batch: jax.Array) -> RunningStatistics:
        """Statistics with ``batch`` [n, *shape] added (Chan et al. 1979, the parallel update of moments)."""
        chex.assert_shape(batch, (None, *self.mean.shape))
        n = jnp.float32(batch.shape[0])
        mean, var = jnp.mean(batch, axis=0), jnp.var(batch, axis=0)
        total = self.count + n
        delta = mean - self.mean
        squares = self.var * self.count + var * n + jnp.square(delta) * (self.count * n / total)
        return RunningStatistics(self.mean + delta * (n / total), squares / total, total)

    def normalize(self, x: jax.Array, clip: float) -> jax.Array:
        """``(x − mean) / √(var + 1e-8)``, clipped to ±clip; ``x`` has any leading axes."""
        lead = (1,) * (x.ndim - self.mean.ndim)
        mean, scale = self.mean.reshape(lead + self.mean.shape), jax.lax.rsqrt(self.var + 1e-8)
        return jnp.clip((x - mean) * scale.reshape(mean.shape), -clip, clip)


class NormalizationConfig(Protocol):
    """Hyperparameters of a learner that may normalise observations."""

    @property
    def normalize_obs(self) -> bool: ...

    @property
    def clip_obs(self) -> float: ...


def normalize(stats: RunningStatistics, obs: jax.Array, config: NormalizationConfig) -> jax.Array:
    """Observations […, D] as the networks see them: normalised and clipped if ``config.normalize_obs``."""
    return stats.normalize(obs, config.clip_obs) if config.normalize_obs else obs


def update_statistics(
    stats: RunningStatistics, obs: jax.Array, config: NormalizationConfig
) -> RunningStatistics:
    """The statistics with observations [T, N, D] added if ``config.normalize_obs``."""
    return stats.update(obs.reshape(-1, obs.shape[-1])) if config.normalize_obs else stats


def linear_recurrence(decay: jax.Array, x: jax.Array, *, reverse: bool = False) -> jax.Array:
    """``y_t = decay_t · y_{t−1} + x_t`` along axis 0 (from the end with ``reverse``), y before the start being 0.

    Both float32[T, …]. In O(log T) vectorised steps, where a loop would take T.
    """

    def combine(
        a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    result: tuple[jax.Array, jax.Array] = jax.lax.associative_scan(combine, (decay, x), reverse=reverse)
    return result[1]
