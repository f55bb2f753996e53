"""What pruning adds to an update of 256·256, at the cadence of the presets of Hopper-v3."""

from __future__ import annotations

import dataclasses

from experiments.benchmarks.bare_updates import Update
from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Section, rows_of
from experiments.benchmarks.turns import take_turns
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.training.config import Config
from prune_rl.training.presets import find_preset, load_preset


def preset(algo: str, hidden: int) -> LearnerConfig:
    """Learner of the Hopper-v3 preset, pruning from beginning to end so that every mask update of a repeat does."""
    path = find_preset("Hopper-v3", algo)
    assert path is not None
    learner = load_preset(path, Config(env="Hopper-v3", algo=algo)).learner
    assert learner.prune is not None
    prune = dataclasses.replace(learner.prune, begin=0.0, end=1.0)
    changes: dict[str, object] = {"hidden": (hidden, hidden), "prune": prune}
    if algo == "sac":
        changes |= {"learning_starts": 0, "buffer_size": 100_000}
    return dataclasses.replace(learner, **changes)  # type: ignore[arg-type]


def measure(options: Options) -> list[Section]:
    """One section per learner."""
    sections = []
    for algo in ("sac", "ppo"):
        pruned = preset(algo, options.hidden)
        assert pruned.prune is not None
        every = pruned.prune.updates_apart(pruned.num_updates)
        importance = Pruning(
            tolerance=None, score="taylor", refit=False, strength=0.0, begin=0.0, end=1.0, every=every
        )
        variants = {
            "dense": None,
            f"importance, mask update at every {every}th update": importance,
            f"the defaults: {pruned.prune.score} and refit, trials that end at every {every}th update": pruned.prune,
        }
        updates = {
            name: Update(dataclasses.replace(pruned, prune=prune), seconds=options.seconds, at_least=every)
            for name, prune in variants.items()
        }
        sections.append(
            Section(
                key=f"pruning-{algo}",
                title=f"Pruning overhead, {algo.upper()}",
                text=f"Updates of {options.hidden}·{options.hidden} with the options of the Hopper-v3 preset, no "
                "environment, masks only; ratio: time against dense (1.03 is 3 % more).",
                unit="gradient steps/s",
                rows=tuple(rows_of(take_turns(updates, options.repeats), "dense", "time")),
            )
        )
    return sections
