"""The mask update: scores neurons, removes some, refits the others, and zeroes what was removed.

PPO, SAC and `dynamic_pruning` all call `mask_update` with a `PruningState`, so schedule, gate, energy rule, floor and
dynamic threshold mean the same in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import KeyPath, Params
from prune_rl.pruning.dynamic_threshold import ThresholdState, observe
from prune_rl.pruning.gate import NO_PERFORMANCE, gate_is_open, raise_reference
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.removal import Bounds, Pruned, Removal
from prune_rl.pruning.rules import PruningRules, PruningState
from prune_rl.pruning.targets import Target
from prune_rl.pruning.trial import end_trial


def mask_update(
    rules: PruningRules,
    state: PruningState,
    params: Params,
    opt_state: Any,
    importance: Scores,
    *,
    count: jax.Array,
    performance: jax.Array | float = NO_PERFORMANCE,
    weight: jax.Array | float = 1.0,
    unchanged: jax.Array | bool = False,
    lost: jax.Array | bool = False,
    draw_inputs: Callable[[], Mapping[str, tuple[Any, ...]]] | None = None,
    bias_of: Callable[[KeyPath], KeyPath | None] = lambda path: None,
    key: jax.Array | None = None,
    copies: Mapping[str, Params] | None = None,
) -> Pruned:
    """Remove neurons if a mask update is due after ``count`` training updates; else change nothing but the reference.

    Pure and jittable. Scores, activations and the refit are computed only when a mask update is due and neurons may go:
    the gate is open and the schedule not complete, or a trial of the dynamic threshold ends. Under ``vmap``, ``count``
    must not be batched: a ``lax.cond`` with a batched predicate runs both branches at every training update.

    Args:
        rules: what bounds the removal.
        state: from ``init_pruning``, or the last mask update.
        params: the pytree that holds the neurons of all targets.
        opt_state: the state of any optax transformation of ``params``, or of parts of it.
        importance: {group name: float32[size]}, tracked; for targets without a ``score``, and for the report.
        count: int32[], training updates made.
        performance: float32[], how well training goes, higher is better; not finite: not known yet. The gate compares
            it as it is; a dynamic threshold averages it over a trial, so give it one value per update.
        weight: float32[], of the performance for a dynamic threshold, such as the number of episodes that it is a mean
            over.
        unchanged: bool[], whether all removals so far are known to have changed nothing that matters, such as the
            outputs of the network: a dynamic threshold then ends the trial without waiting for performance.
        lost: bool[], whether what the removal on trial changed is known not to come back: a dynamic threshold then
            takes it back, unless the performance holds.
        draw_inputs: returns {name of a target: the arguments of its ``network`` after ``params``}. It is called inside
            the conditional, so a batch that it draws costs nothing at other training updates.
        bias_of: maps the path of an outgoing kernel to that of the bias added after it, see ``refit``.
        key: for the score "random".
        copies: {name of a target: params of the same structure, with a copy of its network, such as a target network}.
            A copy loses the same neurons; where the target is refitted, so is the copy, on activations of its own.
    """
    performance = jnp.asarray(performance, jnp.float32)
    state = state._replace(reference=raise_reference(state.reference, performance))
    if rules.dynamic is not None:
        assert isinstance(state.threshold, ThresholdState)
        watched = observe(rules.dynamic, state.threshold, performance, jnp.asarray(weight, jnp.float32))
        state = state._replace(threshold=watched)
    removal = Removal(
        rules, state, params, opt_state, importance, dict(copies or {}), draw_inputs, bias_of, key
    )

    def by_schedule(_: None) -> Pruned:
        # Not batched where no gate makes the seeds differ, so that only one branch runs.
        made = state.updates if rules.gate is not None else rules.schedule.made_before(count)
        pruned = _scheduled(removal, state.updates, made)
        return pruned._replace(state=pruned.state._replace(updates=state.updates + 1))

    def by_threshold(_: None) -> Pruned:
        if not rules.scheduled:
            return end_trial(removal, count, unchanged, lost)
        made = rules.schedule.made_before(count)
        before: Pruned = jax.lax.cond(
            rules.schedule.due(count, gated=False),
            lambda _: _scheduled(removal, made, made),
            lambda _: removal.nothing(),
            None,
        )
        then = dataclasses.replace(
            removal,
            state=before.state,
            params=before.params,
            opt_state=before.opt_state,
            copies=before.copies,
        )
        ended = end_trial(then, count, unchanged, lost)
        following = [name for target in rules.following for name in target.groups]
        return ended._replace(report={**before.report, **{name: ended.report[name] for name in following}})

    def when_due(_: None) -> Pruned:
        if rules.dynamic is not None:
            return by_threshold(None)
        if rules.gate is None:
            return by_schedule(None)
        may_go = (state.updates < rules.schedule.number) & gate_is_open(
            state.reference, performance, rules.gate
        )
        gated: Pruned = jax.lax.cond(may_go, by_schedule, lambda _: removal.nothing(), None)
        return gated

    if rules.dynamic is not None:  # trials go on outside of the schedule too
        due = rules.schedule.in_step(count)
    else:
        due = rules.schedule.due(count, gated=rules.gate is not None)
    pruned: Pruned = jax.lax.cond(due, when_due, lambda _: removal.nothing(), None)
    return pruned


def _scheduled(removal: Removal, made: jax.Array, unbatched: jax.Array) -> Pruned:
    """The removal from the targets that go by the schedule, after ``made`` mask updates."""
    rules = removal.rules
    bounds, when = {}, {}
    for target in rules.scheduled:
        bounds[target.name] = Bounds(_sparsity(rules, target, made + 1), rules.energy)
        if target.schedule is not None:
            after, before = (target.schedule.made_within(rules.schedule, unbatched + i) for i in (1, 0))
            when[target.name] = after > before
    return removal(bounds, when)


def _sparsity(rules: PruningRules, target: Target, made: jax.Array) -> Any:
    """The share of a layer that may be gone after so many mask updates, a scalar or one per group name."""
    schedule, progress = target.schedule or rules.schedule, rules.progress(target, made)
    if isinstance(target.sparsity, Mapping):
        return {name: schedule.sparsity(progress, share) for name, share in target.sparsity.items()}
    return schedule.sparsity(progress, target.sparsity)
