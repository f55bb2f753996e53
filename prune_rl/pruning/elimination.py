"""The error that removing several neurons causes together: backward elimination with a refit after every step.

`brain_surgeon` scores each neuron as if it went alone. Two neurons that stand in for each other both score 0, yet not
both can go. Here they go one after the other: the neuron whose removal costs least, then the least costly one of the
others after these took over from it, and so on. With P = C⁻¹ of the neurons that are left and W their outgoing rows,
the step that removes neuron j adds

    ‖W_j‖² / P_jj,    W ← W − P_·j W_j / P_jj,    P ← P − P_·j P_j· / P_jj

to the squared error in what the layer feeds (Hassibi & Stork 1993, equation 5, repeated; in statistics, backward
elimination for least squares). The errors of all steps add up to tr(WᵀCW), the variance of what the layer feeds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups
from prune_rl.dependency.tree_paths import Leaves, Masks, Params, leaves_by_path
from prune_rl.pruning.brain_surgeon import Activations, precisions
from prune_rl.pruning.importance import Scores

TINY = 1e-37  # above 0 in float32


def elimination_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Activations | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
    ridge: float = 1e-2,
) -> Scores:
    """The error that each step of the elimination adds, as a share of the whole: {group name: float32[size]}.

    The neurons of the k lowest scores are those of the first k steps, and their scores add up to the relative error
    after the refit, or a little more: a step that adds less than one before it counts as much as that one. 0 for
    neurons that are masked. Arguments and errors as for ``surgeon_importance``.
    """
    del grads, key
    leaves = leaves_by_path(jax.lax.stop_gradient(params))
    found = precisions("elimination", groups, activations, masks, ridge)
    return {
        name: _eliminate(precision, _outgoing_rows(groups[name], leaves), alive)
        for name, (alive, precision) in found.items()
    }


def _outgoing_rows(group: NeuronGroup, leaves: Leaves) -> jax.Array:
    """The outgoing weights of each neuron, float[size, …] with the rest of every slice flattened and joined."""
    rows = []
    for part in group.outgoing:
        moved = jnp.moveaxis(leaves[part.path], part.axis, 0)
        mine = moved if part.positions is None else moved[part.indices(group.size)]
        rows.append(mine.reshape(group.size, -1))
    return jnp.concatenate(rows, axis=1)


Elimination = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


# Traced and lowered once for each size, as `brain_surgeon.inverse`.
@jax.jit
def _eliminate(precision: jax.Array, rows: jax.Array, alive: jax.Array) -> jax.Array:
    """Relative errors by neuron, float32[n], from P float[n, n] and W float[n, m] of the neurons that are left."""
    size = alive.shape[0]
    # The error of a step cannot be scaled away by rounding: W in units of its largest entry.
    rows = jnp.where(alive[:, None], rows, 0.0).astype(precision.dtype)
    largest = jnp.max(jnp.abs(rows))
    rows = rows / jnp.where(largest > 0, largest, 1.0)

    def step(carry: Elimination) -> Elimination:
        precision, rows, left, errors, highest = carry
        diagonal = jnp.maximum(jnp.diagonal(precision), TINY)
        costs = jnp.where(left, jnp.sum(jnp.square(rows), axis=1) / diagonal, jnp.inf)
        j = jnp.argmin(costs)
        highest = jnp.maximum(highest, costs[j])
        errors = errors.at[j].set(highest)
        column = precision[:, j] / diagonal[j]
        # j is out of the system from now on; rounding must not bring it back.
        left = left.at[j].set(False)
        rows = jnp.where(left[:, None], rows - jnp.outer(column, rows[j]), 0.0)
        precision = precision - jnp.outer(column, precision[j])
        return precision, rows, left, errors, highest

    zero = jnp.zeros((), precision.dtype)
    start = (precision, rows, alive, jnp.zeros(size, precision.dtype), zero)
    # Under vmap it ends with the last one: none that are alive cost nothing.
    errors: jax.Array = jax.lax.while_loop(lambda carry: jnp.any(carry[2]), step, start)[3]
    total = jnp.sum(errors)
    errors = errors / jnp.where(total > 0, total, 1.0)
    return errors.astype(jnp.float32)
