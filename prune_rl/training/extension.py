"""A run that goes on from the end of a shorter one, in a folder of its own: `prune-rl train … --extend RUN`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from prune_rl.envs.task import Task
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.learners.optimizer import learning_rate
from prune_rl.learners.registry import learner_of
from prune_rl.pruning.mask_schedule import MaskSchedule
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.directory import RunDirectoryError
from prune_rl.training.config import Config
from prune_rl.training.run_config import read_config

# What may differ between a run and the one that it extends; of these only the number of steps changes the training.
MAY_DIFFER = ("episodes", "selection_episodes", "evaluation_seed", "checkpoints", "host_resets", "extends")
COPIED = ("masks", "frontier", "tensorboard")
STAGING = "extending"


def extended_config(config: Config, run: Path) -> Config:
    """``config`` (resolved) as one that extends ``run``.

    Raises:
        RunDirectoryError: ``run`` is no run directory.
        ValueError: the two differ in more than steps and evaluation, or ``config`` has fewer steps.
    """
    old = read_config(run)
    if old.seed == config.seed and old.seeds < config.seeds:
        first, more = old.seed + old.seeds, config.seeds - old.seeds
        raise ValueError(
            f"{run} has {old.seeds} seeds and --extend adds none, since all seeds of a run train together: train the "
            f"others as a run of their own (--seed {first} --seeds {more}); `prune-rl report` reads both as one "
            "method"
        )
    there, here = (_compared(each) for each in (old, config))
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{run} can be extended in steps and evaluation alone, and {key} is {there.get(key)} there, "
            f"{here.get(key)} here"
        )
    if config.steps < old.steps:
        raise ValueError(
            f"{run} has {old.steps} steps, which --extend cannot make fewer: {config.steps} were asked for"
        )
    return dataclasses.replace(config, extends=(*old.extends, old.steps))


def _compared(config: Config) -> dict[str, Any]:
    data = {key: value for key, value in config.to_json().items() if key not in MAY_DIFFER}
    learner = data.pop("learner")
    return data | {f"learner.{key}": value for key, value in learner.items() if key != "total_timesteps"}


def extension(
    run: Path,
    config: Config,
    task: Task,
    make_engine: Callable[[Config, Task], Any],
    say: Callable[[str], None],
) -> Callable[[Path], None]:
    """What fills the folder of an extending run before its training begins; called with that folder, which is locked.

    It copies log, masks, frontier and the last checkpoint of ``run``, which itself is read only. Where the folder has a
    checkpoint already, it does nothing.
    """
    old = read_config(run).resolved(task)

    def fill(path: Path) -> None:
        checkpoints, staging = Checkpoints(path / "checkpoints"), path / STAGING
        engine = None
        try:
            if checkpoints.steps():
                return
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(run / "checkpoints", staging, ignore=shutil.ignore_patterns("damaged", "*tmp*"))
            engine = make_engine(old, task)
            copied = Checkpoints(staging)
            found = copied.restore(lambda metadata: engine.template(metadata["widths"]))
            copied.close()
            if found is None or found.step < old.learner.num_updates:
                raise RunDirectoryError(f"{run} has no usable checkpoint of its end: it cannot be extended")
            for name in COPIED:
                if (run / name).is_dir():
                    shutil.copytree(run / name, path / name, dirs_exist_ok=True)
            shutil.copyfile(run / "metrics.jsonl", path / "metrics.jsonl")
            tree = found.tree.replace(state=_longer(found.tree.state, config))
            say(_meaning(run, old, config, tree.state))
            # Last, since it says that all the rest is there.
            checkpoints.save(found.step, tree, found.metadata)
        finally:
            checkpoints.close()
            if engine is not None:
                engine.close()
            shutil.rmtree(staging, ignore_errors=True)

    return fill


def _longer(state: Any, config: Config) -> Any:
    """A state [S] at the end of a run as one of a longer run."""
    learner: Any = learner_of(config.learner)
    if hasattr(learner, "extend"):
        axes = learner.VMAP_AXES
        state = jax.vmap(lambda each: learner.extend(each, config.learner), in_axes=(axes,), out_axes=axes)(
            state
        )
    if config.host_resets is not None and hasattr(state, "returns"):
        # Host environments start new episodes here.
        under_way = jnp.zeros_like(state.returns.under_way)
        state = dataclasses.replace(state, returns=dataclasses.replace(state.returns, under_way=under_way))
    return state


def _meaning(run: Path, old: Config, new: Config, state: Any) -> str:
    """What the longer training means for what counts against its length."""
    learner = new.learner
    share = old.steps / new.steps
    reached = float(learning_rate(old.learner)(old.learner.learning_steps))
    rate = float(learning_rate(learner)(round(share * learner.learning_steps)))
    parts = [
        f"this run goes on from the end of {run} at {old.steps:,} steps per seed, and leaves that as it is; the "
        f"learning rate, which had reached {reached:.2g}, starts again at about {rate:.2g}"
    ]
    if learner.prune is not None:
        number = MaskSchedule.covering(list(mask_schedules(learner).values())).number
        made = int(jnp.min(cast(Any, state).pruning.updates))
        parts.append(
            "the mask schedule is complete and removes nothing more"
            if made >= number
            else f"{made} mask updates were made, and the mask schedule of the longer run has {number}: it goes on "
            "where due, and brings no neuron back"
        )
    return "; ".join(parts)
