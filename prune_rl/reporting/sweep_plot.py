"""The picture of a sweep: the return of every seed of every run, and interquartile means with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.reporting.plots import BLUE, GREY, VERMILION, legend_above

# Seeds of one run lie side by side over this share of the distance between two runs.
SPREAD = 0.3


def draw_sweep(title: str, results: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one place per run, in order.

    Args:
        title: above the picture.
        results: as in sweep.json.
    """
    # Imported here: it takes half a second, and most commands that import this module draw nothing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 2.0 + 1.1 * len(results)), 4.2), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    named: set[str] = set()

    def label(text: str) -> str | None:
        first = text not in named
        named.add(text)
        return text if first else None

    for place, result in enumerate(results):
        seeds = list(result["seeds"].values())
        if not seeds:
            continue
        offsets = np.linspace(-SPREAD, SPREAD, len(seeds)) if len(seeds) > 1 else np.zeros(1)
        returns = [each["return"] for each in seeds]
        panel.scatter(place + offsets, returns, s=14, color=BLUE, alpha=0.5, label=label("a seed"))
        dense = [each["dense"] for each in seeds if "dense" in each]
        if dense:
            ends, level = [place - SPREAD, place + SPREAD], float(np.mean(dense))
            panel.plot(ends, [level, level], color=GREY, label=label("dense control"))
        low, high = result["iqm_interval"] or (result["iqm"], result["iqm"])
        errors = [[result["iqm"] - low], [high - result["iqm"]]]
        # A percentile interval may miss the estimate by a rounding error.
        panel.errorbar(
            place,
            result["iqm"],
            yerr=np.maximum(errors, 0.0),
            color=VERMILION,
            marker="D",
            capsize=4,
            label=label("IQM, 95% interval"),
        )
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    names = [result["name"].replace(",", "\n") for result in results]
    panel.set_xticks(range(len(results)), names, **(turned if len(results) > 4 else {}))
    panel.set_xlim(-0.6, len(results) - 0.4)
    panel.set_ylabel("return")
    legend_above(panel, 3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
