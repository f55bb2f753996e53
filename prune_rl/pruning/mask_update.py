"""The mask update: scores neurons, removes some, refits the others, and zeroes what was removed.

PPO, SAC and `dynamic_pruning` all call `mask_update` with a `PruningState`, so schedule, gate, energy rule and floor
mean the same in each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Params
from prune_rl.pruning.gate import NO_PERFORMANCE, gate_is_open, raise_reference
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.mask_schedule import MaskSchedule, Share, cubic_sparsity
from prune_rl.pruning.masks import apply_masks, init_masks, mask_state
from prune_rl.pruning.ranking import Scope, check_options, nan_scores, update_masks
from prune_rl.pruning.targets import Target

Report = dict[str, dict[str, jax.Array]]


class PruningState(NamedTuple):
    """What pruning carries from one training update to the next; every leaf is an array.

    Attributes:
        masks: {group name: bool[size]}, True: kept.
        updates: int32[], mask updates made; due ones that a closed gate held back do not count.
        reference: float32[], the highest performance at any training update so far, −inf before the first.
        neurons: {group name: int32[size]}, which neuron each one was before ``shrink`` made the arrays smaller.
        sizes: {group name: int32[]}, how many there were before: what the sparsity is a share of.
    """

    masks: dict[str, jax.Array]
    updates: jax.Array
    reference: jax.Array
    neurons: dict[str, jax.Array]
    sizes: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PruningRules:
    """What bounds the removal of neurons.

    Attributes:
        schedule: when mask updates are due, and how far the sparsity may rise at each.
        targets: the neurons; each target is ranked by itself.
        gate: tolerance δ of the gate, see ``gate_is_open``; None: always open.
        energy: see ``update_masks``.
        min_width: see ``update_masks``.
        scope: see ``update_masks``.
    """

    schedule: MaskSchedule
    targets: tuple[Target, ...]
    gate: Share | None = None
    energy: Share | None = None
    min_width: int | Mapping[str, int] = 1
    scope: Scope = "layer"

    def progress(self, target: Target, made: jax.Array) -> jax.Array:
        """Share of a target's schedule that is done after ``made`` (int32[]) mask updates: float32[] in [0, 1]."""
        if target.schedule is None:
            return self.schedule.progress(made)
        return target.schedule.progress(target.schedule.made_within(self.schedule, made))

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot work, before anything is traced."""
        for target in self.targets:
            masks = init_masks(target.groups)
            check_options(masks, masks, target.sparsity, self.energy, self.min_width, self.scope)
        if isinstance(self.gate, int | float) and not 0.0 <= self.gate < float("inf"):
            raise ValueError(f"gate must be a finite number >= 0, got {self.gate}")


class Pruned(NamedTuple):
    """What a mask update leaves.

    Attributes:
        state: the new state.
        params: the given ones, refitted if asked, with the slices of masked neurons at 0.
        opt_state: the given one with the moments of masked neurons at 0.
        copies: the given ones, treated like params.
        report: {group name: {"width" int32[], "threshold" float32[] (the highest score removed now),
            "removed_importance" float32[] (share of the layer's present score removed now), "nan_scores" int32[]}}.
    """

    state: PruningState
    params: Params
    opt_state: Any
    copies: dict[str, Params]
    report: Report


def init_pruning(groups: NeuronGroups) -> PruningState:
    """The state before the first training update: nothing is masked."""
    return PruningState(
        masks=init_masks(groups),
        updates=jnp.zeros((), jnp.int32),
        reference=jnp.full((), NO_PERFORMANCE, jnp.float32),
        neurons={name: jnp.arange(group.size, dtype=jnp.int32) for name, group in groups.items()},
        sizes={name: jnp.int32(group.size) for name, group in groups.items()},
    )


def mask_update(
    rules: PruningRules,
    state: PruningState,
    params: Params,
    opt_state: Any,
    importance: Scores,
    *,
    count: jax.Array,
    performance: jax.Array | float = NO_PERFORMANCE,
    draw_inputs: Callable[[], Mapping[str, tuple[Any, ...]]] | None = None,
    bias_of: Callable[[KeyPath], KeyPath | None] = lambda path: None,
    key: jax.Array | None = None,
    copies: Mapping[str, Params] | None = None,
) -> Pruned:
    """Remove neurons if a mask update is due after ``count`` training updates; else change nothing but the reference.

    Pure and jittable. Scores, activations and the refit are computed only when a mask update is due, the gate is open,
    and the schedule is not complete. Under ``vmap``, ``count`` must not be batched: a ``lax.cond`` with a batched
    predicate runs both branches at every training update.

    Args:
        rules: what bounds the removal.
        state: from ``init_pruning``, or the last mask update.
        params: the pytree that holds the neurons of all targets.
        opt_state: the state of any optax transformation of ``params``, or of parts of it.
        importance: {group name: float32[size]}, tracked; for targets without a ``score``, and for the report.
        count: int32[], training updates made.
        performance: float32[], how well training goes, higher is better; not finite: not known yet.
        draw_inputs: returns {name of a target: the arguments of its ``network`` after ``params``}. It is called inside
            the conditional, so a batch that it draws costs nothing at other training updates.
        bias_of: maps the path of an outgoing kernel to that of the bias added after it, see ``refit``.
        key: for the score "random".
        copies: {name of a target: params of the same structure, with a copy of its network, such as a target network}.
            A copy loses the same neurons; where the target is refitted, so is the copy, on activations of its own.
    """
    performance = jnp.asarray(performance, jnp.float32)
    reference = raise_reference(state.reference, performance)
    state = state._replace(reference=reference)

    def remove_from(target: Target, position: int, inputs: Any, before: _Networks) -> _Networks:
        """``before`` without the neurons of one target that go now."""
        groups, params, copy = target.groups, before.params, before.copies.get(target.name)
        old = {name: state.masks[name] for name in groups}
        scores = {name: before.scores[name] for name in groups}
        hidden = target.activations(params, inputs) if target.needs_activations else None
        if target.score is not None:
            mine = None if key is None else jax.random.fold_in(key, position)
            scores = target.scores(params, hidden, old, mine, state.neurons)
        new = update_masks(
            old,
            scores,
            _sparsity(target, rules.progress(target, state.updates + 1)),
            energy=rules.energy,
            min_width=rules.min_width,
            scope=rules.scope,
            sizes=state.sizes,
        )
        if target.refit:
            assert hidden is not None
            params = target.refitted(params, hidden, old, new, bias_of)
            if copy is not None:
                copy = target.refitted(copy, target.activations(copy, inputs), old, new, bias_of)
        copies = {} if copy is None else {target.name: apply_masks(groups, copy, new)}
        return _Networks(
            apply_masks(groups, params, new),
            before.copies | copies,
            before.masks | new,
            before.scores | scores,
        )

    def remove(_: None) -> Pruned:
        inputs = draw_inputs() if draw_inputs is not None else {}
        found = _Networks(params, dict(copies or {}), dict(state.masks), dict(importance))
        for position, target in enumerate(rules.targets):
            step = functools.partial(remove_from, target, position, inputs.get(target.name, ()))
            if target.schedule is None:
                found = step(found)
            else:
                # Not batched where no gate makes the seeds differ, so that only one branch runs.
                updates = state.updates if rules.gate is not None else rules.schedule.made_before(count)
                made, before = (target.schedule.made_within(rules.schedule, updates + i) for i in (1, 0))
                found = jax.lax.cond(made > before, step, lambda networks: networks, found)
        groups = NeuronGroups(group for target in rules.targets for group in target.groups.values())
        new_state = state._replace(masks=found.masks, updates=state.updates + 1)
        moments = mask_state(groups, opt_state, found.params, found.masks)
        report = _report(state.masks, found.masks, found.scores)
        return Pruned(new_state, found.params, moments, found.copies, report)

    def keep(_: None) -> Pruned:
        report = _report(state.masks, state.masks, importance)
        return Pruned(state, params, opt_state, dict(copies or {}), report)

    def when_due(_: None) -> Any:
        if rules.gate is None:
            return remove(None)
        incomplete = state.updates < rules.schedule.number
        return jax.lax.cond(incomplete & gate_is_open(reference, performance, rules.gate), remove, keep, None)

    due = rules.schedule.due(count, gated=rules.gate is not None)
    pruned: Pruned = jax.lax.cond(due, when_due, keep, None)
    return pruned


class _Networks(NamedTuple):
    """What a mask update changes target by target."""

    params: Params
    copies: dict[str, Params]
    masks: dict[str, jax.Array]
    scores: Scores


def _sparsity(target: Target, progress: jax.Array) -> Any:
    """The share of a layer that may be gone at this progress, a scalar or one per group name."""
    if isinstance(target.sparsity, Mapping):
        return {name: cubic_sparsity(progress, share) for name, share in target.sparsity.items()}
    return cubic_sparsity(progress, target.sparsity)


def _report(old: Mapping[str, jax.Array], new: Mapping[str, jax.Array], scores: Scores) -> Report:
    report = {}
    for name in old:
        removed = old[name] & ~new[name]
        score = jnp.where(jnp.isfinite(scores[name]), scores[name], 0.0)
        total = jnp.sum(jnp.where(old[name], score, 0.0))
        report[name] = {
            "width": jnp.sum(new[name]).astype(jnp.int32),
            "threshold": jnp.max(jnp.where(removed, score, 0.0)),
            "removed_importance": jnp.sum(jnp.where(removed, score, 0.0)) / jnp.where(total > 0, total, 1.0),
            "nan_scores": nan_scores({name: scores[name]})[name],
        }
    return report
