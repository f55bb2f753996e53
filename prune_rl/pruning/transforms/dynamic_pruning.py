"""All in one, for projects with an optimiser and a training step: importance, proximal step, mask schedule, masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Params
from prune_rl.pruning.dynamic_threshold import DynamicThreshold, ThresholdState
from prune_rl.pruning.gate import NO_PERFORMANCE
from prune_rl.pruning.importance import Importance
from prune_rl.pruning.mask_schedule import Schedule, Share
from prune_rl.pruning.mask_update import mask_update
from prune_rl.pruning.masks import init_masks, mask_updates
from prune_rl.pruning.ranking import Scope, check_options
from prune_rl.pruning.rules import PruningRules, PruningState, init_pruning
from prune_rl.pruning.scores import score_named
from prune_rl.pruning.targets import Target
from prune_rl.pruning.transforms.group_sparse import GroupSparseState, group_sparse
from prune_rl.pruning.transforms.handed_activations import check_activations, handed_in
from prune_rl.pruning.transforms.handed_masks import hand_masks
from prune_rl.pruning.transforms.proximal_step import Metric, Scalar
from prune_rl.pruning.transforms.trained_params import fit_groups, trained_part

# For optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS): what has to be a Python value.
STATIC_ARGS = (
    "total_updates", "begin", "end", "every", "schedule", "min_width", "multiple_of", "scope", "decay", "importance",
    "fn", "activations", "refit", "bias_of", "seed", "trial",
)  # fmt: skip


class DynamicPruningState(NamedTuple):
    """``sparse``: the state of ``group_sparse`` around the inner transformation; ``pruning``: masks and schedule."""

    sparse: GroupSparseState
    pruning: PruningState

    @property
    def masks(self) -> dict[str, jax.Array]:
        """{group name: bool[size]}, True: kept."""
        return self.pruning.masks


def dynamic_pruning(
    inner: optax.GradientTransformation,
    groups: NeuronGroups,
    *,
    total_updates: int,
    sparsity: Share | Mapping[str, Share] = 0.9,
    begin: float = 0.1,
    end: float = 0.6,
    every: int = 100,
    schedule: Schedule | None = None,
    energy: Share | None = None,
    min_width: int = 1,
    multiple_of: int | Mapping[str, int] = 1,
    scope: Scope = "layer",
    gate: Share | None = None,
    tolerance: Share | None = None,
    trial: float = 16.0,
    strength: Scalar = 0.0,
    learning_rate: Scalar | None = None,
    metric: Metric = "euclidean",
    importance: str | Importance = "taylor",
    decay: float = 0.99,
    b2: float | None = None,
    eps: float | None = None,
    fn: Callable[..., Any] | None = None,
    activations: bool = False,
    refit: bool = False,
    bias_of: Callable[[KeyPath], KeyPath | None] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that prunes ``groups`` while it optimises.

    A composition of ``group_sparse`` and ``mask_update``. Mask updates are due at the multiples of ``every`` between
    the shares ``begin`` and ``end`` of ``total_updates`` (if there is none, once at ``end``). They raise the sparsity
    of each layer along the cubic schedule to ``sparsity``; then the schedule is complete and the masks stay as they
    are. ``schedule`` states other mask updates and curves, in place of these three: one-shot, a polynomial of any
    power, periodic (see ``prune_rl.Schedule``). The updates take masked slices to exactly 0 and keep them, and the
    params-shaped moments of ``inner``, there. Read the masks with ``masks_of(opt_state)``.

    With ``gate``, a mask update is made only while ``performance``, an extra argument of ``update`` (a scalar, higher
    is better), is at least its highest value so far minus ``gate`` times the magnitude of that; one that is held back
    is made up for later, also after ``end``. ``energy``, ``min_width``, ``multiple_of`` and ``scope`` are those of
    ``update_masks``, where ``scope`` is "layer", "global", "lamp" or the classes of ``isomorphic_classes``;
    ``strength``, ``learning_rate``, ``metric``, ``importance``, ``decay``, ``b2`` and ``eps`` those of
    ``group_sparse``.

    With ``tolerance``, no width has to be given: between ``begin`` and ``end`` neurons go while the mean of
    ``performance`` over ``trial`` calls (those that give one) holds within the tolerance of its best, and are taken
    back, with the params of before, where it does not come back within five times as many. Each layer finds its width,
    down to ``min_width`` and at most to ``sparsity`` (give 1.0 to leave it open). Best with
    ``importance="elimination"`` and ``refit``, whose scores are the error that a removal causes. See
    ``prune_rl.pruning.dynamic_threshold``.

    ``importance`` may be any name of ``prune_rl.pruning.scores.SCORES``. Those that need more than gradients are
    computed when neurons go; the penalty is weighted by "taylor" with them. "output", "surgeon", "elimination" and
    ``refit`` (kept neurons take over by least squares what removed ones contributed) look at activations: give ``fn``,
    the function ``fn(params, *inputs)`` of the trained params, and ``update`` a batch of its inputs, ``inputs=(x,)``.
    Where the training step has the activations already, say ``activations=True`` instead of ``fn`` and give ``update``
    these: ``activations={group name: float[…, size]}``, as ``prune_rl.activations`` returns them. ``bias_of`` is that
    of ``prune_rl.refit``; "random" draws from ``seed``. ``sparsity`` may be {group name: share}, see
    ``prune_rl.shares``.

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
    * A line search inside, such as that of ``optax.lbfgs``, gets the ``value``, ``grad`` and ``value_fn`` that
      ``update`` is given. ``scale_by_width`` inside gets the masks.
    * ``optax.contrib.sam`` around it: its adversarial steps do not count.
    * ``optax.masked`` and ``optax.partition`` around it: the groups must lie in its part of the params.
    * ``optax.inject_hyperparams(dynamic_pruning, static_args=STATIC_ARGS)`` makes ``sparsity``, ``energy``,
      ``strength`` and ``learning_rate`` parts of the state. Optax gives them the dtype of the params, in which 0.9 may
      be 0.8984: with bfloat16 params, add ``hyperparam_dtype=jnp.float32``.
    * Moments that are not params-shaped (rows and columns of ``optax.adafactor``) are left as they are.

    Raises:
        ValueError: for options out of range or traced where they may not be, for scores or a refit that could not be
            computed; from ``update`` without ``params``, with params that the groups do not fit, or without the inputs
            or activations that were announced.

    References:
        Su et al., `Compressing Deep Reinforcement Learning Networks with a Dynamic Structured Pruning Method for
        Autonomous Driving <https://arxiv.org/abs/2402.05146>`_, 2024

        Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017

    Examples:
        >>> import jax, jax.numpy as jnp, optax, prune_rl
        >>> params = {"a": jax.random.normal(jax.random.key(0), (2, 8)), "b": jnp.ones((8, 1))}
        >>> fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
        >>> groups = prune_rl.find_groups(fn, params, jnp.ones((1, 2)))
        >>> tx = prune_rl.dynamic_pruning(optax.adam(1e-2), groups, total_updates=20, every=2, sparsity=0.75)
        >>> state, update = tx.init(params), jax.jit(tx.update)
        >>> for _ in range(20):
        ...     grads = jax.grad(lambda p: jnp.mean(fn(p, jnp.ones((1, 2))) ** 2))(params)
        ...     updates, state = update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print({name: int(mask.sum()) for name, mask in prune_rl.masks_of(state).items()})
        {'a': 2}

        With the scores of the optimal brain surgeon and a refit, five lines change:

        >>> tx = prune_rl.dynamic_pruning(
        ...     optax.adam(1e-2), groups, total_updates=20, every=2, importance="surgeon", refit=True, fn=fn)
        >>> state, x = tx.init(params), jnp.ones((1, 2))
        >>> grads = jax.grad(lambda p: jnp.mean(fn(p, x) ** 2))(params)
        >>> updates, state = tx.update(grads, state, params, inputs=(x,))

        Where the step has the activations already, it hands them in:

        >>> tx = prune_rl.dynamic_pruning(
        ...     optax.adam(1e-2), groups, total_updates=20, every=2, importance="surgeon", refit=True, activations=True)
        >>> hidden = {"a": jnp.tanh(x @ params["a"])}
        >>> updates, state = tx.update(grads, tx.init(params), params, activations=hidden)
    """
    fixed: dict[str, Any] = {"total_updates": total_updates, "begin": begin, "end": end, "every": every}
    for name, value in {
        **fixed,
        "min_width": min_width,
        "multiple_of": multiple_of,
        "decay": decay,
        "refit": refit,
        "seed": seed,
        "trial": trial,
    }.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name} must be a Python number, got a JAX array ({value}): the schedule is fixed before training. "
                "With optax.inject_hyperparams, give it static_args="
                "prune_rl.pruning.transforms.dynamic_pruning.STATIC_ARGS"
            )
    late = importance if isinstance(importance, str) and score_named(importance).needs - {"grads"} else None
    looks = refit or (late is not None and "activations" in score_named(late).needs)
    check_activations(looks, "refit" if refit else f"importance {late!r}", fn, activations)
    if schedule is not None and (begin, end, every) != (0.1, 0.6, 100):
        raise ValueError(
            f"schedule {schedule} has a begin, an end and an every of its own: give one or the other"
        )
    if tolerance is not None and scope != "layer":
        raise ValueError(
            f"with a tolerance neurons are ranked within each layer: choose scope 'layer', got {scope!r}"
        )
    timetable = (Schedule(begin, end, every) if schedule is None else schedule).over(total_updates)
    sparse = group_sparse(
        hand_masks(inner, given=False),
        groups,
        strength,
        learning_rate,
        metric=metric,
        importance="taylor" if late else importance,
        decay=decay,
        b2=b2,
        eps=eps,
    )

    dynamic = None if tolerance is None else DynamicThreshold(tolerance, trial=trial)

    def rules(here: NeuronGroups) -> PruningRules:
        target = Target("all", here, sparsity, late, refit, fn, multiple_of=multiple_of)
        return PruningRules(timetable, (target,), gate, energy, min_width, scope, dynamic)

    rules(groups).check()
    # What rules do not know of: that the multiples, too, are numbers that can be.
    every_mask = init_masks(groups)
    check_options(every_mask, every_mask, sparsity, energy, min_width, scope, multiple_of)

    def init_fn(params: Params) -> DynamicPruningState:
        return DynamicPruningState(sparse.init(params), init_pruning(groups, rules(groups), params))

    def update_fn(
        updates: Params,
        state: DynamicPruningState,
        params: Params | None = None,
        *,
        performance: jax.Array | float = NO_PERFORMANCE,
        inputs: tuple[Any, ...] | None = None,
        activations: Mapping[str, jax.Array] | None = None,
        **extra: Any,
    ) -> tuple[Params, DynamicPruningState]:
        if looks and fn is None:
            inputs = (handed_in(groups, activations),)
        elif looks and not isinstance(inputs, tuple):
            raise ValueError(
                "update needs inputs=(x, ...), the arguments of fn after the params as a tuple, got "
                f"{type(inputs).__name__}"
            )
        params = trained_part("dynamic_pruning", updates, params)
        here = fit_groups(groups, params)
        # Around it, optax.contrib.sam multiplies every leaf of the state by 0 or 1: bool becomes int32, −inf NaN.
        masks = {name: mask.astype(bool) for name, mask in state.masks.items()}
        reference = jnp.where(jnp.isnan(state.pruning.reference), NO_PERFORMANCE, state.pruning.reference)
        before = state.pruning._replace(masks=masks, reference=reference)
        updates, inner_state = sparse.update(updates, state.sparse, params, masks=masks, **extra)
        pruned = mask_update(
            rules(here),
            before,
            optax.apply_updates(params, updates),
            inner_state.proximal,
            inner_state.importance,
            count=inner_state.num_updates,
            performance=performance,
            draw_inputs=lambda: {"all": inputs or ()},
            bias_of=bias_of or (lambda path: None),
            key=jax.random.fold_in(jax.random.key(seed), inner_state.num_updates),
        )
        if refit or dynamic is not None:
            moved = pruned.state.updates != before.updates
            after = pruned.state.threshold
            if isinstance(before.threshold, ThresholdState) and isinstance(after, ThresholdState):
                moved |= after.taken_back != before.threshold.taken_back
            updates = jax.tree.map(
                lambda update, new, old: jnp.where(moved, new - old, update), updates, pruned.params, params
            )
        # From the masks, not from the pruned params: params + updates must be exactly 0 at the masked slices.
        updates = mask_updates(here, updates, params, pruned.state.masks)
        sparse_state = inner_state._replace(proximal=pruned.opt_state)
        # Of the type that they came in, so that a loop can carry them.
        returned = {name: pruned.state.masks[name].astype(mask.dtype) for name, mask in state.masks.items()}
        return updates, DynamicPruningState(sparse_state, pruned.state._replace(masks=returned))

    # optax types update without keyword extras; the extra-args protocol itself allows them.
    return optax.GradientTransformationExtraArgs(init_fn, cast(Any, update_fn))


def masks_of(opt_state: Any, *, may_return: bool = False) -> dict[str, jax.Array]:
    """{group: bool[size]}, True = kept, from an optimiser state that contains one ``dynamic_pruning``.

    With ``may_return``, neurons whose removal can still be taken back count as kept: the masks to ``shrink`` with while
    training goes on with a ``tolerance``.

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
    masks = found[0].pruning.needed if may_return else found[0].masks
    # A Variable is a pytree with one leaf, its value.
    return {name: jax.tree.leaves(mask)[0].astype(bool) for name, mask in masks.items()}
