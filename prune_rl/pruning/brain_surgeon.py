"""Remove neurons that the others can stand in for, and let them: scores and least-squares refit from activations.

A neuron of a wide network is often nearly an affine function of its neighbours. Its removal then costs nothing,
provided the outgoing weights of the neighbours take over. With the activations' covariance C over the neurons of a
layer, ``1 / [C⁻¹]_jj`` is the variance of neuron j that the others do not explain, so

    score_j = ‖w_out[j,:]‖² / [C⁻¹]_jj

is the squared error in what the layer feeds, after the best refit: the Optimal Brain Surgeon saliency (Hassibi & Stork
1993, equation 5) for whole neurons and a layer-wise error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params, leaves_by_path, replace_leaves
from prune_rl.pruning.importance import Scores, sum_of_squares

Activations = Mapping[str, jax.Array]

# Rows and columns that are eliminated together: the fastest of 8, 16, 32, 64 and 128 for 256 neurons on a CPU.
BLOCK = 16


def surgeon_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Activations | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
    ridge: float = 1e-2,
) -> Scores:
    """The scores above, {group name: float32[size]}; 0 for neurons that are masked.

    Args:
        groups: from ``find_groups``.
        params: the pytree in which the groups were found.
        grads: not used.
        activations: {group name: float[…, size]} over a batch, from ``prune_rl.activations``.
        masks: {group name: bool[size]}, the neurons that are left; None or a missing name: all of them.
        key: not used.
        ridge: added to C as a share of its mean diagonal; it bounds how finely linear dependence is resolved.

    Raises:
        ValueError: there are no ``activations``.
    """
    del grads, key
    leaves = leaves_by_path(jax.lax.stop_gradient(params))
    scores = {}
    for name, (alive, precision) in precisions("surgeon", groups, activations, masks, ridge).items():
        group, unexplained = groups[name], 1.0 / jnp.diagonal(precision)
        scores[name] = jnp.where(alive, sum_of_squares(group.outgoing, leaves, group) * unexplained, 0.0)
    return scores


def precisions(
    importance: str, groups: NeuronGroups, activations: Activations | None, masks: Masks | None, ridge: float
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{group name: (which neurons are left, bool[size]; C⁻¹ over these, float[size, size])}, for a score.

    Constants for differentiation; arguments as for ``surgeon_importance``. Of a layer without a neuron, C⁻¹ is
    anything finite. Raises ``ValueError`` that names the ``importance`` if there are no activations.
    """
    if activations is None:
        raise ValueError(
            f"importance {importance!r} needs activations={{group name: float[…, size]}}, got None"
        )
    activations = jax.lax.stop_gradient(dict(activations))
    found = {}
    for name, group in groups.items():
        chex.assert_axis_dimension(activations[name], -1, group.size)
        alive = jnp.ones(group.size, bool) if masks is None or name not in masks else masks[name]
        _, covariance = _moments(activations[name], alive, ridge)
        found[name] = alive, inverse(covariance, jnp.any(alive))
    return found


def refit(
    groups: NeuronGroups,
    params: Params,
    activations: Activations,
    old_masks: Masks,
    new_masks: Masks,
    *,
    bias_of: Callable[[KeyPath], KeyPath | None] = lambda path: None,
    ridge: float = 1e-2,
) -> Params:
    """``params`` in which the neurons of ``new_masks`` take over from those that only ``old_masks`` keeps.

    For removed neurons R and kept K, ΔW_K = (C_KK + ridge)⁻¹ C_KR W_R is added to the outgoing rows of K: the least
    squares solution for what the layer feeds. ``bias_of`` maps the path of an outgoing leaf to the bias that is added
    after it, which then takes the difference of the means; without one, means are fitted only as far as the rows can.
    A neuron that is read at several positions (a flattened image) has one covariance, pooled over them: its refit is
    then an approximation. Apply ``new_masks`` afterwards. Jittable.
    """
    leaves = leaves_by_path(params)
    for name, group in groups.items():
        chex.assert_axis_dimension(activations[name], -1, group.size)
        kept = new_masks[name]
        removed = old_masks[name] & ~kept
        mean, covariance = _moments(activations[name], old_masks[name], ridge)
        both_kept = kept[:, None] & kept[None, :]
        system = jnp.where(both_kept, covariance, jnp.eye(group.size, dtype=covariance.dtype))
        cross = jnp.where(kept[:, None] & removed[None, :], covariance, 0.0)
        takes_over = _product(inverse(system, jnp.any(removed)), cross)
        for part in group.outgoing:
            where, leaf = part.indices(group.size), leaves[part.path]
            moved = jnp.moveaxis(leaf, part.axis, 0)
            mine = moved if part.positions is None else moved[where]
            rows = mine.reshape(group.size, -1)
            change = _product(takes_over, rows)
            added = change.reshape(mine.shape).astype(leaf.dtype)
            new = moved + added if part.positions is None else moved.at[where].add(added)
            leaves[part.path] = jnp.moveaxis(new, 0, part.axis)
            bias = bias_of(part.path)
            if bias is not None:
                gone = _product(jnp.where(removed, mean, 0.0), rows)
                shift = (gone - _product(mean, change)).reshape(*mine.shape[1:])
                if part.positions is not None:
                    shift = shift.sum(axis=0)
                leaves[bias] = leaves[bias] + shift.reshape(leaves[bias].shape).astype(leaves[bias].dtype)
    return replace_leaves(params, leaves)


# Traced and lowered once for each size: a mask update inverts a matrix for every layer of every network.
@jax.jit
def inverse(matrix: jax.Array, needed: jax.Array | bool = True) -> jax.Array:
    """Inverse of a symmetric positive definite float[n, n] by Gauss-Jordan elimination, stable without pivots there.

    Where it is not ``needed`` (bool[]), something finite. Under ``vmap``, nothing is computed if no matrix is needed.

    Plain XLA operations: the batched LAPACK call behind ``jnp.linalg.inv`` waits for the thread pool that it runs in,
    and can wait for ever on a machine with few cores. Blocks of rows and columns are swept together, so that most of
    the work is matrix products.
    """
    size = matrix.shape[0]
    block = min(size, BLOCK)
    padding = -size % block
    # The inverse of a block diagonal matrix is that of its blocks: the padding is the identity.
    work = jnp.pad(matrix, (0, padding)) + jnp.diag(
        jnp.pad(jnp.zeros(size, matrix.dtype), (0, padding), constant_values=1)
    )

    def eliminate(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        k, work = carry
        # The sweep operator (Goodnight 1979): rows and columns become those of the inverse of the part swept so far.
        at = k * block
        rows = jax.lax.dynamic_slice_in_dim(work, at, block, axis=0)
        columns = jax.lax.dynamic_slice_in_dim(work, at, block, axis=1)
        pivot = -_sweep(jax.lax.dynamic_slice_in_dim(rows, at, block, axis=1))
        new_rows = _product(pivot, rows)
        swept = work - _product(columns, new_rows)
        swept = jax.lax.dynamic_update_slice_in_dim(swept, new_rows, at, axis=0)
        swept = jax.lax.dynamic_update_slice_in_dim(swept, _product(columns, pivot), at, axis=1)
        return k + 1, jax.lax.dynamic_update_slice(swept, -pivot, (at, at))

    def goes_on(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (carry[0] < work.shape[0] // block) & needed

    swept: jax.Array = jax.lax.while_loop(goes_on, eliminate, (jnp.int32(0), work))[1]
    return -swept[:size, :size]


def _sweep(matrix: jax.Array) -> jax.Array:
    """Minus the inverse of a small symmetric positive definite matrix, one row and column after the other."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def eliminate(j: jax.Array, work: jax.Array) -> jax.Array:
        unit = identity[j]
        pivot, row, column = work[j, j], work[j], work[:, j]
        swept = work - jnp.outer(column, row) / pivot
        swept = jnp.where(unit[None, :] > 0, column[:, None] / pivot, swept)
        swept = jnp.where(unit[:, None] > 0, row[None, :] / pivot, swept)
        return jnp.where((unit[:, None] > 0) & (unit[None, :] > 0), -1.0 / pivot, swept)

    swept: jax.Array = jax.lax.fori_loop(0, matrix.shape[0], eliminate, matrix)
    return swept


def _moments(activations: jax.Array, alive: jax.Array, ridge: float) -> tuple[jax.Array, jax.Array]:
    """Mean [n] and regularised covariance [n, n] over the batch; rows and columns of masked neurons are those of I."""
    flat = activations.reshape(-1, activations.shape[-1])
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    mean = jnp.mean(flat, axis=0)
    centred = jnp.where(alive[None, :], flat - mean[None, :], 0.0)
    covariance = _product(centred.T, centred) / flat.shape[0]
    scale = jnp.sum(jnp.diagonal(covariance)) / jnp.maximum(jnp.sum(alive), 1) + 1e-12
    diagonal = jnp.where(alive, ridge * scale, 1.0)
    return jnp.where(alive, mean, 0.0), covariance + jnp.diag(diagonal)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in full precision: the accelerators' default of fewer bits is coarser than the ridge."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
