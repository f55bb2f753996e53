"""Pictures of frontiers: return against hidden neurons, of one run or of several."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.reporting.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, legend_above
from prune_rl.reporting.statistics import bootstrap_interval, mean
from prune_rl.runs.frontier import Point, is_chosen

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY)


@dataclasses.dataclass(frozen=True)
class Series:
    """What one run, or one method, puts into the picture.

    Attributes:
        label: its name in the legend.
        lines: per training seed its policies, each a mapping with "neurons" and "returns"; joined by a line.
        marked: policies to be marked, such as the chosen ones.
    """

    label: str
    lines: Sequence[Sequence[Point]]
    marked: Sequence[Point] = ()


def draw_frontier(data: Mapping[str, Any]) -> bytes:
    """A PNG of one run's frontier.json: a line per training seed, the chosen policies, and the dense control.

    Raises:
        ValueError: there is no point.
    """
    series = frontier_series("", data)
    named = dataclasses.replace(
        series, label="return" if len(series.lines) == 1 else f"{len(series.lines)} seeds"
    )
    dense = mean([mean(returns) for returns in data["dense"].values()]) if data["dense"] else None
    return draw_series(f"{data['env_id']}: policies kept in one run", [named], dense)


def frontier_series(label: str, data: Mapping[str, Any]) -> Series:
    """The content of frontier.json."""
    seeds = sorted({point["seed"] for point in data["points"]})
    lines = [[point for point in data["points"] if point["seed"] == seed] for seed in seeds]
    marked = [point for point in data["points"] if is_chosen(data, point)]
    return Series(label, lines, marked)


def draw_series(title: str, series: Sequence[Series], dense: float | None = None) -> bytes:
    """A PNG of return against hidden neurons, with 95 % bootstrap intervals over episodes.

    Args:
        title: above the picture.
        series: at most five have colours of their own.
        dense: return of the dense control, drawn as a level.

    Raises:
        ValueError: no series has a point.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    points = [point for each in series for line in each.lines for point in line]
    if not points:
        raise ValueError("there is nothing to draw: no run has a policy to show")
    figure = Figure(figsize=(8.0, 4.2), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    for number, each in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        for index, line in enumerate(each.lines):
            ordered = sorted(line, key=lambda point: (point["neurons"], point.get("step", 0)))
            means = np.array([mean(point["returns"]) for point in ordered])
            panel.errorbar(
                [point["neurons"] for point in ordered], means, yerr=_errors(ordered, means), color=colour,
                alpha=1.0 if len(each.lines) == 1 else 0.45, linewidth=1.4, elinewidth=0.8, marker="o",
                markersize=3.5, label=each.label if index == 0 else None,
            )  # fmt: skip
        for index, point in enumerate(each.marked):
            panel.plot([point["neurons"]], [mean(point["returns"])], "D", color=ORANGE, markeredgecolor=colour,
                       markersize=7, zorder=5, label="chosen" if index == number == 0 else None)  # fmt: skip
    if dense is not None:
        panel.axhline(dense, color="#222222", linewidth=1.1, linestyle=(0, (5, 3)), label="dense control")
    largest = max(1, *(point["neurons"] for point in points))
    # A logarithm that reaches 0, by a straight piece below 1.
    panel.set_xscale("symlog", base=2, linthresh=1)
    panel.set_xlim(-0.3, largest * 1.25)
    panel.xaxis.set_major_locator(FixedLocator([0, *2.0 ** np.arange(np.floor(np.log2(largest)) + 1)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("hidden neurons of the actor")
    panel.set_ylabel("return")
    legend_above(panel, 3 if len(series) == 1 else 2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    note = "95 % bootstrap intervals over episodes"
    figure.text(0.99, 0.985, note, ha="right", va="top", fontsize=8, color=GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _errors(points: Sequence[Point], means: Any) -> Any:
    spans = [bootstrap_interval(np.asarray(point["returns"], np.float64)) for point in points]
    return np.array(
        [
            (0.0, 0.0) if span is None else (centre - span[0], span[1] - centre)
            for span, centre in zip(spans, means, strict=True)
        ]
    ).T
