"""Whole pruned runs against their dense twins, stacked by where the time went, from the runs' timing.json."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Row, Section
from experiments.benchmarks.turns import Spread

PARTS = ("stepping", "learning", "compiling", "checkpoints", "evaluation")
TOTAL = "total"


def read_timing(run: Path) -> dict[str, float]:
    """Seconds by part, and their total; raises ``SystemExit`` for a file that is missing or lacks a part."""
    path = run / "timing.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(data[name]) for name in (*PARTS, TOTAL)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path} cannot be used ({type(error).__name__}: {error}); it needs the seconds "
            f"{', '.join((*PARTS, TOTAL))}"
        ) from error


def pairs_of(runs: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """(pruned, dense) run directories, in the order given; raises ``SystemExit`` for an odd number."""
    if len(runs) % 2:
        raise SystemExit(f"--runs takes pairs, a pruned run and its dense twin, got {len(runs)} folders")
    return list(zip(runs[::2], runs[1::2], strict=True))


def label_of(run: Path) -> str:
    """Environment and learner, from the run's configuration; pairs with the same label are repeats."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return f"{config['env']}, {config['algo'].upper()}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{run} is not a run directory: {error}") from error


def measure(options: Options) -> list[Section]:
    """One section with a row per part; draws OUTPUT/whole_runs.png."""
    repeats: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = defaultdict(list)
    for pruned, dense in pairs_of(options.runs):
        repeats[label_of(pruned)].append((read_timing(pruned), read_timing(dense)))
    rows: list[Row] = []
    bars: dict[str, dict[str, float]] = {}
    for label, timings in repeats.items():
        for side, index in (("dense", 1), ("pruned", 0)):
            means = {
                part: sum(pair[index][part] for pair in timings) / len(timings) for part in (*PARTS, TOTAL)
            }
            bars[f"{label}, {side}"] = means
            for part in (TOTAL, *PARTS):
                ratios = [_ratio(pair[index][part], pair[1][part]) for pair in timings]
                known = [ratio for ratio in ratios if ratio is not None]
                ratio = Spread.of(known) if known else None
                name = f"{label}, {side}, {part}"
                rows.append(Row(name, means[part], f"{label}, dense, {part}", ratio, "time", len(timings)))
    draw(bars, options.output / "whole_runs.png")
    return [
        Section(
            key="runs",
            title="Whole runs",
            text="A pruned run against its dense twin, by where the time went; the mean over the pairs of runs. Ratio: "
            "time against the dense twin.\n\n![Where the time of whole runs went](whole_runs.png)",
            unit="s",
            rows=tuple(rows),
        )
    ]


def _ratio(seconds: float, dense: float) -> float | None:
    return seconds / dense if dense > 0 else None


def draw(bars: dict[str, dict[str, float]], path: Path) -> None:
    """Stacked horizontal bars, one per entry; what no part accounts for is "other"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(bars)
    left = [0.0] * len(names)
    for part in (*PARTS, "other"):
        if part == "other":
            widths = [max(0.0, bars[name][TOTAL] - math.fsum(bars[name][p] for p in PARTS)) for name in names]
        else:
            widths = [bars[name][part] for name in names]
        axes.barh(names, widths, left=left, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=120)
