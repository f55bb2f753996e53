"""Proximal steps of the group-sparse penalty on every neuron's incoming slices; see
`prune_rl.pruning.transforms.proximal_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params, leaves_by_path, replace_leaves
from prune_rl.pruning.importance import Scores, sum_of_squares

SMALLEST = float(np.finfo(np.float32).tiny)


def penalty_weights(
    groups: NeuronGroups,
    importance: Mapping[str, jax.Array],
    masks: Masks | None = None,
    weight_range: tuple[float, float] = (0.1, 10.0),
) -> Scores:
    """``c_j = clip(mean_i I_i / I_j, low, high)``, the mean over the layer's neurons that are still there.

    Large where the importance is small. A layer whose importance is 0 everywhere, or not finite, gets c = 1 there.
    Returns {group name: float32[size]}; constant for differentiation.
    """
    weights = {}
    for name in groups:
        score = jax.lax.stop_gradient(importance[name])
        alive = jnp.isfinite(score)
        if masks is not None and name in masks:
            alive &= masks[name]
        mean = jnp.sum(jnp.where(alive, score, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
        ratio = mean / jnp.maximum(score, SMALLEST)
        usable = (mean > 0) & jnp.isfinite(score)
        weights[name] = jnp.where(usable, jnp.clip(ratio, *weight_range), 1.0)
    return weights


def euclidean_prox(groups: NeuronGroups, params: Params, thresholds: Mapping[str, jax.Array]) -> Params:
    """``argmin_x ½‖x − z‖² + t_j ‖x_j‖`` for every neuron's incoming slices: z_j · max(0, 1 − t_j / ‖z_j‖).

    ``thresholds`` is {group name: float[size]}, t = ηλ_g. A group at zero stays there (block soft-thresholding,
    Yuan & Lin 2006).
    """
    leaves = leaves_by_path(params)
    for name, group in groups.items():
        norm = jnp.sqrt(sum_of_squares(group.incoming, leaves, group))
        threshold = thresholds[name]
        shrink = jnp.where(norm > threshold, 1.0 - threshold / jnp.where(norm > threshold, norm, 1.0), 0.0)
        # Not left to the line above, where the square of a tiny norm is 0.
        shrink = jnp.where(threshold > 0, shrink, 1.0)
        for part in group.incoming:
            leaf = leaves[part.path]
            factor = along_axis(part.spread(shrink, 1.0), part.axis, leaf.ndim)
            leaves[part.path] = leaf * factor.astype(leaf.dtype)
    return replace_leaves(params, leaves)


def diagonal_prox(
    groups: NeuronGroups,
    params: Params,
    thresholds: Mapping[str, jax.Array],
    scale: Params,
    *,
    steps: int = 40,
) -> Params:
    """``argmin_x ½ Σ_i D_i (x_i − z_i)² + t_j ‖x_j‖`` for every neuron's incoming slices (Yun et al. 2021, section 3).

    With t = ηλ_g the group is 0 if ‖D∘z‖ ≤ t, else x_i = D_i z_i θ / (D_i θ + t), where θ = ‖x‖ is the root of
    Σ_i (D_i z_i / (D_i θ + t))² = 1 in (0, ‖z‖], found by ``steps`` bisections. With d = D/η, the condition is ‖d∘z‖ ≤
    λ_g; it is multiplied by η here, so that η = 0 is no special case. ``scale`` is D > 0, a pytree like ``params``.
    """
    leaves, scales = leaves_by_path(params), leaves_by_path(scale)
    for name, group in groups.items():
        z = _columns(group, leaves)
        d = _columns(group, scales)
        threshold = thresholds[name].astype(jnp.float32)
        gradient = d * z

        def too_small(
            theta: jax.Array,
            gradient: jax.Array = gradient,
            d: jax.Array = d,
            threshold: jax.Array = threshold,
        ) -> jax.Array:
            denominator = d * theta[None, :] + threshold[None, :]
            ratio = gradient / jnp.where(denominator > 0, denominator, 1.0)
            return jnp.sum(jnp.square(ratio), axis=0) > 1.0

        def bisect(
            _: jax.Array,
            bracket: tuple[jax.Array, jax.Array],
            too_small: Callable[[jax.Array], jax.Array] = too_small,
        ) -> tuple[jax.Array, jax.Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            below = too_small(middle)
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        norm = jnp.sqrt(jnp.sum(jnp.square(z), axis=0))
        low, high = jax.lax.fori_loop(0, steps, bisect, (jnp.zeros_like(norm), norm))
        theta = 0.5 * (low + high)
        pull = d * theta[None, :]
        denominator = pull + threshold[None, :]
        shrink = jnp.where(denominator > 0, pull / jnp.where(denominator > 0, denominator, 1.0), 0.0)
        vanishes = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=0)) <= threshold
        x = jnp.where(vanishes[None, :], 0.0, shrink * z)
        _replace_columns(group, leaves, jnp.where(threshold[None, :] > 0, x, z))
    return replace_leaves(params, leaves)


def entries(group: NeuronGroup, params: Params) -> int:
    """n_ℓ: the number of incoming entries of one neuron of the group, bias included."""
    leaves = leaves_by_path(params)
    return sum(
        leaves[part.path].size // leaves[part.path].shape[part.axis] * part.indices(group.size).shape[1]
        for part in group.incoming
    )


def along_axis(x: jax.Array, axis: int, ndim: int) -> jax.Array:
    """``x`` [n] with size-1 axes around it, so that it multiplies axis ``axis`` of an ``ndim``-dimensional array."""
    return x.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _columns(group: NeuronGroup, leaves: Mapping[Any, jax.Array]) -> jax.Array:
    """All incoming entries, one column per neuron: float32[n_ℓ, size]."""
    columns = []
    for part in group.incoming:
        moved = jnp.moveaxis(leaves[part.path], part.axis, -1)
        if part.positions is not None:
            moved = jnp.moveaxis(moved[..., part.indices(group.size)], -1, 0)
        columns.append(moved.reshape(-1, group.size))
    return jnp.concatenate(columns).astype(jnp.float32)


def _replace_columns(group: NeuronGroup, leaves: dict[Any, jax.Array], columns: jax.Array) -> None:
    """The inverse of ``_columns``, into ``leaves``."""
    start = 0
    for part in group.incoming:
        where, leaf = part.indices(group.size), leaves[part.path]
        moved = jnp.moveaxis(leaf, part.axis, -1)
        shape = (where.shape[1], *moved.shape[:-1], group.size)
        stop = start + math.prod(shape[:-1])
        new = jnp.moveaxis(columns[start:stop].reshape(shape), 0, -1).astype(leaf.dtype)
        moved = new[..., 0] if part.positions is None else moved.at[..., where].set(new)
        leaves[part.path] = jnp.moveaxis(moved, -1, part.axis)
        start = stop
