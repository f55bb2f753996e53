"""Steps that grow as a layer narrows, as an optax transformation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import leaves_by_path, replace_leaves


class ScaleByWidthState(NamedTuple):
    """``sizes``: {group name: int32[]}, the neurons of each group at ``init``."""

    sizes: dict[str, jax.Array]


def scale_by_width(groups: NeuronGroups, exponent: float = 0.5) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates of what reads a layer by (the group's size at ``init`` / neurons left) ** ``exponent``.

    Adam moves every weight by about its step size, however many there are. What a neuron receives is a sum over the
    neurons before it, so the fewer of them are left, the less a step changes the function: by the ratio of the widths
    where the terms of the sum agree, by its root where they do not. Put it last: ``optax.chain(adam,
    scale_by_width(groups))``.

    Args:
        groups: from ``find_groups``; only the outgoing slices of these groups are scaled.
        exponent: 0.5 suits weights whose scale is that of a fan-in initialisation; 0 changes nothing.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`. Its ``update`` takes ``masks={group name: bool[size]}`` as an
        extra argument, as ``group_sparse`` hands them on; without masks, it changes nothing. A layer without neurons is
        left alone.

    Raises:
        ValueError: ``exponent`` is negative or not finite.

    References:
        Yang et al., `Tensor Programs V <https://arxiv.org/abs/2203.03466>`_, 2021, who scale Adam's step sizes by
        1 / width for the same reason.

    Examples:
        >>> import jax.numpy as jnp, prune_rl
        >>> params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> tx = prune_rl.scale_by_width(groups, exponent=0.5)
        >>> masks = {"a": jnp.array([True, False, False, False])}
        >>> updates, _ = tx.update(params, tx.init(params), params, masks=masks)
        >>> print(updates["b"].T)
        [[2. 2. 2. 2.]]
    """
    if not 0.0 <= exponent < float("inf"):
        raise ValueError(f"exponent must be a finite number >= 0, got {exponent}")

    def init(params: Any) -> ScaleByWidthState:
        del params
        return ScaleByWidthState({name: jnp.int32(group.size) for name, group in groups.items()})

    def update(
        updates: Any,
        state: ScaleByWidthState,
        params: Any = None,
        *,
        masks: Mapping[str, jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[Any, ScaleByWidthState]:
        del params, extra
        leaves = leaves_by_path(updates)
        for name, group in groups.items():
            if masks is None or name not in masks:
                continue
            kept = jnp.maximum(jnp.sum(masks[name]), 1).astype(jnp.float32)
            factor = (state.sizes[name] / kept) ** exponent
            for part in group.outgoing:
                leaf = leaves[part.path]
                along: Any = factor
                if part.positions is not None:  # other positions along the axis are not the group's
                    each = part.spread(jnp.full(group.size, factor), 1.0)
                    along = each.reshape([-1 if i == part.axis else 1 for i in range(leaf.ndim)])
                leaves[part.path] = (leaf * along).astype(leaf.dtype)
        return replace_leaves(updates, leaves), state

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
