"""What a benchmark finds, as Markdown and as JSON: sections of rows, each row a ratio with its spread."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from experiments.benchmarks.turns import Spread, Timing, speed_ratio, time_ratio

Kind = Literal["speed", "time", "bytes"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes:
        name: what it is.
        value: median over repeats, in the unit of the section.
        against: the row or peer that the ratio refers to; "" where there is nothing to compare with.
        ratio: median, lowest and highest over repeats; None where there is nothing to compare with.
        kind: of what the ratio is.
        repeats: how many.
    """

    name: str
    value: float
    against: str
    ratio: Spread | None
    kind: Kind
    repeats: int


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that belong together; ``text`` says what was run and what the ratio is, ``unit`` is that of the values."""

    key: str
    title: str
    text: str
    unit: str
    rows: tuple[Row, ...]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More for the JSON file."""


def rows_of(
    timings: Mapping[str, Sequence[Timing]], baseline: str, kind: Literal["speed", "time"]
) -> list[Row]:
    """One row per contender, each compared with ``baseline``."""
    compare = speed_ratio if kind == "speed" else time_ratio
    return [
        Row(
            name=name,
            value=statistics.median(timing.speed for timing in own),
            against=baseline,
            ratio=compare(own, timings[baseline]),
            kind=kind,
            repeats=len(own),
        )
        for name, own in timings.items()
    ]


def markdown(sections: Sequence[Section], header: Sequence[str]) -> str:
    """The page: header lines, then a table per section."""
    lines = ["# Benchmarks", "", *header, ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        lines += [f"| | {section.unit} | ratio | lowest–highest | repeats |", "|---|---:|---:|---|---:|"]
        lines += [_line(row) for row in section.rows]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    ratio = spread = ""
    if row.ratio is not None:
        digits = 3 if row.kind == "time" else 2
        ratio = f"{row.ratio.median:.{digits}f}"
        spread = f"{row.ratio.low:.{digits}f}–{row.ratio.high:.{digits}f}"
    value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
    return f"| {row.name} | {value} | {ratio} | {spread} | {row.repeats} |"


def to_json(sections: Sequence[Section], header: Mapping[str, Any]) -> dict[str, Any]:
    """The same, as plain data."""
    return {**header, "sections": [dataclasses.asdict(section) for section in sections]}
