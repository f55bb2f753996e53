"""Plot of a run: training return and kept neurons over environment steps."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = NDArray[np.float64]

# Okabe and Ito's palette: distinct under every common colour blindness, and in grey by their lightness.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
LAYER_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
GREY = "#6b6b6b"
MARGIN = 0.025  # of the steps: where, behind the last one, the evaluated policies are marked
POINTS = 1500  # more than the picture has pixels across; longer logs are thinned out


@dataclasses.dataclass(frozen=True)
class Marks:
    """Reference levels and spans beside the curves.

    Attributes:
      window: first and last environment step of the pruning schedule.
      window_name: its label.
      target_widths: neurons per layer at the end of the schedule, by group name.
      evaluated: mean return over evaluation episodes, per seed.
      evaluated_name: which policies were evaluated.
      control: the dense control's mean over evaluation episodes and seeds.
    """

    window: tuple[float, float] | None = None
    window_name: str = "pruning schedule"
    target_widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    evaluated: Sequence[float] = ()
    evaluated_name: str = "compact policy"
    control: float | None = None


def draw(records: Sequence[Mapping[str, Any]], title: str, marks: Marks) -> bytes:
    """A PNG of the run's curves.

    Args:
      records: lines of metrics.jsonl, at least one; "running_return" (else "return") [S] and "widths"
        {group: [S]} are drawn where present.
      title: printed above.
      marks: reference levels and spans.

    Raises:
      ValueError: there are no records.
    """
    # Imported here: it takes half a second, and most commands that import this module draw nothing.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

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
    axes[-1].set_xlim(0, steps[-1] * (1 + 1.5 * MARGIN))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_returns(panel: Axes, steps: Curve, returns: Curve | None, marks: Marks) -> None:
    panel.set_ylabel("return")
    if returns is None or np.all(np.isnan(returns)):
        panel.text(
            0.5, 0.5, "no training episode has ended", transform=panel.transAxes, ha="center", color=GREY
        )
    else:
        seeds = returns.shape[1]
        if seeds > 1:
            for index in range(seeds):
                label = f"{seeds} seeds" if index == 0 else None
                panel.plot(steps, returns[:, index], color=BLUE, linewidth=0.8, alpha=0.35, label=label)
        panel.plot(
            steps, _mean(returns), color=BLUE, linewidth=2.2, label=f"{'mean ' * (seeds > 1)}while training"
        )
    if marks.control is not None:
        panel.axhline(marks.control, color="#222222", linewidth=1.1, linestyle=(0, (5, 3)),
                      label="dense control, evaluated")  # fmt: skip
    if marks.evaluated:
        behind = [steps[-1] * (1 + MARGIN)]
        if len(marks.evaluated) > 1:
            panel.plot(behind * len(marks.evaluated), marks.evaluated, "D", color=ORANGE, markersize=3.5, alpha=0.8,
                       zorder=5)  # fmt: skip
        panel.plot(behind, [np.mean(marks.evaluated)], "D", color=ORANGE, markeredgecolor="black", markersize=7,
                   zorder=4, label=f"{marks.evaluated_name}, evaluated")  # fmt: skip
    if panel.get_legend_handles_labels()[0]:
        legend_above(panel, 4)


def _draw_widths(panel: Axes, steps: Curve, widths: dict[str, Curve], marks: Marks) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    panel.set_ylabel("kept neurons per layer")
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
        panel.plot([], [], color=colour, linewidth=2.2, linestyle=dashes, label=text)
    targets = sorted(set(marks.target_widths.values()))
    for target in targets:
        panel.axhline(target, color="#222222", linewidth=1.1, linestyle=(0, (2, 2)))
        panel.annotate(f"target: {target}", (0.0, target), xycoords=("axes fraction", "data"), xytext=(5, 4),
                       textcoords="offset points", fontsize=8.5)  # fmt: skip
    if marks.window is not None:
        # A late window is narrow, and the curves fall in it: its label is left of it, below them.
        late = marks.window[0] > 0.6 * float(steps[-1])
        panel.annotate(marks.window_name, (marks.window[0], 0.0 if late else 1.0), xycoords=("data", "axes fraction"),
                       xytext=(-5, 8) if late else (5, -12), ha="right" if late else "left",
                       textcoords="offset points", fontsize=8.5, color=GREY)  # fmt: skip
    smallest = min([*(float(np.nanmin(kept)) for kept in widths.values()), *targets])
    largest = max(float(np.nanmax(kept)) for kept in widths.values())
    if smallest >= 1:
        panel.set_yscale("log", base=2)
        panel.set_ylim(max(0.7, smallest / 1.7), largest * 1.7)
        panel.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    else:  # a logarithm that reaches 0, by a straight piece below 1
        panel.set_yscale("symlog", base=2, linthresh=1)
        panel.set_ylim(-0.5, largest * 1.7)
        panel.yaxis.set_major_locator(FixedLocator([0, *2.0 ** np.arange(np.log2(largest) + 1)]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    legend_above(panel, 3)


def legend_above(panel: Axes, columns: int) -> None:
    """The legend outside, where it covers no curve whatever its course."""
    panel.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2, frameon=False,
                 fontsize=8.5, handlelength=1.6, columnspacing=1.4)  # fmt: skip


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
