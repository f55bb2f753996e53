"""What a learner does for pruning after its own update: the mask update, then distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypedDict

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.actor_critic import pruning_rules
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.distillation import (
    ROUNDS,
    SAME,
    Distance,
    Distillation,
    distill,
    settle_teacher,
    student,
    watch,
)
from prune_rl.learners.imitation import Imitated
from prune_rl.learners.mask_rules import PrunedState, prune, rest_begins, rests, since_change
from prune_rl.learners.rollout import EpisodeReturns, Metrics
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.pruning.dynamic_threshold import ThresholdState, forgotten
from prune_rl.pruning.rules import PruningState

Acted = tuple[Params, RunningStatistics]
"""The actor's params and the statistics of observations with which a rollout was made."""


class DistilledState(PrunedState, Protocol):
    """What a mask update and distillation look at in a learner's train state."""

    @property
    def distillation(self) -> Distillation | None: ...

    @property
    def obs_stats(self) -> RunningStatistics: ...


class Fields(TypedDict):
    """What of a train state belongs to pruning beside params and optimiser state, by the names of its fields."""

    pruning: PruningState
    returns: EpisodeReturns
    distillation: Distillation | None


class PruningStep(NamedTuple):
    """The parts of a train state after ``pruning_step``, and what it reports."""

    params: Params
    opt_state: Any
    fields: Fields
    copies: dict[str, Params]
    metrics: Metrics


def pruning_step(
    state: DistilledState,
    obs: jax.Array,
    acted: Acted,
    draw_inputs: Callable[[], Mapping[str, tuple[Any, ...]]],
    imitated: Imitated,
    key: jax.Array,
    config: LearnerConfig,
    copies: Mapping[str, Params] | None = None,
) -> PruningStep:
    """``prune``, and the actor brought back to what it was before any neuron went.

    A removal on trial is known to have changed nothing where the policy that acted was that of before any removal.
    Where the learner rests, so it is when nothing is on trial, and what is not back after ``ROUNDS`` distillations is
    known to be lost. The metric "distillation" is the divergence of the policy that acted from the teacher's.

    Args:
        state: after ``state.step`` updates of the learner.
        obs: float32[T, N, D], of the last rollout, as the environment gave them.
        acted: the actor's params and the statistics of observations with which that rollout was made.
        draw_inputs: see ``mask_update``.
        imitated: what the actor that loses neurons has to keep.
        key: for the score "random" and the minibatches.
        config: of the learner, in a run that prunes.
        copies: see ``mask_update``.
    """
    stats, rules = state.obs_stats, pruning_rules(state.params, config)
    assert rules is not None
    actor = state.params["actor"]
    distillation = watch(state.distillation, state.pruning, actor, stats, obs, state.step, config)
    actor = student(distillation, actor, state.step, config, imitated)
    # Of the policy that acted: what the learner's update changed since then is not the removal's doing.
    away = Distance(imitated.divergence, acted[1], config).of_last(distillation, acted[0])
    unchanged = lost = jnp.zeros((), bool)
    if distillation is not None and config.rests:
        resting = rests(state.step, config)
        unchanged, lost = resting & (away <= SAME), resting & (away > SAME) & (distillation.rounds >= ROUNDS)
    elif isinstance(state.pruning.threshold, ThresholdState):
        # What has not just lost neurons may be near the teacher and on its way elsewhere.
        unchanged = (away <= SAME) & state.pruning.threshold.on_trial
    params = state.params | {"actor": actor}
    pruned, report = prune(
        state, rules, draw_inputs, key, copies, params=params, unchanged=unchanged, lost=lost
    )
    pruning, returns = pruned.state, since_change(state.returns, state.pruning, pruned.state)
    if config.rests and isinstance(pruning.threshold, ThresholdState):
        # Returns of the policy with noise say nothing of the one without.
        begins = rest_begins(state.step, config)
        unknown = forgotten(pruning.threshold)
        threshold = jax.tree.map(lambda new, old: jnp.where(begins, new, old), unknown, pruning.threshold)
        pruning = pruning._replace(threshold=threshold)
        returns = dataclasses.replace(returns, fresh=returns.fresh & ~begins)
    distillation = settle_teacher(distillation, state.pruning, pruning, state.step, config)
    distance, distill_key = Distance(imitated.divergence, stats, config), jax.random.fold_in(key, 1)
    episodes = 0.0 if rules.dynamic is None else rules.dynamic.trial
    actor = pruned.params["actor"]
    actor, distillation = distill(distillation, pruning, actor, distance, distill_key, state.step, episodes)
    if distillation is not None:
        report["distillation"] = away
    fields = Fields(pruning=pruning, returns=returns, distillation=distillation)
    return PruningStep(pruned.params | {"actor": actor}, pruned.opt_state, fields, pruned.copies, report)
