from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from prune_rl.reporting.plots import BLUE, ORANGE, VERMILION, Marks, _draw_widths, draw
from prune_rl.runs.logging import read_metrics
from tests.reporting.drawn_runs import make_run


def pixels(png: bytes, colour: str) -> int:
    """How many pixels of the picture have the colour."""
    image = imread(io.BytesIO(png))
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(image[..., :3] - wanted).max(axis=-1) < 0.02).sum())


@pytest.mark.parametrize("seeds", [1, 5])
def test_curves_and_marks_are_drawn(tmp_path: Path, seeds: int) -> None:
    records = read_metrics(make_run(tmp_path / "run", seeds) / "metrics.jsonl")
    bare = draw(records, "run", Marks())
    marked = draw(records, "run", Marks(evaluated=[490.0] * seeds, control=495.0))
    height, width = imread(io.BytesIO(bare)).shape[:2]
    assert height > 900
    assert width > 1200
    assert pixels(bare, BLUE) > 500
    assert pixels(bare, VERMILION) > 500
    assert pixels(bare, ORANGE) == 0
    # The diamond behind the last step, and the one in the legend, stay whole.
    assert pixels(marked, ORANGE) > 150


def test_many_seeds_layers_and_targets_fit() -> None:
    layers = [f"{network}/layer_{i}" for network in ("actor", "critic") for i in range(4)]
    records = [
        {"step": step, "running_return": [0.1 * step + seed for seed in range(20)],
         "widths": {name: [max(2, 256 - step // 4)] * 20 for name in layers}}
        for step in range(0, 1001, 10)
    ]  # fmt: skip
    marks = Marks(
        window=(100, 900), target_widths={"actor/layer_0": 7, "actor/layer_1": 2}, evaluated=[90.0] * 20
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where its layout leaves no room
        picture = draw(records, "many", marks)
    assert imread(io.BytesIO(picture)).shape[:2] == (992, 1280)


def test_the_narrowest_seed_stays_in_the_picture() -> None:
    steps, kept = np.array([0.0, 1.0, 2.0]), np.array([[256.0, 256.0], [3.0, 256.0], [11.0, 128.0]])
    panel = Figure().subplots()
    _draw_widths(panel, steps, {"actor/layer_0": kept}, Marks())
    low, high = panel.get_ylim()
    assert low < 3.0
    assert high > 256.0


def test_the_pruning_window_is_shaded(tmp_path: Path) -> None:
    records = read_metrics(make_run(tmp_path / "run", 1) / "metrics.jsonl")

    def shaded_columns(picture: bytes) -> int:
        """Columns of the picture's lower half that are light grey for a good part of their height."""
        image = imread(io.BytesIO(picture))[..., :3]
        lower = image[image.shape[0] // 2 :]
        grey = (np.ptp(lower, axis=-1) < 0.01) & (np.abs(lower.mean(-1) - 0.955) < 0.01)
        return int((grey.mean(axis=0) > 0.3).sum())

    assert shaded_columns(draw(records, "run", Marks())) == 0
    half, whole = (
        shaded_columns(
            draw(records, "run", Marks(window=(0, end), window_name="pruning schedule (configured)"))
        )
        for end in (50_000, 100_000)
    )
    assert half > 200
    assert whole == pytest.approx(2 * half, rel=0.05)


def test_odd_logs() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([], "empty", Marks())
    odd: list[list[dict[str, Any]]] = [
        [{"step": 1}],
        [{"step": 1, "return": [math.nan]}, {"step": 2, "return": [math.nan]}],
        [{"step": 1, "return": [1.0, math.nan]}, {"step": 2, "widths": {"a": [1, 1]}}],
        [{"step": step, "return": [math.inf]} for step in range(5000)],
    ]
    for records in odd:
        for marks in (Marks(target_widths={"a": 1}), Marks(evaluated=[3.0], control=2.0, window=(0, 1))):
            assert draw(records, "odd $title_{", marks).startswith(b"\x89PNG")
