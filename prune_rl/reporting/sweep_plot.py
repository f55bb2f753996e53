"""The picture of a sweep: the return of every seed of every run, and interquartile means with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune_rl.reporting.plots import BLUE, GREY, VERMILION, legend_above

# Seeds of one run lie one below the other over this share of the distance between two runs.
SPREAD = 0.3


def draw_sweep(title: str, results: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one row per run, in order, so that names of any length find room beside it.

    Args:
        title: above the picture.
        results: as in sweep.json.
    """
    # Imported here: it takes half a second, and most commands that import this module draw nothing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 1.6 + 0.5 * len(results)), dpi=160, layout="constrained")
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#e4e4e4", linewidth=0.7)
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
        panel.scatter(returns, place + offsets, s=14, color=BLUE, alpha=0.5, label=label("a seed"))
        dense = [each["dense"] for each in seeds if "dense" in each]
        if dense:
            ends, level = [place - SPREAD, place + SPREAD], float(np.mean(dense))
            panel.plot([level, level], ends, color=GREY, label=label("dense control"))
        low, high = result["iqm_interval"] or (result["iqm"], result["iqm"])
        errors = [[result["iqm"] - low], [high - result["iqm"]]]
        # A percentile interval may miss the estimate by a rounding error.
        panel.errorbar(
            result["iqm"],
            place,
            xerr=np.maximum(errors, 0.0),
            color=VERMILION,
            marker="D",
            capsize=4,
            label=label("IQM, 95% interval"),
        )
    panel.set_yticks(range(len(results)), [result["name"] for result in results])
    panel.set_ylim(len(results) - 0.4, -0.6)  # the first run above
    panel.set_xlabel("return")
    legend_above(panel, 3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
