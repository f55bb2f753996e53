"""The group-sparse proximal step as an optax transformation.

The penalty is

    R(params) = Σ_ℓ Σ_j λ c_j √n_ℓ ‖(w_in[:,j], b[j])‖₂

over the incoming column and bias of every neuron j of layer ℓ, n_ℓ entries each at the start, with ``c_j`` from
``penalty_weights``: neurons that hardly influence the output are penalised more, after Su et al. 2024. The outgoing row
is not part of the group, since neighbouring layers would share it, and the proximal operator of overlapping groups is
not the block one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Masks, Params
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.proximal import diagonal_prox, entries, euclidean_prox, penalty_weights
from prune_rl.pruning.transforms.trained_params import fit_groups, trained_part

Schedule = Callable[[jax.Array], jax.Array | float]
Scalar = float | jax.Array | Schedule
Strength = Scalar | Mapping[str, float]
Metric = Literal["euclidean", "adam"]


class ProximalStepState(NamedTuple):
    """``count``: int32[], updates made; schedules are functions of it.

    ``entries``: {group name: float32[]}, n_ℓ at ``init``. The penalty of a neuron does not fall because others before
    it are gone. Empty where there is no step.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name for it; it hides tuple.count
    entries: dict[str, jax.Array]


def proximal_step(
    groups: NeuronGroups,
    strength: Strength = 1e-3,
    learning_rate: Scalar | None = None,
    *,
    metric: Metric = "euclidean",
    weight_range: tuple[float, float] = (0.1, 10.0),
    b2: float | None = None,
    eps: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the proposal ``z = params + updates`` by its proximal point, ``updates := prox(z) − params``.

    In a chain of transformations, this should be the last one: its updates must contain the learning rate and the sign.
    Its ``update`` takes the extra arguments ``importance={group name: float32[size]}``, ``masks`` and ``inner_state``,
    the state of the transformation that made the updates; ``group_sparse`` passes them.

    Args:
        groups: from ``find_groups``.
        strength: λ ≥ 0; a number, a traced scalar, a schedule of the update count, or one number per group name. A
            Python 0 leaves the step out of the compiled program. λ does not carry over between metrics.
        learning_rate: η, the step size of the updates: a number, a traced scalar, or a schedule of the update count.
            None: the hyperparameter of that name in ``inner_state``, see :func:`optax.inject_hyperparams`.
        metric: ``"euclidean"``, z_g · max(0, 1 − η λ_g / ‖z_g‖), or ``"adam"``, the proximal point in the metric
            √v̂ + ε of Adam, which needs exactly one Adam in ``inner_state``; v̂ has Adam's own bias correction.
        weight_range: bounds of ``c_j``, see ``penalty_weights``.
        b2: decay of Adam's second moment, for the metric ``"adam"`` only. None: as for ``learning_rate``.
        eps: ε, likewise.

    Returns:
        An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
        ValueError: for options out of range, and from ``update`` without ``params``, without ``importance``, with
            params that the groups do not fit, or where ``inner_state`` lacks what was not given.

    References:
        Yuan and Lin, `Model selection and estimation in regression with grouped variables
        <https://doi.org/10.1111/j.1467-9868.2005.00532.x>`_, 2006

        Yun et al., `A General Family of Stochastic Proximal Gradient Methods for Deep Learning
        <https://arxiv.org/abs/2007.07484>`_ (ProxGen), 2020

    Examples:
        >>> import jax.numpy as jnp, optax, prune_rl
        >>> from prune_rl.pruning.transforms.proximal_step import proximal_step
        >>> params = {"a": jnp.asarray([[0.01, 2.0], [0.0, 1.0]]), "b": jnp.ones((2, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> tx = optax.chain(optax.sgd(0.1), proximal_step(groups, strength=1.0, learning_rate=0.1))
        >>> grads = {"a": jnp.zeros((2, 2)), "b": jnp.zeros((2, 1))}
        >>> equal = {"a": jnp.ones(2)}
        >>> updates, _ = tx.update(grads, tx.init(params), params, importance=equal)
        >>> print(optax.apply_updates(params, updates)["a"].round(2))
        [[0.   1.87]
         [0.   0.94]]
    """
    if metric not in ("euclidean", "adam"):
        raise ValueError(f"unknown metric {metric!r}; choose 'euclidean' or 'adam'")
    if not 0.0 < weight_range[0] <= weight_range[1]:
        raise ValueError(f"weight_range must be 0 < low <= high, got {weight_range}")
    for value in strength.values() if isinstance(strength, Mapping) else [strength]:
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"strength must be >= 0, got {value}")
    if isinstance(strength, Mapping) and not set(strength) <= set(groups):
        unknown = sorted(set(strength) - set(groups))
        raise ValueError(f"strength names {unknown}, which are no groups; the groups are {list(groups)}")
    without_step = is_zero(strength)

    def init_fn(params: Params) -> ProximalStepState:
        here = NeuronGroups(()) if without_step else fit_groups(groups, params)
        each = {name: jnp.float32(entries(group, params)) for name, group in here.items()}
        return ProximalStepState(jnp.zeros((), jnp.int32), each)

    def update_fn(
        updates: Params,
        state: ProximalStepState,
        params: Params | None = None,
        *,
        importance: Scores | None = None,
        masks: Masks | None = None,
        inner_state: Any = None,
        **extra: Any,
    ) -> tuple[Params, ProximalStepState]:
        del extra
        new_state = ProximalStepState(optax.safe_increment(state.count), state.entries)
        if without_step:
            return updates, new_state
        params = trained_part("proximal_step", updates, params)
        if importance is None:
            raise ValueError(
                "proximal_step needs importance={group name: float32[size]}, as group_sparse passes it"
            )
        here = fit_groups(groups, params)
        proposal = optax.apply_updates(params, updates)
        rate = hyperparameter("learning_rate", learning_rate, inner_state)
        step_size = jnp.asarray(_at(rate, state.count), jnp.float32)
        weights = penalty_weights(here, importance, masks, weight_range)
        thresholds = {
            name: step_size * _strength_of(strength, name, state.count) * weights[name]
            * jnp.sqrt(state.entries[name])
            for name in here
        }  # fmt: skip
        if metric == "euclidean":
            proposal = euclidean_prox(here, proposal, thresholds)
        else:
            proposal = diagonal_prox(here, proposal, thresholds, _adam_metric(inner_state, b2, eps))
        updates = jax.tree.map(lambda new, old: (new - old).astype(old.dtype), proposal, params)
        return updates, new_state

    # optax types update without keyword extras; the extra-args protocol itself allows them.
    return optax.GradientTransformationExtraArgs(init_fn, cast(Any, update_fn))


def is_zero(strength: object) -> bool:
    """Whether a strength is a Python 0, for every group."""
    if isinstance(strength, Mapping):
        return all(is_zero(value) for value in strength.values())
    return isinstance(strength, int | float) and strength == 0


def hyperparameter(name: str, given: Any, inner_state: Any) -> Any:
    """The given value, else the one of that name in an ``inject_hyperparams`` state. Raises ``ValueError``."""
    if given is not None:
        return given

    def is_injected(node: Any) -> bool:
        return name in getattr(node, "hyperparams", ())

    found = [node for node in jax.tree.leaves(inner_state, is_leaf=is_injected) if is_injected(node)]
    if len(found) != 1:
        raise ValueError(
            f"the proximal step needs the {name} of the inner transformation: give {name}=, or make the inner one with "
            f"optax.inject_hyperparams, whose state holds it (its state has {len(found)} of that name)"
        )
    return found[0].hyperparams[name]


def _adam_metric(inner_state: Any, b2: float | None, eps: float | None) -> Params:
    """``√v̂ + ε``, a pytree like the params of the one Adam in the state, with Adam's own count."""

    def is_adam(node: Any) -> bool:
        return {"nu", "count"} <= set(getattr(node, "_fields", ()))

    found = [node for node in jax.tree.leaves(inner_state, is_leaf=is_adam) if is_adam(node)]
    if len(found) != 1:
        raise ValueError(
            "metric 'adam' needs an inner transformation with exactly one Adam (a state with 'nu' and 'count'), found "
            f"{len(found)}"
        )
    decay, small = hyperparameter("b2", b2, inner_state), hyperparameter("eps", eps, inner_state)
    correction = 1.0 - jnp.asarray(decay, jnp.float32) ** found[0].count
    return jax.tree.map(lambda nu: jnp.sqrt(nu / correction) + small, found[0].nu)


def _at(value: Any, count: jax.Array) -> Any:
    return value(count) if callable(value) else value


def _strength_of(strength: Strength, name: str, count: jax.Array) -> Any:
    return strength.get(name, 0.0) if isinstance(strength, Mapping) else _at(strength, count)
