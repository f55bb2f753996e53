"""Dataclasses from JSON and TOML data whose types must fit, with one sentence about the first value that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from cattrs import Converter
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

Hook = Callable[[Any, Any], Any]


def strict_converter(fields: Callable[[Any, Converter], Mapping[str, Any]] = lambda kind, _: {}) -> Converter:
    """Values are checked, not converted as cattrs would by default ("3" is no whole number, 1 is not true).

    Only JSON's lists become tuples, and whole numbers become floats where a number is wanted. ``fields`` gives the
    overrides of cattrs for the fields of a dataclass.
    """
    converter = Converter(forbid_extra_keys=True)
    for kind, wanted in ((int, "a whole number"), (bool, "true or false"), (str, "a text")):
        converter.register_structure_hook(kind, _exactly(kind, wanted))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(_is(Literal), choice)
    converter.register_structure_hook_func(
        _is(tuple),
        lambda value, hint: _list(value, get_args(hint)[0], converter),
    )
    converter.register_structure_hook_func(_is(dict), _table)

    def table(kind: Any) -> Hook:
        structure = make_dict_structure_fn(kind, converter, **fields(kind, converter))

        def hook(value: Any, _: Any) -> Any:
            return structure(_table(value), kind)

        return hook

    converter.register_structure_hook_factory(dataclasses.is_dataclass, table)
    return converter


def choice(value: Any, hint: Any) -> Any:
    """``value`` if it is one of those of ``hint``, a ``Literal``, else ``ValueError``."""
    if value not in get_args(hint):
        raise ValueError(f"must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
    return value


def first_error(error: Exception, path: str = "") -> str:
    """The first of the errors that cattrs collected, as a sentence that begins with the name of its field."""
    if isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(sorted(field.name for field in dataclasses.fields(error.cl)))
        return f"unknown field {'.'.join(filter(None, [path, min(error.extra_fields)]))!r}; known are {known}"
    if not isinstance(error, ClassValidationError):
        return f"{path} {error}" if path else str(error)
    with_notes, without = error.group_exceptions()
    if with_notes:
        nested, note = with_notes[0]
        return first_error(nested, f"{path}.{note.name}" if path else note.name)
    return first_error(without[0], path)


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


def _table(value: Any, _: Any = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a table of fields, got {value!r}")
    return value


def _list(value: Any, kind: Any, converter: Converter) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        entries = {int: " of whole numbers", float: " of numbers", str: " of texts"}.get(kind, "")
        raise ValueError(f"must be a list{entries}, got {value!r}")
    return tuple(converter.structure(entry, kind) for entry in value)
