"""How much each neuron matters: one function per definition, all behind one signature.

Every function maps ``(groups, params, grads, *, activations, masks, key)`` to ``{group name: float32[size]}`` and
ignores what it does not need; `prune_rl.pruning.scores` says what each needs. Scores are non-negative, comparable
within a group, and constants for differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, Slice
from prune_rl.dependency.tree_paths import Leaves, Masks, Params, leaves_by_path

Scores = dict[str, jax.Array]
Importance = Callable[..., Scores]


def taylor_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Mapping[str, jax.Array] | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
) -> Scores:
    """First-order change of the loss when a neuron's gate closes: ``|Σ_k w_out[j,k] ∂L/∂w_out[j,k]|``.

    This is the gate-Taylor criterion (Molchanov et al. 2019, section 3.2) written with the outgoing weights, so
    that parameters and gradients are all it takes. Raises ``ValueError`` without ``grads``.
    """
    del activations, masks, key
    gates = gate_gradients(groups, params, grads, "taylor")
    return jax.lax.stop_gradient({name: jnp.abs(gate) for name, gate in gates.items()})


def fisher_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Mapping[str, jax.Array] | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
) -> Scores:
    """Squared gate gradient, ``(Σ_k w_out[j,k] ∂L/∂w_out[j,k])²``.

    Averaged over updates it is the gate's diagonal empirical Fisher information (Theis et al. 2018, section 3).
    Raises ``ValueError`` without ``grads``.
    """
    del activations, masks, key
    gates = gate_gradients(groups, params, grads, "fisher")
    return jax.lax.stop_gradient({name: jnp.square(gate) for name, gate in gates.items()})


def magnitude_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Mapping[str, jax.Array] | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
) -> Scores:
    """Product of the norms of what enters and what leaves a neuron, ``‖(w_in[:,j], b[j])‖ · ‖w_out[j,:]‖``.

    The product does not change when a positively homogeneous neuron is rescaled, ``(w_in, b) · c`` and ``w_out / c``.
    """
    del grads, activations, masks, key
    # Stopped before the square root: its derivative at a norm of 0 is not finite.
    leaves = leaves_by_path(jax.lax.stop_gradient(params))
    return {
        name: jnp.sqrt(
            sum_of_squares(group.incoming, leaves, group) * sum_of_squares(group.outgoing, leaves, group)
        )
        for name, group in groups.items()
    }


def output_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Mapping[str, jax.Array] | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
) -> Scores:
    """Mean influence on the next layer, ``E|a_j| · ‖w_out[j,:]‖``.

    ``activations`` is ``{group name: float[…, size]}``, as ``prune_rl.activations`` returns it; the mean runs
    over all leading axes. Raises ``ValueError`` without it.
    """
    del grads, masks, key
    if activations is None:
        raise ValueError("importance 'output' needs activations={group name: float[…, size]}, got None")
    params, activations = jax.lax.stop_gradient((params, dict(activations)))
    leaves = leaves_by_path(params)
    scores = {}
    for name, group in groups.items():
        mean = jnp.mean(jnp.abs(activations[name]).reshape(-1, group.size), axis=0)
        scores[name] = mean * jnp.sqrt(sum_of_squares(group.outgoing, leaves, group))
    return scores


def random_importance(
    groups: NeuronGroups,
    params: Params,
    grads: Params | None = None,
    *,
    activations: Mapping[str, jax.Array] | None = None,
    masks: Masks | None = None,
    key: jax.Array | None = None,
    neurons: Mapping[str, jax.Array] | None = None,
) -> Scores:
    """Uniform scores in [0, 1): the control that knows nothing. Raises ``ValueError`` without ``key``.

    A neuron's score depends on ``key``, its group, and its number: its index, or the one in ``neurons``, {group name:
    int32[size]}, which it had before the arrays were made smaller.
    """
    del params, grads, activations, masks
    if key is None:
        raise ValueError("importance 'random' needs key=jax.random.key(…), got None")
    scores = {}
    for i, (name, group) in enumerate(groups.items()):
        numbers = jnp.arange(group.size) if neurons is None else neurons[name]
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, i), numbers)
        scores[name] = jax.vmap(jax.random.uniform)(keys)
    return scores


def gate_gradients(groups: NeuronGroups, params: Params, grads: Params | None, wanted_by: str) -> Scores:
    """Signed derivative of the loss with respect to a gate of 1 on every neuron, from the outgoing weights."""
    if grads is None:
        raise ValueError(f"importance {wanted_by!r} needs grads, a pytree like params, got None")
    leaves, slopes = leaves_by_path(params), leaves_by_path(grads)
    gates = {}
    for name, group in groups.items():
        gate = jnp.zeros(group.size, jnp.float32)
        for part in group.outgoing:
            gate += part.collect(sum_to_axis(leaves[part.path] * slopes[part.path], part.axis), group.size)
        gates[name] = gate
    return gates


def sum_of_squares(slices: tuple[Slice, ...], leaves: Leaves, group: NeuronGroup) -> jax.Array:
    """Squared Euclidean norm of each neuron's entries in ``slices``: float32[size]."""
    total = jnp.zeros(group.size, jnp.float32)
    for part in slices:
        total += part.collect(sum_to_axis(jnp.square(leaves[part.path]), part.axis), group.size)
    return total


def sum_to_axis(x: jax.Array, axis: int) -> jax.Array:
    """Sum over every axis but ``axis``."""
    return jnp.sum(x, axis=tuple(i for i in range(x.ndim) if i != axis))
