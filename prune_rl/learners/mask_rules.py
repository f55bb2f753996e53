"""From a learner's pruning options to the rules of `prune_rl.pruning.mask_update`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Params
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.pruning_config import WARM_UP, Pruning
from prune_rl.learners.rollout import EpisodeReturns
from prune_rl.pruning.dynamic_threshold import DynamicThreshold, ThresholdState
from prune_rl.pruning.gate import NO_PERFORMANCE
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.mask_schedule import MaskSchedule, cubic_sparsity, target_width
from prune_rl.pruning.mask_update import mask_update
from prune_rl.pruning.removal import Pruned, no_removal
from prune_rl.pruning.rules import PruningRules, PruningState
from prune_rl.pruning.scores import SCORES
from prune_rl.pruning.targets import Ensemble, Target

Network = Literal["actor", "critic"]


def prunable(groups: NeuronGroups, prune: Pruning | None) -> NeuronGroups:
    """Those of the groups of {"actor", "critic"} that may lose neurons: the actor's, and the critic's when asked."""
    if prune is None:
        return NeuronGroups(())
    return groups if prune.critic else groups.within("actor")


def mask_rules(
    config: LearnerConfig,
    groups: NeuronGroups,
    networks: Mapping[str, Callable[..., Any]],
    critic_ensemble: Ensemble | None = None,
) -> PruningRules:
    """The rules for {"actor", "critic"}, each ranked by itself.

    Args:
        config: of a pruned run.
        groups: from ``prunable``.
        networks: {"actor", "critic"}: the function ``(params, *inputs)`` of each.
        critic_ensemble: set where the critic is an ensemble; its function is then that of one member.
    """
    prune = config.prune
    assert prune is not None
    schedules = mask_schedules(config)
    covering = MaskSchedule.covering(list(schedules.values()))
    tracked = "grads" in SCORES[prune.score].needs
    targets = [
        Target(
            name=name,
            groups=groups.within(name),
            sparsity=prune.sparsity if name == "actor" else prune.critic_sparsity,
            score=None if tracked else prune.score,
            refit=prune.refit,
            network=networks[name],
            schedule=None if schedule == covering else schedule,
            follows=name == "actor",
            ensemble=critic_ensemble if name == "critic" else None,
        )
        for name, schedule in schedules.items()
    ]
    return PruningRules(
        schedule=covering,
        targets=tuple(targets),
        gate=prune.gate,
        energy=prune.energy,
        min_width={name: _floor(config, name, groups) for name in groups},
        scope=prune.scope,
        dynamic=None if prune.tolerance is None else DynamicThreshold(prune.tolerance),
        restored=in_actor,
    )


def in_actor(path: KeyPath) -> bool:
    """Whether a leaf of {"actor", "critic"} is the actor's."""
    return path[:1] == (jax.tree_util.DictKey("actor"),)


def mask_schedules(config: LearnerConfig) -> dict[Network, MaskSchedule]:
    """When the neurons of each network that is pruned go."""
    prune, num_updates = config.prune, config.num_updates
    assert prune is not None
    networks: list[Network] = ["actor", "critic"] if prune.critic else ["actor"]
    every = prune.updates_apart(num_updates)
    schedules = {}
    for network in networks:
        begin, end = prune.window(network)
        begin = max(begin, config.first_mask_update / num_updates)
        schedules[network] = MaskSchedule.create(num_updates, begin, max(end, begin), every)
    return schedules


def dense_updates(config: LearnerConfig) -> int:
    """How many updates a pruned run makes as its dense control does, before importance is tracked."""
    prune, total = config.prune, config.num_updates
    assert prune is not None
    first = min(schedule.first for schedule in mask_schedules(config).values())
    if prune.proximal_begin is None:
        return max(0, first - math.ceil(WARM_UP * total))
    # The first mask update may come earlier than begin asks, if training is short.
    return min(math.floor(round(prune.proximal_begin * total, 6)), first - 1)


def rests(step: jax.Array | int, config: LearnerConfig) -> jax.Array | bool:
    """Whether the learner makes no updates of its own any more and acts without noise after ``step`` updates."""
    return config.rests and step >= mask_schedules(config)["actor"].first


def rest_begins(step: jax.Array, config: LearnerConfig) -> jax.Array:
    """Whether the learner rests from ``step`` updates on, bool[]."""
    return rests(step, config) & jnp.logical_not(rests(step - 1, config))


def planned_widths(
    config: LearnerConfig, groups: NeuronGroups, sizes: Mapping[str, int], update: int
) -> dict[str, int]:
    """Neurons that the schedule leaves of each group after ``update`` updates.

    Other rules may leave more of them. Where the run finds the widths of the actor, nobody knows them before: all its
    neurons are left. ``sizes``: {group name: neurons before any pruning}.
    """
    prune = config.prune
    assert prune is not None
    widths = {}
    for network, schedule in mask_schedules(config).items():
        made = min(max(0, (update - schedule.first) // schedule.every + 1), schedule.number)
        final = prune.sparsity if network == "actor" else prune.critic_sparsity
        for name in groups.within(network):
            if network == "actor" and prune.tolerance is not None:
                widths[name] = sizes[name]
                continue
            floor = _floor(config, name, groups)
            widths[name] = _width(sizes[name], made / schedule.number, final, floor)
    return widths


def _floor(config: LearnerConfig, name: str, groups: NeuronGroups) -> int:
    """Neurons that a group keeps at least: no linear path bypasses the layers of a critic."""
    assert config.prune is not None
    floor = config.prune.floor(config.skip)
    return max(1, floor) if name in groups.within("critic") else floor


@functools.lru_cache(maxsize=4096)
def _width(size: int, progress: float, final: float, min_width: int) -> int:
    return target_width(size, float(cubic_sparsity(progress, final)), min_width)


class PrunedState(Protocol):
    """What pruning looks at in a learner's train state."""

    @property
    def pruning(self) -> PruningState: ...

    @property
    def params(self) -> Params: ...

    @property
    def opt_state(self) -> Any: ...

    @property
    def importance(self) -> Scores: ...

    @property
    def returns(self) -> EpisodeReturns: ...

    @property
    def step(self) -> jax.Array: ...


def prune(
    state: PrunedState,
    rules: PruningRules,
    draw_inputs: Callable[[], Mapping[str, tuple[Any, ...]]],
    key: jax.Array,
    copies: Mapping[str, Params] | None = None,
    *,
    params: Params | None = None,
    unchanged: jax.Array | bool = False,
    lost: jax.Array | bool = False,
) -> tuple[Pruned, dict[str, Any]]:
    """``mask_update`` after ``state.step`` updates, gated by the running training return; a dynamic threshold follows
    the returns of episodes that began after the masks changed.

    Returns its result, and for the log "prune_progress", float32[], the share of the actor's schedule that is done,
    "prune", the report by group, and with a dynamic threshold float32[] "prune_threshold", "prune_reference" (0 before
    there is one), "prune_mean" (of this trial) and int32[] "prune_taken_back".
    """
    returns = state.returns
    performance = returns.performance
    if rules.dynamic is not None:
        performance = jnp.where(returns.fresh_episodes > 0, returns.fresh_return, NO_PERFORMANCE)
    pruned = mask_update(
        rules,
        state.pruning,
        state.params if params is None else params,
        state.opt_state,
        state.importance,
        count=state.step,
        performance=performance,
        weight=state.returns.fresh_episodes,
        draw_inputs=draw_inputs,
        bias_of=_sibling_bias,
        key=key,
        copies=copies,
        unchanged=unchanged,
        lost=lost,
    )
    progress = rules.progress(rules.targets[0], pruned.state.updates)
    if rules.dynamic is not None:
        progress = rules.schedule.progress(jnp.maximum(rules.schedule.made_before(state.step) + 1, 0))
    return pruned, {"prune_progress": progress, "prune": pruned.report, **_threshold_report(pruned.state)}


def report_before(pruning: PruningState) -> dict[str, Any]:
    """What ``prune`` reports of a state, or of several with leading axes, before any neuron can go."""
    progress = jnp.zeros(pruning.updates.shape, jnp.float32)
    return {
        "prune_progress": progress,
        "prune": no_removal(pruning.masks),
        **_threshold_report(pruning),
    }


def _threshold_report(state: PruningState) -> dict[str, Any]:
    threshold = state.threshold
    if not isinstance(threshold, ThresholdState):
        return {}
    return {
        "prune_threshold": threshold.threshold,
        "prune_reference": jnp.where(jnp.isfinite(threshold.reference), threshold.reference, 0.0),
        "prune_mean": threshold.mean,
        "prune_taken_back": threshold.taken_back,
    }


def since_change(returns: EpisodeReturns, before: PruningState, after: PruningState) -> EpisodeReturns:
    """``returns`` in which no episode under way is fresh if the masks of neurons that go on trial changed.

    Those of a critic that goes by its schedule do not change what the policy does.
    """
    if not isinstance(after.threshold, ThresholdState):
        return returns
    same = [jnp.all(before.masks[name] == after.masks[name]) for name in after.threshold.good_masks]
    return returns.replace(fresh=returns.fresh & jnp.all(jnp.stack(same)))  # type: ignore[attr-defined,no-any-return]


def _sibling_bias(path: KeyPath) -> KeyPath:
    """The path of the bias beside a kernel of ``networks.init_mlp``."""
    return (*path[:-1], jax.tree_util.DictKey("bias"))
