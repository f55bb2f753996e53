"""The picture of a run: training return and kept neurons over environment steps."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

Curve = NDArray[np.float64]

# Okabe and Ito's palette: distinct under every common colour blindness, and in grey by their lightness.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
LAYER_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
GREY = "#6b6b6b"
POINTS = 1500  # more than the picture has pixels across; longer logs are thinned out


@dataclasses.dataclass(frozen=True)
class Marks:
    """What the curves are compared with.

    Attributes:
      window: first and last step of the pruning schedule.
      target_widths: neurons per layer the schedule aims at, by group name.
      dense_return, compact_return: means over evaluation episodes and seeds.
    """

    window: tuple[float, float] | None = None
    target_widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dense_return: float | None = None
    compact_return: float | None = None


def draw(records: Sequence[Mapping[str, Any]], title: str, marks: Marks) -> bytes:
    """A PNG of the run's curves.

    Args:
      records: lines of metrics.jsonl, at least one; "running_return" (else "return") [S] and "widths"
        {group: [S]} are drawn where they are there.
      title: printed above.
      marks: levels to compare with.

    Raises:
      ValueError: there are no records.
    """
    if not records:
        raise ValueError("there is nothing to draw: metrics.jsonl has no lines")
    records = [*records[:: max(1, math.ceil(len(records) / POINTS))], records[-1]]
    steps = np.array([record["step"] for record in records], np.float64)
    returns = _per_seed(records, "running_return")
    if returns is None or np.all(np.isnan(returns)):
        returns = _per_seed(records, "return")
    widths = _widths(records)
    figure = Figure(figsize=(8.0, 6.2 if widths else 3.8), dpi=160, layout="constrained")
    axes = figure.subplots(2 if widths else 1, 1, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        panel.set_axisbelow(True)
        if marks.window is not None and widths:
            panel.axvspan(*marks.window, color="#000000", alpha=0.045, linewidth=0)
    _draw_returns(axes[0], steps, returns, marks)
    if widths:
        _draw_widths(axes[1], steps, widths, marks)
    axes[-1].set_xlabel("environment steps per seed")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[-1].set_xlim(0, steps[-1] * 1.005)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_returns(panel: Axes, steps: Curve, returns: Curve | None, marks: Marks) -> None:
    panel.set_ylabel("training return")
    if returns is None or np.all(np.isnan(returns)):
        panel.text(
            0.5, 0.5, "no training episode has ended", transform=panel.transAxes, ha="center", color=GREY
        )
        return
    seeds = returns.shape[1]
    if seeds > 1:
        for index in range(seeds):
            label = f"each of {seeds} seeds" if index == 0 else None
            panel.plot(steps, returns[:, index], color=BLUE, linewidth=0.8, alpha=0.35, label=label)
    panel.plot(
        steps, _mean(returns), color=BLUE, linewidth=2.2, label="mean" if seeds > 1 else "training return"
    )
    if marks.dense_return is not None:
        panel.axhline(marks.dense_return, color="#222222", linewidth=1.1, linestyle=(0, (5, 3)),
                      label="dense control, evaluated")  # fmt: skip
    if marks.compact_return is not None:
        panel.plot(steps[-1:], [marks.compact_return], "D", color=ORANGE, markeredgecolor="black", markersize=7,
                   clip_on=False, zorder=5, label="compact policy, evaluated")  # fmt: skip
    panel.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5)


def _draw_widths(panel: Axes, steps: Curve, widths: dict[str, Curve], marks: Marks) -> None:
    panel.set_ylabel("kept neurons per layer")
    panel.set_yscale("log", base=2)
    ends = []
    for number, (name, kept) in enumerate(widths.items()):
        colour = LAYER_COLOURS[number % len(LAYER_COLOURS)]
        # Layers that go the same way stay visible: each later line is thinner and lies on top of the one before.
        thickness = max(1.4, 4.8 - 2.8 * number)
        dashes: Any = "-" if number < len(LAYER_COLOURS) else ":"
        if kept.shape[1] > 1:
            for seed in range(kept.shape[1]):
                panel.step(steps, kept[:, seed], where="post", color=colour, linewidth=0.8, alpha=0.35)
        panel.step(steps, _mean(kept), where="post", color=colour, linewidth=thickness, linestyle=dashes)
        low, high = int(np.nanmin(kept[-1])), int(np.nanmax(kept[-1]))
        text = f"{name}: {low if low == high else f'{low}–{high}'} of {int(np.nanmax(kept))}"
        ends.append((float(np.nanmean(kept[-1])), text, colour))
    targets = sorted(set(marks.target_widths.values()))
    for target in targets:
        panel.axhline(target, color="#222222", linewidth=1.1, linestyle=(0, (2, 2)))
        panel.annotate(f"target: {target}", (0.0, target), xycoords=("axes fraction", "data"), xytext=(5, 4),
                       textcoords="offset points", fontsize=8.5)  # fmt: skip
    if marks.window is not None:
        panel.annotate("pruning schedule", (marks.window[0], 1.0), xycoords=("data", "axes fraction"),
                       xytext=(5, -12), textcoords="offset points", fontsize=8.5, color=GREY)  # fmt: skip
    smallest = min([min(value for value, _, _ in ends), *targets])
    largest = max(float(np.nanmax(kept)) for kept in widths.values())
    panel.set_ylim(max(0.7, smallest / 1.7), largest * 1.7)
    panel.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    _label_ends(panel, ends)


def _label_ends(panel: Axes, ends: list[tuple[float, str, str]]) -> None:
    """The layers' names and final widths inside the upper right corner, wide to narrow, in their colours."""
    for row, (_, text, colour) in enumerate(sorted(ends, reverse=True, key=lambda end: end[0])):
        panel.annotate(text, (1.0, 1.0), xycoords="axes fraction", xytext=(-6, -14 - 14 * row),
                       textcoords="offset points", ha="right", fontsize=9, fontweight="bold", color=colour,
                       bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})  # fmt: skip


def _mean(values: Curve) -> Curve:
    """Mean over seeds [T, S] -> [T], of those that have a value; NaN where none has."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _per_seed(records: Sequence[Mapping[str, Any]], key: str) -> Curve | None:
    """float64[T, S] of a metric, NaN where a record lacks it; None where all do."""
    rows = [record.get(key) for record in records]
    seeds = max((len(row) for row in rows if isinstance(row, list)), default=0)
    if not seeds:
        return None
    return np.array([row if isinstance(row, list) else [math.nan] * seeds for row in rows], np.float64)


def _widths(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    names = dict.fromkeys(name for record in records for name in record.get("widths") or {})
    found = {name: _per_seed([record.get("widths") or {} for record in records], name) for name in names}
    return {name: kept for name, kept in found.items() if kept is not None}
