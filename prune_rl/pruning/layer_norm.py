"""A layer normalisation that does not notice when neurons are removed."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Layer normalisation (Ba et al. 2016, equations 3 and 4) over the neurons that are left.

    A neuron with ``scale`` 0 counts as removed: it takes no part in mean and variance, and its output is its bias.
    Zeroing a neuron's slices therefore gives exactly the network without it, which makes the normalised neurons groups
    for `find_groups`; under the ordinary layer normalisation they are not, since its mean runs over a fixed number.

    Args:
      x: float[…, n]; removed neurons may hold anything that is finite.
      scale: float[n], not 0 in neurons that are to take part; initialise with 1.
      bias: float[n].
      eps: added to the variance.

    Returns:
      float[…, n].
    """
    along = (1,) * (x.ndim - 1) + (-1,)
    alive = jnp.broadcast_to((scale != 0).reshape(along), x.shape)
    number = jnp.maximum(jnp.sum(alive.astype(x.dtype), axis=-1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(alive, x, 0), axis=-1, keepdims=True) / number
    centred = jnp.where(alive, x - mean, 0)
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / number
    return centred * jax.lax.rsqrt(variance + eps) * scale.reshape(along) + bias.reshape(along)
