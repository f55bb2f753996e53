"""From a learner's state to policies that act: masked at full width, or compacted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from prune_rl.dependency.compaction import compact
from prune_rl.export.policy import Policy
from prune_rl.learners import sac
from prune_rl.learners.networks import num_hidden
from prune_rl.learners.registry import State, learner_of
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.pruning.masks import Count, apply_masks, count, init_masks
from prune_rl.spaces import Box, Spec
from prune_rl.training.config import Config


@dataclasses.dataclass(frozen=True)
class Trained:
    """What policies are made of: the part of a learner's state that acting depends on, of one seed."""

    params: dict[str, Any]
    masks: dict[str, jax.Array]
    obs_stats: RunningStatistics


def state_of_seed(state: State, index: int) -> Trained:
    """One of the S seeds of a state. The rest of it, with a replay buffer maybe, is not touched."""
    parts = (state.params, state.masks, state.obs_stats)
    return Trained(*jax.tree.map(lambda x: x[index], parts))


def masked_policy(state: State | Trained, config: Config, spec: Spec, seed: int) -> Policy:
    """The policy at the width it was trained with, masked slices zero."""
    learner = config.method_learner()
    groups = learner_of(learner).prunable_groups(state.params, learner)
    params = apply_masks(groups, state.params, state.masks)
    return _policy(params["actor"], state, config, spec, seed)


def compact_policy(state: State | Trained, config: Config, spec: Spec, seed: int) -> Policy:
    """The same function in physically smaller arrays: the surviving slices of the actor, gathered."""
    learner = config.method_learner()
    groups = learner_of(learner).prunable_groups(state.params, learner)
    small = compact(groups, state.params, state.masks)
    return _policy(small["actor"], state, config, spec, seed)


def actor_count(state: State | Trained, config: Config) -> Count:
    """Neurons and weights of the actor, kept and total, as it is trained.

    Where the actor also puts out the spread of its actions, which a deterministic policy does not need, these weights
    are counted here, and not in a ``Policy``.
    """
    learner = config.method_learner()
    groups = learner_of(learner).all_groups(state.params, learner)
    actor = groups.select(lambda group: group.name.startswith("actor/")).at("actor")
    return count(actor, state.params["actor"], {**init_masks(groups), **state.masks})


def _policy(actor: dict[str, Any], state: State | Trained, config: Config, spec: Spec, seed: int) -> Policy:
    learner = config.learner
    layers = [actor[f"layer_{i}"] for i in range(num_hidden(actor))] + [actor["head"]]
    tensors = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]
    # The mean comes first, or alone; what a head puts out beyond it is the spread, which acting greedily ignores.
    kernel, bias = tensors[-1]
    tensors[-1] = (kernel[:, : spec.action.num_outputs], bias[: spec.action.num_outputs])
    stats = state.obs_stats if learner.normalize_obs else None
    return Policy(
        layers=tuple(tensors),
        activation=learner.activation,
        action=spec.action,
        obs_mean=None if stats is None else np.asarray(stats.mean),
        obs_std=None if stats is None else np.sqrt(np.asarray(stats.var) + np.float32(1e-8)),
        obs_clip=learner.clip_obs,
        squash=isinstance(learner, sac.Config) and isinstance(spec.action, Box),
        metadata={
            "env": config.env,
            "algo": config.algo,
            "method": config.method,
            "seed": seed,
            "steps": config.steps,
        },
    )
