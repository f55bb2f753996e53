"""What an update costs for some number of seeds, and the bits that it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from prune_rl.bench_device.options import Options
from prune_rl.bench_device.sections import Case
from prune_rl.bench_device.steady_state import timed
from prune_rl.envs.task import resolve_task
from prune_rl.training.config import Config
from prune_rl.training.engines import DeviceEngine
from prune_rl.training.make_engine import CHUNK
from prune_rl.training.presets import find_preset, load_preset

# Of the whole run, more than are ever measured.
UPDATES = 4000
# Environment steps of SAC before its first gradient step.
LEARNING_STARTS = 256


def configuration(case: Case, options: Options) -> Config:
    """The resolved configuration of a case: its preset, pruned from the start in arrays of full width.

    Raises:
        ValueError: an environment without a preset for this learner, or options that cannot work.
    """
    preset = find_preset(case.env, case.algo)
    if preset is None:
        raise ValueError(f"{case.env} has no preset for {case.algo}")
    config = load_preset(preset, Config(env=case.env, algo=case.algo, backend="jax", seeds=case.seeds))
    learner: Any = config.learner
    prune = dataclasses.replace(
        learner.prune,
        begin=0.0,
        every=learner.prune.updates_apart(learner.num_updates),
        shrink="never",
    )
    changed: dict[str, Any] = {"hidden": options.hidden, "prune": prune}
    for name in ("num_envs", "num_steps"):
        if getattr(options, name) is not None:
            changed[name] = getattr(options, name)
    if case.algo == "sac":
        changed |= {"buffer_size": options.buffer_size, "learning_starts": LEARNING_STARTS}
    learner = dataclasses.replace(learner, **changed)
    learner = dataclasses.replace(learner, total_timesteps=UPDATES * learner.steps_per_update)
    return dataclasses.replace(config, learner=learner).resolved()


def make_engine(case: Case, options: Options) -> DeviceEngine:
    """The engine of `prune-rl train` for a case, on one device.

    Raises:
        UnsupportedEnvironment: a package is missing.
    """
    config = configuration(case, options)
    env = resolve_task(config.env, config.backend).jax_env()
    return DeviceEngine(env, config.all_seeds, config.learner, CHUNK, jax.local_devices()[:1])


def training(case: Case, options: Options) -> dict[str, Any]:
    """Seconds per update of all seeds, see ``timed``.

    Also "steps_per_update", the environment steps of one update of one seed, and "sha256", of the parameters after the
    first updates: ``options.updates``, or as many as SAC needs to begin to learn.
    """
    engine, learner = make_engine(case, options), configuration(case, options).learner
    engine.advance(max(options.updates, learner.warmup_updates + 2))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(engine.state.params):
        digest.update(np.asarray(leaf).tobytes())
    measured = timed(engine.advance, options, most=UPDATES // (2 * options.repeats))
    engine.close()
    return {**measured, "steps_per_update": learner.steps_per_update, "sha256": digest.hexdigest()}
