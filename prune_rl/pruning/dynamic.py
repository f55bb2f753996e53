"""All in one, for projects that have an optimiser and a training step: scores, proximal step, threshold, masks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.pruning.group_sparse import (
    GroupSparseState,
    Metric,
    Schedule,
    fit_groups,
    group_sparse,
    mask_state,
    mask_updates,
    trained_part,
)
from prune_rl.pruning.importance import Importance
from prune_rl.pruning.mask_schedule import Scope, Share, check_options, cubic_sparsity, update_masks
from prune_rl.pruning.masks import init_masks

Params = Any
Masks = dict[str, jax.Array]

# For optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS): what has to be a Python value.
STATIC_ARGS = ("total_updates", "begin", "end", "every", "min_width", "decay", "importance")


class DynamicPruningState(NamedTuple):
    """``sparse``: the state of ``group_sparse`` around the inner transformation; ``masks``: {group: bool[size]}."""

    sparse: GroupSparseState
    masks: Masks


def dynamic_pruning(
    inner: optax.GradientTransformation,
    groups: NeuronGroups,
    *,
    total_updates: int,
    sparsity: Share = 0.9,
    begin: float = 0.1,
    end: float = 0.6,
    every: int = 100,
    energy: Share | None = None,
    min_width: int = 1,
    scope: Scope = "layer",
    strength: float | jax.Array | Schedule = 0.0,
    learning_rate: float | jax.Array | Schedule = 1e-3,
    metric: Metric = "euclidean",
    importance: str | Importance = "taylor",
    decay: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that prunes ``groups`` while it optimises.

    Every ``every`` updates between the shares ``begin`` and ``end`` of ``total_updates``, and at the last update of
    that span, the masks are updated towards ``sparsity`` along the cubic schedule (``update_masks``); later the masks
    rest. Its updates take masked slices to exactly 0 and keep them, and the params-shaped moments of ``inner`` there,
    at 0. ``strength``, ``learning_rate``, ``metric``, ``importance`` and ``decay`` are those of ``group_sparse``.
    Read the masks with ``masks_of(opt_state)``.

    The params may be any pytree that optax trains, its leaves any float arrays: raw ones, those of Flax linen and
    Haiku, the states of Flax NNX (through ``nnx.Optimizer`` or without), Equinox modules. ``init`` takes the trained
    arrays; ``update(grads, state, params)`` also takes more than these, such as a whole Equinox model: leaves whose
    gradient is None take no part. The state holds {group: float32[size]} scores and {group: bool[size]} masks.

    How it composes:

    * Nothing may change its updates: it comes last in ``optax.chain``. With ``optax.scale(0.5)`` after it, cut slices
      halve at each update instead of being 0 at once; the masks follow their schedule all the same.
      ``optax.lookahead`` around it brings a part of the cut slices back at each sync, and
      ``optax.contrib.schedule_free`` around it averages them with their past: make the latter ``inner``.
    * What looks at all gradients at once, such as ``optax.clip_by_global_norm``, belongs into ``inner``: before it in a
      chain, it would also see the gradients of neurons that are gone.
    * ``optax.MultiSteps`` and ``optax.apply_if_finite`` around it: updates that they hold back do not count.
    * ``optax.masked`` and ``optax.partition`` around it: the groups must lie in its part of the params.
    * ``optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS)`` makes ``sparsity``, ``energy``,
      ``strength`` and ``learning_rate`` parts of the state. Optax gives them the dtype of the params, in which 0.9 may
      be 0.8984: with bfloat16 params, add ``hyperparam_dtype=jnp.float32``.
    * Moments that are not params-shaped (rows and columns of ``optax.adafactor``) are left as they are.

    Raises:
        ValueError: for options out of range or traced where they may not be, and from ``update`` without ``params``
            or with params that the groups do not fit.
    """
    fixed: dict[str, Any] = {"total_updates": total_updates, "begin": begin, "end": end, "every": every}
    for name, value in {**fixed, "min_width": min_width, "decay": decay}.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name} must be a Python number, got a JAX array ({value}): the schedule is fixed before training. "
                "With optax.inject_hyperparams, give it static_args=prune_rl.pruning.dynamic.STATIC_ARGS"
            )
    if total_updates < 1 or every < 1:
        raise ValueError(f"total_updates and every must be >= 1, got {total_updates} and {every}")
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(f"begin and end must satisfy 0 <= begin <= end <= 1, got {begin} and {end}")
    sparse = group_sparse(
        inner, groups, strength, learning_rate, metric=metric, importance=importance, decay=decay
    )
    check_options(init_masks(groups), init_masks(groups), sparsity, energy, min_width, scope)
    first = begin * total_updates
    span = max((end - begin) * total_updates, 1.0)
    # The last cut is made there, whatever ``every`` is; a product such as 0.07 · 100 lies just above its integer.
    last = max(math.ceil(end * total_updates - 1e-6), 1)

    def init(params: Params) -> DynamicPruningState:
        return DynamicPruningState(sparse.init(params), init_masks(groups))

    def update(
        updates: Params, state: DynamicPruningState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, DynamicPruningState]:
        if params is None:
            raise ValueError("dynamic_pruning needs the params: call update(grads, state, params)")
        params = trained_part(updates, params)
        here = fit_groups(groups, params)
        updates, inner_state = sparse.update(updates, state.sparse, params, masks=state.masks, **extra)
        count = inner_state.count
        progress = jnp.where(count >= last, 1.0, (count - first) / span)

        def cut(_: None) -> Masks:
            return update_masks(
                state.masks,
                inner_state.importance,
                cubic_sparsity(progress, sparsity),
                energy=energy,
                min_width=min_width,
                scope=scope,
            )

        due = ((count % every == 0) & (count >= first) & (count <= last)) | (count == last)
        masks = jax.lax.cond(due, cut, lambda _: state.masks, None)
        updates = mask_updates(here, updates, params, masks)
        inner_state = inner_state._replace(inner=mask_state(here, inner_state.inner, params, masks))
        return updates, DynamicPruningState(inner_state, masks)

    # optax types update without keyword extras; the extra-args protocol itself allows them.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def masks_of(opt_state: Any) -> Masks:
    """{group: bool[size]}, True = kept, from an optimiser state that contains one ``dynamic_pruning``.

    It may be chained or wrapped as deeply as one likes, and its leaves may be NNX Variables
    (``masks_of(optimizer.opt_state)`` of an ``nnx.Optimizer``); the masks come as plain arrays.

    Raises:
        ValueError: there is none, or more than one.
    """

    def is_ours(node: Any) -> bool:
        return isinstance(node, DynamicPruningState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
    if len(found) != 1:
        raise ValueError(
            f"expected one dynamic_pruning in the optimiser's state, found {len(found)}: give masks_of the state, or "
            "the part of the state, that holds exactly one"
        )
    # A Variable is a pytree with one leaf, its value.
    return {name: jax.tree.leaves(mask)[0] for name, mask in found[0].masks.items()}
