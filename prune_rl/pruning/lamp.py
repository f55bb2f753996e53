"""Scores that can be compared over layers: layer-adaptive ones, after LAMP."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def lamp_scores(
    scores: Mapping[str, jax.Array], masks: Mapping[str, jax.Array] | None = None
) -> dict[str, jax.Array]:
    """Layer-adaptive scores, comparable over layers: {group name: float32[size]}.

    The score of a neuron as a share of its own and all higher ones of its layer, ``I_j / Σ_{I_i ≥ I_j} I_i``. The
    highest of each layer is 1, so that a global ranking empties no layer. In LAMP the I are squared weights; here they
    are scores of neurons, so give ones that are squares or errors. NaN stays NaN; of equal scores, the one of the lower
    index counts as the lower.

    Args:
        scores: {group name: float[size]}, non-negative.
        masks: {group name: bool[size]}; masked neurons count as holding nothing.

    References:
        Lee, Park, Mo, Ahn and Shin, `Layer-adaptive sparsity for the magnitude-based pruning
        <https://arxiv.org/abs/2010.07611>`_, ICLR 2021
    """
    found = {}
    for name, score in scores.items():
        value = jnp.where(jnp.isnan(score), 0.0, score.astype(jnp.float32))
        value = value if masks is None else jnp.where(masks[name], value, 0.0)
        order = jnp.argsort(value, stable=True)
        rest = jnp.cumsum(value[order][::-1])[::-1]
        share = jnp.zeros_like(value).at[order].set(value[order] / jnp.where(rest > 0, rest, 1.0))
        found[name] = jnp.where(jnp.isnan(score), jnp.nan, share)
    return found
