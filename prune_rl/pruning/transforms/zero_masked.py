"""Masked neurons at exactly zero, around any optax transformation."""

from __future__ import annotations

from typing import Any, cast

import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.pruning.masks import apply_masks, mask_state, mask_updates
from prune_rl.pruning.transforms.handed_masks import hand_masks
from prune_rl.pruning.transforms.trained_params import fit_groups, trained_part


def zero_masked(
    inner: optax.GradientTransformation, groups: NeuronGroups
) -> optax.GradientTransformationExtraArgs:
    """Wrap ``inner`` so that masked slices of gradients, params and params-shaped moments are exactly 0.

    Nothing may change its updates afterwards: in a chain of transformations, it comes last.

    Args:
        inner: any optax transformation.
        groups: from ``find_groups``.

    Returns:
        A transformation with the state of ``inner``. Its ``update`` takes ``masks={group name: bool[size]}`` as an
        optional extra argument; without it, it is ``inner``. ``inner`` gets the masks too, if it takes extra arguments.

    Raises:
        ValueError: from ``update`` without ``params``, or with params that the groups do not fit.

    Examples:
        >>> import jax.numpy as jnp, optax, prune_rl
        >>> from prune_rl.pruning.transforms.zero_masked import zero_masked
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> tx = zero_masked(optax.sgd(0.1), groups)
        >>> masks = {"a": jnp.array([True, False, True])}
        >>> updates, _ = tx.update(params, tx.init(params), params, masks=masks)
        >>> print(optax.apply_updates(params, updates)["b"].T)
        [[0.9 0.  0.9]]
    """
    wrapped = hand_masks(inner, given=True)

    def update_fn(
        updates: Params, state: Any, params: Params | None = None, *, masks: Masks | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        params = trained_part("zero_masked", updates, params)
        if masks is None:
            unmasked: tuple[Params, Any] = wrapped.update(updates, state, params, **extra)
            return unmasked
        here = fit_groups(groups, params)
        updates = apply_masks(here, updates, masks)
        updates, state = wrapped.update(updates, state, params, masks=masks, **extra)
        return mask_updates(here, updates, params, masks), mask_state(here, state, params, masks)

    return optax.GradientTransformationExtraArgs(wrapped.init, cast(Any, update_fn))
