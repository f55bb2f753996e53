"""Run configurations from JSON and TOML data, with one sentence about the first value that does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from cattrs import Converter
from cattrs.errors import (
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
)
from cattrs.gen import make_dict_structure_fn, override

from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.training.config import Config

Hook = Callable[[Any, Any], Any]


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
        raise ValueError(_first_error(error)) from error
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
    """Structures a ``Config`` whose hyperparameters are those of ``learner``.

    Values are checked, not converted as cattrs would by default ("3" is no whole number, 1 is not true); only JSON's
    lists become tuples, and whole numbers become floats where a number is wanted.
    """
    converter = Converter(forbid_extra_keys=True)
    for kind, wanted in ((int, "a whole number"), (bool, "true or false"), (str, "a text")):
        converter.register_structure_hook(kind, _exactly(kind, wanted))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(_is(Literal), _choice)
    converter.register_structure_hook_func(
        _is(tuple),
        lambda value, hint: _list(value, get_args(hint)[0], converter),
    )

    def table(kind: Any) -> Hook:
        fixed: Any = {
            "algo": override(struct_hook=lambda value, _: _choice(value, Literal[tuple(LEARNERS)])),
            "method": override(struct_hook=lambda value, _: _choice(value, Literal[tuple(METHODS)])),
            "learner": override(struct_hook=lambda value, _: converter.structure(value, learner)),
        }
        structure = make_dict_structure_fn(kind, converter, **(fixed if kind is Config else {}))

        def hook(value: Any, _: Any) -> Any:
            if not isinstance(value, Mapping):
                raise ValueError(f"must be a table of fields, got {value!r}")
            return structure(value, kind)

        return hook

    converter.register_structure_hook_factory(dataclasses.is_dataclass, table)
    return converter


def _is(origin: Any) -> Callable[[Any], bool]:
    return lambda hint: get_origin(hint) is origin


def _exactly(kind: type, wanted: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"must be {wanted}, got {value!r}")
        return value

    return hook


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is too large for a floating-point number") from None


def _choice(value: Any, hint: Any) -> Any:
    if value not in get_args(hint):
        raise ValueError(f"must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
    return value


def _list(value: Any, kind: Any, converter: Converter) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        entries = {int: " of whole numbers", float: " of numbers", str: " of texts"}.get(kind, "")
        raise ValueError(f"must be a list{entries}, got {value!r}")
    return tuple(converter.structure(entry, kind) for entry in value)


def _first_error(error: Exception, path: str = "") -> str:
    """The first of the errors that cattrs collected, as a sentence that begins with the name of its field."""
    if isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(sorted(field.name for field in dataclasses.fields(error.cl)))
        return f"unknown field {'.'.join(filter(None, [path, min(error.extra_fields)]))!r}; known are {known}"
    if not isinstance(error, ClassValidationError):
        return f"{path} {error}" if path else str(error)
    with_notes, without = error.group_exceptions()
    if with_notes:
        nested, note = with_notes[0]
        return _first_error(nested, f"{path}.{note.name}" if path else note.name)
    return _first_error(without[0], path)
