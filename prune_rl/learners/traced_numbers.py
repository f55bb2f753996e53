"""Hyperparameters that are numbers and decide on no shape and no program: one compiled program serves many values.

A learner reads them from its frozen configuration, as all others. Where they differ between the members of a batch,
the function that is mapped over the members gets a configuration in which they are traced scalars, from
``with_values``. That configuration has no hash, and is no key of a cache; ``without_values`` makes one of it.

A field can be listed in ``TRACED`` of its dataclass if no Python code branches on it and nothing before the first
update depends on it. A test traces each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.pruning_config import Pruning

C = TypeVar("C", bound=LearnerConfig)
PRUNE = "prune."


def traced_fields(config: LearnerConfig) -> tuple[str, ...]:
    """Names of the fields that may be traced, those of pruning as "prune.NAME"; those of a dense run without them."""
    own = type(config).TRACED
    return own if config.prune is None else (*own, *(f"{PRUNE}{name}" for name in Pruning.TRACED))


def with_values(config: C, values: Mapping[str, Any]) -> C:
    """``config`` with these fields replaced by numbers or scalars, traced ones too; not checked.

    Those of pruning are left out where nothing is pruned. Raises ``ValueError`` for a field that cannot be traced.
    """
    if not values:
        return config
    mine = {name: value for name, value in values.items() if not name.startswith(PRUNE)}
    theirs = {name.removeprefix(PRUNE): value for name, value in values.items() if name.startswith(PRUNE)}
    for name in (*sorted(set(mine) - set(type(config).TRACED)), *sorted(set(theirs) - set(Pruning.TRACED))):
        raise ValueError(f"{name} cannot be traced; those that can are {', '.join(traced_fields(config))}")
    if theirs and config.prune is not None:
        mine["prune"] = dataclasses.replace(config.prune, **theirs)
    return dataclasses.replace(config, **mine)


def without_values(config: C) -> C:
    """``config`` with 1 in all fields that may be traced: equal and hashable for all members of a batch.

    What is None, or a strength of 0, which leaves the proximal step out, stays: it makes another program.
    """
    names = [name for name in traced_fields(config) if not _is_another_program(name, number_of(config, name))]
    return with_values(config, dict.fromkeys(names, 1.0))


def number_of(config: LearnerConfig, name: str) -> Any:
    """The value of a field of ``traced_fields``."""
    owner: Any = config.prune if name.startswith(PRUNE) else config
    return getattr(owner, name.removeprefix(PRUNE))


def _is_another_program(name: str, value: Any) -> bool:
    return value is None or (name == f"{PRUNE}strength" and isinstance(value, int | float) and value == 0)
