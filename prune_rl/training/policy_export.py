"""Deterministic policies from a learner's state: masked at full width, or compacted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_rl.dependency.compaction import compact, expand
from prune_rl.export.actions import Spread
from prune_rl.export.empty_layers import fold_empty_layers
from prune_rl.export.policy import Policy
from prune_rl.learners.actions import gaussian_range
from prune_rl.learners.networks import num_hidden
from prune_rl.learners.registry import State, learner_of, masks_at_start
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.runs.faults_file import read_faults
from prune_rl.spaces import Spec
from prune_rl.training.config import Config


@dataclasses.dataclass(frozen=True)
class Trained:
    """The part of a learner's state that acting depends on, for one seed.

    ``masks`` are over the neurons of the arrays, ``full_masks`` over those that there were at the start.
    """

    params: dict[str, Any]
    masks: dict[str, jax.Array]
    full_masks: dict[str, Any]
    obs_stats: RunningStatistics


def policy_paths(path: Path, config: Config, kind: str = "policy") -> dict[int, Path]:
    """Where the policy of each seed is: ``policy/``, or ``policy/seed_K/`` if there are several seeds.

    ``kind`` is "policy" for the compact one, "wide" for the same function at the width it started with.
    """
    root = path / kind
    return {seed: root if config.seeds == 1 else root / f"seed_{seed}" for seed in config.all_seeds}


def seeds_with_policy(path: Path, config: Config) -> list[int]:
    """The seeds of a run but those that its faults.json says have no policy."""
    faults = read_faults(path)
    return [seed for seed in config.all_seeds if seed not in faults]


def state_of_seed(state: State, index: int) -> Trained:
    """One of the S seeds of a state. The rest of the state, such as a replay buffer, is not copied."""
    parts = (state.params, state.masks, masks_at_start(state), state.obs_stats)
    return Trained(*jax.tree.map(lambda x: x[index], parts))


def masked_policy(state: Trained, config: Config, spec: Spec, seed: int) -> Policy:
    """The policy at the width it started with, its masked slices zero; ``config`` must be resolved."""
    learner, small = learner_of(config.learner), compact_params(state, config)
    start = jax.eval_shape(lambda: learner.init(jax.random.key(0), config.learner, spec).params)
    wide = expand(learner.prunable_groups(start, config.learner), small, state.full_masks)
    return _policy(wide["actor"], state, config, spec, seed)


def compact_policy(
    state: State | Trained, config: Config, spec: Spec, seed: int, step: int | None = None
) -> Policy:
    """The same function in smaller arrays, gathered from the kept slices of the actor; ``step``: if not the last."""
    return _policy(compact_params(state, config)["actor"], state, config, spec, seed, step)


def compact_params(state: State | Trained, config: Config) -> dict[str, Any]:
    """The params without the slices of masked neurons, in NumPy."""
    groups = learner_of(config.learner).prunable_groups(state.params, config.learner)
    # In NumPy: JAX would compile a gather for every new width.
    params, masks = jax.device_get((state.params, state.masks))
    small: dict[str, Any] = compact(groups, params, masks)
    return small


def _policy(
    actor: dict[str, Any],
    state: State | Trained,
    config: Config,
    spec: Spec,
    seed: int,
    step: int | None = None,
) -> Policy:
    learner = config.learner
    layers = [actor[f"layer_{i}"] for i in range(num_hidden(actor))] + [actor["head"]]
    tensors = [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in layers]
    skip = np.asarray(actor["skip"]["kernel"]) if "skip" in actor else None
    layers_left, skip = fold_empty_layers(tensors, skip, learner.activation)
    # The mean comes first, or alone; what a head puts out beyond it is the spread, which acting greedily ignores.
    (*hidden, (kernel, bias)), size = layers_left, spec.action.num_outputs
    spread = None
    if "log_std" in actor:
        log_std = np.asarray(actor["log_std"])
        mapped = gaussian_range(spec) if hasattr(learner_of(learner), "environment_actions") else None
        if mapped is not None:
            # In the head itself, so that the file needs no field for it.
            centre, scale = mapped
            kernel, bias = kernel * scale, bias * scale + centre
            skip = None if skip is None else skip * scale
            log_std = log_std + np.log(scale)
        spread = Spread(log_std)
    elif len(bias) > size:
        low, high = getattr(learner_of(learner), "LOG_STD_RANGE", (-np.inf, np.inf))
        spread = Spread(bias[size:], kernel[:, size:], None if skip is None else skip[:, size:], low, high)
    stats = state.obs_stats if learner.normalize_obs else None
    return Policy(
        layers=(*hidden, (kernel[:, :size], bias[:size])),
        activation=learner.activation,
        action=spec.action,
        obs_mean=None if stats is None else np.asarray(stats.mean),
        obs_std=None if stats is None else np.sqrt(np.asarray(stats.var) + np.float32(1e-8)),
        obs_clip=learner.clip_obs,
        squash=learner_of(learner).squashes(spec),
        metadata={
            "env": config.env,
            "algo": config.algo,
            "method": config.method,
            "seed": seed,
            "steps": config.steps if step is None else step,
        },
        skip=None if skip is None else skip[:, :size],
        observation_shape=spec.observation_shape,
        spread=spread,
    )
