"""Run configurations from JSON and TOML data, with one sentence about the first value that does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

from cattrs import Converter
from cattrs.errors import BaseValidationError
from cattrs.gen import override

from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.runs.strict_tables import choice, first_error, strict_converter
from prune_rl.training.config import Config


def from_json(data: Any) -> Config:
    """The configuration that ``Config.to_json`` wrote; a field that is absent has its default.

    Raises:
        ValueError: an unknown field, or a value of another type; the message names field, value and what is allowed.
    """
    algo = data.get("algo", Config.algo) if isinstance(data, Mapping) else Config.algo
    # An algo that is no learner is refused where its own value is read.
    known = algo if algo in tuple(LEARNERS) else Config.algo
    try:
        config: Config = _converter(LEARNERS[known].Config).structure(data, Config)
    except BaseValidationError as error:
        raise ValueError(first_error(error)) from error
    return config


def merged(config: Config, data: Mapping[str, Any]) -> Config:
    """``config`` with the fields named in ``data`` (nested as the dataclasses are) replaced; raises as ``from_json``.

    Another ``algo`` brings that learner's default hyperparameters.
    """
    if data.get("algo", config.algo) != config.algo:
        config = dataclasses.replace(config, algo=data["algo"], learner=cast(Any, None))
    return from_json(_overlay(config.to_json(), data))


def _overlay(base: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {**base} | {
        key: _overlay(base[key], value)
        if isinstance(base.get(key), dict) and isinstance(value, dict)
        else value
        for key, value in data.items()
    }


def _converter(learner: type) -> Converter:
    """Structures a ``Config`` whose hyperparameters are those of ``learner``."""

    def fields(kind: Any, converter: Converter) -> Mapping[str, Any]:
        if kind is not Config:
            return {}
        return {
            "algo": override(struct_hook=lambda value, _: choice(value, Literal[tuple(LEARNERS)])),
            "method": override(struct_hook=lambda value, _: choice(value, Literal[tuple(METHODS)])),
            "learner": override(struct_hook=lambda value, _: converter.structure(value, learner)),
        }

    return strict_converter(fields)
