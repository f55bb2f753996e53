"""Group-sparse training as an optax transformation: tracked importance, a proximal step, masks."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.pruning.importance import Importance, Scores
from prune_rl.pruning.transforms.handed_masks import hand_masks
from prune_rl.pruning.transforms.proximal_step import (
    Metric,
    ProximalStepState,
    Scalar,
    Strength,
    hyperparameter,
    is_zero,
    proximal_step,
)
from prune_rl.pruning.transforms.track_importance import TrackImportanceState, track_importance
from prune_rl.pruning.transforms.trained_params import trained_part
from prune_rl.pruning.transforms.zero_masked import zero_masked


class ProximalState(NamedTuple):
    """``inner``: the state of the wrapped transformation; ``step``: that of ``proximal_step``."""

    inner: Any
    step: ProximalStepState


class GroupSparseState(NamedTuple):
    """``tracked``: the state of ``track_importance``; ``proximal``: that of the inner transformation and the step."""

    tracked: TrackImportanceState
    proximal: ProximalState

    @property
    def importance(self) -> Scores:
        """{group name: float32[size]}, the tracked importance."""
        return self.tracked.importance

    @property
    def inner(self) -> Any:
        """The state of the wrapped transformation."""
        return self.proximal.inner

    @property
    def num_updates(self) -> jax.Array:
        """int32[], updates made."""
        return self.proximal.step.count


def group_sparse(
    inner: optax.GradientTransformation,
    groups: NeuronGroups,
    strength: Strength = 1e-3,
    learning_rate: Scalar | None = None,
    *,
    metric: Metric = "euclidean",
    importance: str | Importance = "taylor",
    decay: float = 0.99,
    weight_range: tuple[float, float] = (0.1, 10.0),
    b2: float | None = None,
    eps: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap ``inner`` so that unimportant neurons are pulled towards exactly zero.

    A composition of three transformations: ``track_importance`` on the raw gradients, ``inner`` followed by
    ``proximal_step``, and ``zero_masked`` around the latter two.

    Args:
        inner: any optax transformation; its updates must contain the learning rate and the sign.
        groups: from ``find_groups``; groups left out by ``groups.select`` are neither penalised nor masked.
        strength: λ ≥ 0, see ``proximal_step``.
        learning_rate: η, the step size of ``inner``. None: read from ``inner``, which must then be made with
            :func:`optax.inject_hyperparams`; not needed if ``strength`` is a Python 0.
        metric: "euclidean" or "adam", see ``proximal_step``.
        importance: see ``track_importance``.
        decay: β of the running mean of importance.
        weight_range: bounds of ``c_j``, see ``penalty_weights``.
        b2: that of the inner Adam, for the metric "adam" only. None: read from ``inner``, as the learning rate.
        eps: likewise.

    Returns:
        A transformation whose ``update`` takes ``masks={group name: bool[size]}`` as an optional extra argument:
        then masked slices of the params, of the gradients and of every params-shaped part of the inner state are
        exactly 0 after the update, and ``inner`` gets them too, if it takes extra arguments. ``params`` may have more
        leaves than the gradients: those whose gradient is None take no part.

    Raises:
        ValueError: for options out of range, an ``importance`` that needs more than gradients; from ``init`` where
            ``inner`` does not hold what was not given; from ``update`` without ``params`` or with params that the
            groups do not fit.

    References:
        Su et al., `Compressing Deep Reinforcement Learning Networks with a Dynamic Structured Pruning Method for
        Autonomous Driving <https://arxiv.org/abs/2402.05146>`_, 2024

    Examples:
        The step size, ``b2`` and ``eps`` are said once, in the inner transformation:

        >>> import jax.numpy as jnp, optax, prune_rl
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> adam = optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.01, 100))
        >>> tx = prune_rl.group_sparse(adam, groups, strength=1e-2, metric="adam")
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    tracker = track_importance(groups, importance, decay)
    step = proximal_step(
        groups, strength, learning_rate, metric=metric, weight_range=weight_range, b2=b2, eps=eps
    )
    wrapped = hand_masks(inner, given=True)
    needed = {"learning_rate": learning_rate, **({"b2": b2, "eps": eps} if metric == "adam" else {})}
    missing = [name for name, value in needed.items() if value is None and not is_zero(strength)]

    def init_proximal(params: Params) -> ProximalState:
        state = wrapped.init(params)
        for name in missing:
            hyperparameter(name, None, state)
        return ProximalState(state, step.init(params))

    def update_proximal(
        updates: Params,
        state: ProximalState,
        params: Params | None = None,
        *,
        importance: Scores,
        **extra: Any,
    ) -> tuple[Params, ProximalState]:
        updates, inner_state = wrapped.update(updates, state.inner, params, **extra)
        updates, step_state = step.update(
            updates,
            state.step,
            params,
            importance=importance,
            inner_state=inner_state,
            masks=extra.get("masks"),
        )
        return updates, ProximalState(inner_state, step_state)

    masked = zero_masked(
        optax.GradientTransformationExtraArgs(init_proximal, cast(Any, update_proximal)), groups
    )

    def init_fn(params: Params) -> GroupSparseState:
        return GroupSparseState(tracker.init(params), masked.init(params))

    def update_fn(
        updates: Params,
        state: GroupSparseState,
        params: Params | None = None,
        *,
        masks: Masks | None = None,
        **extra: Any,
    ) -> tuple[Params, GroupSparseState]:
        params = trained_part("group_sparse", updates, params)
        updates, tracked = tracker.update(updates, state.tracked, params)
        updates, proximal = masked.update(
            updates, state.proximal, params, masks=masks, importance=tracked.importance, **extra
        )
        return updates, GroupSparseState(tracked, proximal)

    # optax types update without keyword extras; the extra-args protocol itself allows them.
    return optax.GradientTransformationExtraArgs(init_fn, cast(Any, update_fn))
