"""JSON from files that may be damaged or hostile: parsed strictly, with one kind of error, and checked by type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LARGEST = 1 << 64
_LARGEST_FLOAT32 = 3.5e38


def parse(text: bytes | str) -> Any:
    """Strict JSON in UTF-8.

    Raises:
        ValueError: it is not, is nested too deeply, or holds a number that is not finite or beyond 64 bits.
    """

    def real(literal: str) -> float:
        if not math.isfinite(value := float(literal)):
            raise ValueError(f"{literal} is not a finite number")
        return value

    def whole(literal: str) -> int:
        if abs(value := int(literal)) >= _LARGEST:
            raise ValueError(f"{literal[:20]}… is too large")
        return value

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, parse_float=real, parse_constant=real, parse_int=whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: bytes | str) -> dict[str, Any]:
    """A JSON object; raises ``ValueError`` as ``parse``, and for another kind of value."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {kind_of(value)}, not an object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or as ``parse_object``.
    """
    try:
        return parse_object(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from None


def number(value: Any) -> float:
    """``value`` if it is a number of JSON that float32 could hold, as all of a run are, else ``ValueError``."""
    if type(value) not in (int, float):
        raise ValueError(f"{kind_of(value)} stands where a number should")
    if abs(value) > _LARGEST_FLOAT32:
        raise ValueError(f"{value} is no number of a run")
    result: float = value
    return result


def whole_number(value: Any) -> int:
    """``value`` if it is a whole number of JSON, else ``ValueError``."""
    if type(value) is not int:
        raise ValueError(f"{kind_of(value)} stands where a whole number should")
    return value


def items(value: Any) -> list[Any]:
    """``value`` if it is a list, else ``ValueError``."""
    if not isinstance(value, list):
        raise ValueError(f"{kind_of(value)} stands where a list should")
    return value


def entries(value: Any) -> Mapping[str, Any]:
    """``value`` if it is an object, else ``ValueError``."""
    if not isinstance(value, dict):
        raise ValueError(f"{kind_of(value)} stands where an object should")
    return value


def check_types(
    found: Mapping[str, Any],
    wanted: Mapping[str, type | tuple[type, ...]],
    where: str = "",
    *,
    null: bool = False,
) -> None:
    """Raises ``ValueError`` for the first field of ``wanted`` that ``found`` has with another type.

    ``null``: whether they may be null.
    """
    for name, kind in wanted.items():
        if name not in found or (null and found[name] is None):
            continue
        kinds: Iterable[type] = kind if isinstance(kind, tuple) else (kind,)
        if type(found[name]) not in kinds:
            raise ValueError(f"{where}{name} is {kind_of(found[name])}")


def kind_of(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
