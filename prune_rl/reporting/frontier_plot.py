"""The picture of a frontier: return against hidden neurons."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from prune_rl.reporting.plots import BLUE, GREY, ORANGE
from prune_rl.reporting.statistics import bootstrap_interval, mean


def draw_frontier(data: Mapping[str, Any]) -> bytes:
    """A PNG of frontier.json: one line per training seed, with 95 % bootstrap intervals over episodes.

    Raises:
        ValueError: there is no point.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not data["points"]:
        raise ValueError("there is nothing to draw: the frontier has no point")
    figure = Figure(figsize=(8.0, 4.2), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    seeds = sorted({point["seed"] for point in data["points"]})
    largest = 1
    for index, seed in enumerate(seeds):
        points = sorted(
            (point for point in data["points"] if point["seed"] == seed),
            key=lambda p: (p["neurons"], p["step"]),
        )
        neurons = np.array([point["neurons"] for point in points], np.float64)
        means = np.array([mean(point["returns"]) for point in points])
        spans = [bootstrap_interval(np.asarray(point["returns"])) for point in points]
        errors = [
            (0.0, 0.0) if span is None else (centre - span[0], span[1] - centre)
            for span, centre in zip(spans, means, strict=True)
        ]
        alone = len(seeds) == 1
        label = ("return" if alone else f"{len(seeds)} seeds") if index == 0 else None
        panel.errorbar(
            neurons, means, yerr=np.array(errors).T, color=BLUE, alpha=1.0 if alone else 0.45, linewidth=1.4,
            elinewidth=0.8, marker="o", markersize=3.5, label=label,
        )  # fmt: skip
        chosen = data["chosen"].get(str(seed))
        for at, centre, point in zip(neurons, means, points, strict=True):
            if point["step"] == chosen:
                panel.plot([at], [centre], "D", color=ORANGE, markeredgecolor="black", markersize=7, zorder=5,
                           label="chosen" if index == 0 else None)  # fmt: skip
        largest = max(largest, int(neurons.max()))
    if data["dense"]:
        level = mean([mean(returns) for returns in data["dense"].values()])
        panel.axhline(level, color="#222222", linewidth=1.1, linestyle=(0, (5, 3)), label="dense control")
    # A logarithm that reaches 0, by a straight piece below 1.
    panel.set_xscale("symlog", base=2, linthresh=1)
    panel.set_xlim(-0.3, largest * 1.25)
    panel.xaxis.set_major_locator(FixedLocator([0, *2.0 ** np.arange(np.floor(np.log2(largest)) + 1)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("hidden neurons of the actor")
    panel.set_ylabel(f"return over {data['episodes']} episodes")
    panel.legend(loc="lower right", frameon=False, fontsize=8.5)
    figure.suptitle(
        f"{data['env_id']}: policies kept in one run", x=0.01, ha="left", fontsize=12, fontweight="bold"
    )
    figure.text(
        0.99, 0.985, "95 % bootstrap intervals over episodes", ha="right", va="top", fontsize=8, color=GREY
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
