"""One step of pruning inside a learner: advance the gate, update the masks, make masked mean gone.

Shared by all learners; pure, and traced into the learner's compiled update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from prune_rl.dependency.activations import activations as find_activations
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.brain_surgeon import refit, surgeon_importance
from prune_rl.pruning.group_sparse import GroupSparseState, mask_state
from prune_rl.pruning.importance import IMPORTANCES
from prune_rl.pruning.mask_schedule import Gate, advance_gate, cubic_sparsity, nan_scores, update_masks
from prune_rl.pruning.masks import apply_masks

Params = Any
Masks = dict[str, jax.Array]


@struct.dataclass
class Pruned:
    """What a pruning step leaves: the new values, and a report of scalars per group for the log."""

    params: Params
    opt_state: GroupSparseState
    masks: Masks
    gate: Gate
    report: dict[str, dict[str, jax.Array]]


def prune(
    groups: NeuronGroups,
    params: Params,
    opt_state: GroupSparseState,
    masks: Masks,
    gate: Gate,
    *,
    config: Pruning,
    apply: Callable[[Params, jax.Array], Any],
    obs: jax.Array,
    running_return: jax.Array,
    step: jax.Array,
    total_updates: int,
    key: jax.Array,
) -> Pruned:
    """Update the masks if ``step`` (int32[], updates made, unbatched) calls for it; else change nothing.

    ``apply(params, obs)`` is the function whose neurons ``groups`` are; ``obs`` [n, …] is a recent batch of normalised
    observations. Afterwards masked slices of params and of the optimiser's moments are exactly 0.
    """
    begin, end = config.begin * total_updates, config.end * total_updates
    # The mask updates that come due: the last one by ``end`` completes the schedule, whatever ``every`` divides.
    first, last = max(math.ceil(round(begin / config.every, 6)), 1), math.floor(round(end / config.every, 6))
    number = max(last - first + 1, 1)

    def act(_: None) -> Pruned:
        new_gate, opened = advance_gate(gate, running_return, config.gate, 1.0 / number)
        needs_activations = config.refit or config.score in ("output", "surgeon")
        hidden = find_activations(apply, groups, params, obs) if needs_activations else {}
        if config.score == "surgeon":
            scores = surgeon_importance(groups, params, hidden, masks)
        elif config.score in ("taylor", "fisher"):
            scores = opt_state.importance
        else:
            scores = IMPORTANCES[config.score](groups, params, None, activations=hidden, key=key)
        new_masks: Masks = {}
        for network, sparsity in (("actor", config.sparsity), ("critic", config.critic_sparsity)):
            names = [name for name in groups if name.split("/")[0] == network]
            if names:
                new_masks |= update_masks(
                    {name: masks[name] for name in names},
                    {name: scores[name] for name in names},
                    cubic_sparsity(new_gate.progress, sparsity),
                    energy=config.energy,
                    min_width=config.min_width,
                    scope=config.scope,
                    gate=opened,
                )
        new_params = params
        if config.refit:
            new_params = refit(groups, params, hidden, masks, new_masks, bias_of=_sibling_bias)
        new_params = apply_masks(groups, new_params, new_masks)
        inner = mask_state(groups, opt_state.inner, new_params, new_masks)
        report = _report(masks, new_masks, scores)
        return Pruned(new_params, opt_state._replace(inner=inner), new_masks, new_gate, report)

    def rest(_: None) -> Pruned:
        return Pruned(params, opt_state, masks, gate, _report(masks, masks, opt_state.importance))

    due = (step >= begin) & (step % config.every == 0)
    pruned: Pruned = jax.lax.cond(due, act, rest, None)
    return pruned


def _report(old: Masks, new: Masks, scores: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    """Per group: width, threshold (highest score removed now), share of the importance removed now, NaN scores."""
    report = {}
    for name in old:
        removed = old[name] & ~new[name]
        score = jnp.where(jnp.isnan(scores[name]), 0.0, scores[name])
        total = jnp.sum(jnp.where(old[name], score, 0.0))
        report[name] = {
            "width": jnp.sum(new[name]).astype(jnp.int32),
            "threshold": jnp.max(jnp.where(removed, score, 0.0)),
            "removed_importance": jnp.sum(jnp.where(removed, score, 0.0)) / jnp.where(total > 0, total, 1.0),
            "nan_scores": nan_scores({name: scores[name]})[name],
        }
    return report


def _sibling_bias(path: KeyPath) -> KeyPath:
    """The bias beside a kernel of ``networks.init_mlp``."""
    return (*path[:-1], jax.tree_util.DictKey("bias"))
