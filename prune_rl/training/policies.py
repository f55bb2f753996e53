"""From a learner's state to policies that act: masked at full width, or compacted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from prune_rl.export.policy import Policy
from prune_rl.learners import ppo
from prune_rl.learners.networks import num_hidden
from prune_rl.pruning.compaction import compact
from prune_rl.pruning.masks import Count, apply_masks, count, init_masks
from prune_rl.spaces import Spec
from prune_rl.training.config import Config


def state_of_seed(state: ppo.State, index: int) -> ppo.State:
    """The state of one of the S seeds."""
    picked: ppo.State = jax.tree.map(
        lambda x: x[index], dataclasses.replace(state, step=state.step[None].repeat(index + 1))
    )
    return picked


def masked_policy(state: ppo.State, config: Config, spec: Spec, seed: int) -> Policy:
    """The policy at the width it was trained with, masked slices zero."""
    groups = ppo.prunable_groups(state.params, config.method_learner())
    params = apply_masks(groups, state.params, state.masks)
    return _policy(params["actor"], state, config, spec, seed)


def compact_policy(state: ppo.State, config: Config, spec: Spec, seed: int) -> Policy:
    """The same function in physically smaller arrays: the surviving slices of the actor, gathered."""
    groups = ppo.prunable_groups(state.params, config.method_learner())
    small = compact(groups, state.params, state.masks)
    return _policy(small["actor"], state, config, spec, seed)


def actor_count(state: ppo.State, config: Config) -> Count:
    """Neurons and weights of the actor, kept and total."""
    groups = ppo.all_groups(state.params, config.method_learner())
    actor = groups.select(lambda group: group.name.startswith("actor/")).at("actor")
    return count(actor, state.params["actor"], {**init_masks(groups), **state.masks})


def _policy(actor: dict[str, Any], state: ppo.State, config: Config, spec: Spec, seed: int) -> Policy:
    learner = config.learner
    layers = [actor[f"layer_{i}"] for i in range(num_hidden(actor))] + [actor["head"]]
    stats = state.obs_stats if learner.normalize_obs else None
    return Policy(
        layers=tuple((np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers),
        activation=learner.activation,
        action=spec.action,
        obs_mean=None if stats is None else np.asarray(stats.mean),
        obs_std=None if stats is None else np.sqrt(np.asarray(stats.var) + np.float32(1e-8)),
        obs_clip=learner.clip_obs,
        metadata={
            "env": config.env,
            "algo": config.algo,
            "method": config.method,
            "seed": seed,
            "steps": config.steps,
        },
    )
