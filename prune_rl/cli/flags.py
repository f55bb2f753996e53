"""How the command line reads types: whole numbers, and dataclasses whose fields another one decides."""

from __future__ import annotations

import dataclasses
import functools
import re
from decimal import Decimal
from typing import Any

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)


def with_types(types: dict[type, dict[str, Any]]) -> ConstructorRegistry:
    """Rules for tyro: fields of these dataclasses have other types, and the help texts of all have no line breaks."""
    registry = ConstructorRegistry()
    nested = False

    @registry.primitive_rule
    def whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: _whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal nested
        if nested or not dataclasses.is_dataclass(info.type):
            return None
        nested = True  # the rules asked here are tyro's own
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            nested = False
        assert isinstance(spec, StructConstructorSpec)
        changed = types.get(info.type, {})
        fields = (
            dataclasses.replace(
                field, type=changed.get(field.name, field.type), helptext=functools.partial(_help, field)
            )
            for field in spec.fields
        )
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _whole_number(word: str) -> int:
    """Also of "1e6" and "1_000_000"; raises ``ValueError`` for 1.5, and for what is no number."""
    try:
        return int(word)
    except ValueError:
        number = Decimal(word) if re.fullmatch(r"[+-]?[\d_]*\.?\d*[eE]\+?\d{1,2}", word) else None
        if number is None or number != int(number):
            raise ValueError(f"must be a whole number, such as 1000000 or 1e6, got {word!r}") from None
        return int(number)


def _help(field: StructFieldSpec) -> str | None:
    text = field.helptext() if callable(field.helptext) else field.helptext
    return None if text is None else " ".join(text.split())
