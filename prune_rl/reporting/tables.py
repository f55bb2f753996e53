"""Numbers and policies as text, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.reporting.statistics import Difference, mean
from prune_rl.runs.evaluation_file import Policy


def signed(value: float) -> str:
    """One decimal with a sign; "0.0" for values that round to 0."""
    text = f"{value:+.1f}"
    return text if float(text) else "0.0"


def number(value: float) -> str:
    """With thousands separators, and one decimal if `value` is not whole; "?" for NaN."""
    return "?" if math.isnan(value) else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def span(low: float, high: float) -> str:
    """A range of numbers, "7–11", or one number if both are equal."""
    return number(low) if low == high else f"{number(low)}–{number(high)}"


def removed(size: Mapping[str, Any]) -> float:
    """Removed share of {"kept": int, "total": int}; 0 for a total of 0."""
    return 1.0 - size["kept"] / size["total"] if size["total"] else 0.0


def widths_text(policies: Sequence[Policy]) -> str:
    """Hidden widths, "7·8"; where policies differ, the range, "7·7–11"; "linear" where there is no hidden layer."""
    texts = []
    for depth in sorted({len(policy["widths"]) for policy in policies}):
        layers = zip(
            *(policy["widths"] for policy in policies if len(policy["widths"]) == depth), strict=True
        )
        texts.append("·".join(span(min(layer), max(layer)) for layer in layers) or "linear")
    return " or ".join(texts)


def return_text(policies: Sequence[Policy]) -> str:
    """Mean ± sample standard deviation: over the means of several policies, or over the episodes of one."""
    several = len(policies) > 1
    values = [mean(policy["returns"]) for policy in policies] if several else policies[0]["returns"]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.1f}"


def difference_text(difference: Difference) -> str:
    """The mean with its sign and, if there is one, the interval: "-1.0 [-3.0, +1.0]"."""
    interval = f" [{', '.join(map(signed, difference.interval))}]" if difference.interval else ""
    return signed(difference.mean) + interval


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table whose columns are aligned in plain text too.

    Args:
      heads: one per column.
      rows: cells; "|" in a cell is escaped.
      text_columns: how many columns from the left are left-aligned; the others hold numbers and are right-aligned.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    lines = [
        [cell.ljust(width) if n < text_columns else cell.rjust(width)
         for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]  # fmt: skip
    rule = ["-" * width if n < text_columns else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
