"""Runs that train in one program: the same but for numbers that a program can have many values of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from prune_rl.learners.traced_numbers import number_of, traced_fields, without_values
from prune_rl.training.config import Config
from prune_rl.training.engines.members import Members


def share_program(one: Config, other: Config) -> bool:
    """Whether two resolved runs can train in one program: they differ in traced numbers alone."""
    first, second = (dataclasses.replace(each, learner=without_values(each.learner)) for each in (one, other))
    return first == second


def members_of(runs: Sequence[Config]) -> Members:
    """The members of resolved runs that share a program: all seeds of the first, then all of the second, …"""
    fields = [
        name
        for name in traced_fields(runs[0].learner)
        if len({number_of(run.learner, name) for run in runs}) > 1
    ]
    each = [(run, {name: number_of(run.learner, name) for name in fields}) for run in runs]
    members = [numbers for run, numbers in each for _ in run.all_seeds]
    return Members(
        {name: tuple(numbers[name] for numbers in members) for name in fields},
        tuple(name_of(numbers) for numbers in members) if fields else (),
    )


def name_of(values: Mapping[str, object]) -> str:
    """The values as one word: ``learning_rate=0.001,gamma=0.99``."""
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
