"""The widths of a small actor, read from a run that found them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prune_rl.export.policy import load_policy
from prune_rl.training.config import Config
from prune_rl.training.policy_export import policy_paths, seeds_with_policy
from prune_rl.training.run_config import read_config


def as_wide_as(config: Config, run: Path) -> Config:
    """``config`` with the widths of the compact policies of ``run``, and a critic as wide as that run's at its start.

    Where the seeds of the run ended with different widths, each layer gets the widest of them. A linear policy has no
    layers; if all of them are linear, so is the small actor.

    Raises:
        RunDirectoryError: ``run`` is no run directory of this package.
        PolicyFileError: it has no policy yet, or a damaged one.
        ValueError: ``config`` is not of method "small", or the run has another environment or learner, or removed
            nothing.
    """
    if config.method != "small":
        raise ValueError(f"--like is for method 'small', got method {config.method!r}")
    other = read_config(run)
    for name in ("env", "algo"):
        mine, theirs = getattr(config, name), getattr(other, name)
        if mine != theirs:
            raise ValueError(
                f"{run} is a run of {name} {theirs!r}, not {mine!r}: give one of the same {name}"
            )
    if other.learner.prune is None:
        raise ValueError(
            f"{run} removed nothing (its method is {other.method!r}): give a run that was pruned"
        )
    folders = policy_paths(run, other)
    each = [load_policy(folders[seed]).widths for seed in seeds_with_policy(run, other)]
    hidden = tuple(max(layer) for layer in zip(*(widths for widths in each if widths), strict=True))
    critic = other.learner.critic_widths
    return dataclasses.replace(
        config, learner=dataclasses.replace(config.learner, hidden=hidden, critic_hidden=critic)
    )
