"""Group-sparse training as an optax transformation: importance from the raw gradients, then a proximal step.

After Su et al. 2024: neurons that hardly influence the output are penalised more. The penalty is

    R(params) = Σ_ℓ Σ_j λ c_j √n_ℓ ‖(w_in[:,j], b[j])‖₂

over the incoming column and bias of every neuron j of layer ℓ, with n_ℓ entries each, and ``c_j`` from
``penalty_weights``. The outgoing row is not part of the prox group: neighbouring layers would share it, and the prox of
overlapping groups is not the block prox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups, path_string
from prune_rl.dependency.slices import checked_slices
from prune_rl.dependency.tree_paths import KeyPath, leaves_by_path, replace_leaves
from prune_rl.pruning.importance import Importance, Scores, importance_function
from prune_rl.pruning.masks import apply_masks, mask_like
from prune_rl.pruning.proximal import diagonal_prox, entries, euclidean_prox, penalty_weights

Params = Any
Masks = Mapping[str, jax.Array]
Schedule = Callable[[jax.Array], jax.Array | float]
Metric = Literal["euclidean", "adam"]


class GroupSparseState(NamedTuple):
    """``inner``: the wrapped state; ``importance``: {group: float32[size]} running mean; ``count``: updates made."""

    inner: Any
    importance: Scores
    count: jax.Array  # type: ignore[assignment]  # optax's name; it hides tuple.count


def group_sparse(
    inner: optax.GradientTransformation,
    groups: NeuronGroups,
    strength: float | jax.Array | Schedule | Mapping[str, float] = 1e-3,
    learning_rate: float | jax.Array | Schedule = 1e-3,
    *,
    metric: Metric = "euclidean",
    importance: str | Importance = "taylor",
    decay: float = 0.99,
    weight_range: tuple[float, float] = (0.1, 10.0),
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Wrap ``inner`` so that unimportant neurons are pulled towards exactly zero.

    Each update tracks ``I ← β I + (1 − β) importance(params, raw grads)``, runs ``inner``, and replaces the proposal
    ``z = params + updates`` by its proximal point with step size η. A score that is not finite leaves I as it was.

    Args:
        inner: any optax transformation; its updates must already contain the learning rate and the sign.
        groups: from ``find_groups``; groups left out by ``groups.select`` are neither penalised nor masked.
        strength: λ ≥ 0; a number, a traced scalar, a schedule of the update count, or one number per group name.
            A Python 0 leaves the proximal step out of the compiled program. λ does not carry over between metrics.
        learning_rate: η, the step size of ``inner``: a number, a traced scalar, or a schedule of the update count.
        metric: ``"euclidean"``, z_g · max(0, 1 − η λ_g / ‖z_g‖), or ``"adam"``, the prox in the metric
            √v̂ + eps of Adam (Yun et al. 2021, ProxGen), which needs exactly one ``nu`` in the state of ``inner``.
        importance: a name in ``IMPORTANCES`` or a function of that signature.
        decay: β of the running mean of importance.
        weight_range: bounds of ``c_j``, see ``penalty_weights``.
        b2: that of the inner Adam; used by the metric ``"adam"`` only.
        eps: likewise.

    Returns:
        A transformation whose ``update`` takes ``masks={group name: bool[size]}`` as an optional extra argument:
        then masked slices of the params, of the gradients and of every params-shaped part of the inner state are
        exactly 0 after the update, and ``inner`` gets them too, if it takes extra arguments. ``params`` may have more
        leaves than the gradients: those whose gradient is None take no part.

    Raises:
        ValueError: for options out of range, or ``update`` without ``params`` or with params that the groups do not
            fit.
    """
    if metric not in ("euclidean", "adam"):
        raise ValueError(f"unknown metric {metric!r}; choose 'euclidean' or 'adam'")
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    if not 0.0 < weight_range[0] <= weight_range[1]:
        raise ValueError(f"weight_range must be 0 < low <= high, got {weight_range}")
    for value in strength.values() if isinstance(strength, Mapping) else [strength]:
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"strength must be >= 0, got {value}")
    if isinstance(strength, Mapping) and not set(strength) <= set(groups):
        unknown = sorted(set(strength) - set(groups))
        raise ValueError(f"strength names {unknown}, which are no groups; the groups are {list(groups)}")
    wrapped = optax.with_extra_args_support(inner)
    score = importance_function(importance)
    without_prox = _is_zero(strength)

    def init(params: Params) -> GroupSparseState:
        zeros = {name: jnp.zeros(group.size, jnp.float32) for name, group in groups.items()}
        return GroupSparseState(wrapped.init(params), zeros, jnp.zeros((), jnp.int32))

    def update(
        updates: Params,
        state: GroupSparseState,
        params: Params | None = None,
        *,
        masks: Masks | None = None,
        **extra: Any,
    ) -> tuple[Params, GroupSparseState]:
        if params is None:
            raise ValueError("group_sparse needs the params: call update(grads, state, params)")
        params = trained_part(updates, params)
        here = fit_groups(groups, params)
        scores = score(here, params, updates)
        tracked = {name: _running_mean(state.importance[name], scores[name], decay) for name in here}
        if masks is not None:
            updates = apply_masks(here, updates, masks)
            extra = {**extra, "masks": masks}
        updates, inner_state = wrapped.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        if not without_prox:
            proposal = optax.apply_updates(params, updates)
            step_size = jnp.asarray(_at(learning_rate, state.count), jnp.float32)
            strengths = {name: step_size * _strength_of(strength, name, state.count) for name in here}
            weights = penalty_weights(here, tracked, masks, weight_range)
            thresholds = {
                name: strengths[name] * weights[name] * jnp.sqrt(float(entries(group, params)))
                for name, group in here.items()
            }
            if metric == "euclidean":
                proposal = euclidean_prox(here, proposal, thresholds)
            else:
                correction = 1.0 - jnp.float32(b2) ** count
                scale = jax.tree.map(lambda nu: jnp.sqrt(nu / correction) + eps, _second_moment(inner_state))
                proposal = diagonal_prox(here, proposal, thresholds, scale)
            updates = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), proposal, params)
        if masks is not None:
            updates = mask_updates(here, updates, params, masks)
            inner_state = mask_state(here, inner_state, params, masks)
        return updates, GroupSparseState(inner_state, tracked, count)

    # optax types update without keyword extras; the extra-args protocol itself allows them.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def trained_part(updates: Params, params: Params) -> Params:
    """``params`` where ``updates`` has a leaf, None elsewhere.

    Equinox trains the arrays of a model that holds integers and functions too, whose gradient is None.
    """
    return jax.tree.map(
        lambda update, param: None if update is None else param,
        updates,
        params,
        is_leaf=lambda node: node is None,
    )


def fit_groups(groups: NeuronGroups, params: Params) -> NeuronGroups:
    """``groups`` with the key paths of ``params``.

    The leaf of an NNX Variable lies one level deeper ("kernel/value") in the states of ``nnx.state`` than in the arrays
    that ``nnx.Optimizer`` hands to optax ("kernel"); the groups may have been found in either.

    Raises:
        ValueError: the groups do not fit the params.
    """
    leaves = leaves_by_path(params)
    named = {path_string(path): path for path in leaves}

    def fit(path: KeyPath) -> KeyPath:
        if path in leaves:
            return path
        name = path_string(path)
        spellings = (name, f"{name}/value", name.removesuffix("/value"))
        return next((named[spelling] for spelling in spellings if spelling in named), path)

    fitted = NeuronGroups(
        dataclasses.replace(g, slices=tuple(dataclasses.replace(s, path=fit(s.path)) for s in g.slices))
        for g in groups.values()
    )
    checked_slices(fitted, params)
    return fitted


def mask_updates(groups: NeuronGroups, updates: Params, params: Params, masks: Masks) -> Params:
    """``updates`` that take the masked slices of ``params`` to exactly 0 and are the given ones elsewhere.

    Updates of less precision than the params (from bfloat16 gradients, say) come back in that of the params, since
    −param could not be exact otherwise.
    """
    return jax.tree.map(
        lambda keep, update, old: jnp.where(keep, update, -old),
        mask_like(groups, params, masks),
        updates,
        params,
    )


def mask_state(groups: NeuronGroups, state: Any, params: Params, masks: Masks) -> Any:
    """``state`` of any optax transformation with the masked slices of its params-shaped parts at exactly 0.

    A leaf of the state belongs to the parameter of its shape whose path its own path ends with, so that moments which
    cover a part of the params only (``optax.partition``, ``optax.masked``) are found too.
    """
    keep = leaves_by_path(mask_like(groups, params, masks))
    touched = {part.path for name, group in groups.items() if name in masks for part in group.slices}
    moments = {}
    for path, leaf in leaves_by_path(state).items():
        ends = (path[start:] for start in range(len(path) + 1))
        owner = next((end for end in ends if end in keep and keep[end].shape == jnp.shape(leaf)), None)
        if owner in touched:
            moments[path] = jnp.where(keep[owner], leaf, 0)
    return replace_leaves(state, moments)


def _running_mean(mean: jax.Array, score: jax.Array, decay: float) -> jax.Array:
    """Of the finite scores. NaN where there was none yet, which keeps a neuron (``update_masks``), instead of 0."""
    known = jnp.where(jnp.isfinite(mean), mean, 0.0)
    without = jnp.where(known > 0, known, jnp.nan)
    return jnp.where(jnp.isfinite(score), decay * known + (1.0 - decay) * score, without)


def _second_moment(state: Any) -> Params:
    found = [value for _, value in optax.tree.get_all_with_path(state, "nu")]
    if len(found) != 1:
        raise ValueError(
            "metric 'adam' needs an inner transformation with exactly one second moment 'nu' (one Adam) in its "
            f"state, found {len(found)}"
        )
    return found[0]


def _at(value: float | jax.Array | Schedule, count: jax.Array) -> jax.Array | float:
    return value(count) if callable(value) else value


def _strength_of(
    strength: float | jax.Array | Schedule | Mapping[str, float], name: str, count: jax.Array
) -> jax.Array | float:
    return strength.get(name, 0.0) if isinstance(strength, Mapping) else _at(strength, count)


def _is_zero(strength: object) -> bool:
    if isinstance(strength, Mapping):
        return all(_is_zero(value) for value in strength.values())
    return isinstance(strength, int | float) and strength == 0
