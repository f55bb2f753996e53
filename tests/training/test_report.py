from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from prune_rl.training.files import write_json
from prune_rl.training.metrics import MetricsLog
from prune_rl.training.plots import Marks, draw
from prune_rl.training.report import aggregate, paired_difference, target_widths, write_summary
from prune_rl.training.run_directory import RunDirectory

STEPS = 100_000


def policy(widths: list[int], returns: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A measured policy of 4 inputs, two hidden layers and 2 outputs, its sizes computed from its widths."""
    shape, wide = [4, *widths, 2], [4, 256, 256, 2]
    weights = sum((a + 1) * b for a, b in itertools.pairwise(shape))
    total = sum((a + 1) * b for a, b in itertools.pairwise(wide))
    return {
        "returns": [float(value) for value in returns],
        "lengths": [int(value) for value in returns],
        "widths": widths,
        "neurons": {"kept": sum(widths), "total": 512},
        "weights": {"kept": weights, "total": total},
        "macs": sum(a * b for a, b in itertools.pairwise(shape)),
        "bytes": 4 * weights,
        "latency_us": 6.25,
    }


def make_run(
    path: Path,
    seeds: int,
    *,
    first: int = 0,
    method: str = "dynamic",
    control: bool = True,
    episodes: int = 100,
    **prune: Any,
) -> Path:
    """A run directory as a training run leaves it, written through the same interfaces, with drawn numbers."""
    rng = np.random.default_rng(first)
    options = {
        "enabled": True,
        "sparsity": 0.975,
        "begin": 0.1,
        "end": 0.6,
        "min_width": 2,
        "scope": "layer",
    } | prune
    config = {
        "env": "CartPole-v1",
        "algo": "ppo",
        "method": method,
        "seed": first,
        "seeds": seeds,
        "steps": STEPS,
        "evaluation_seed": 1_000_000,
        "episodes": episodes,
        "learner": {"hidden": [256, 256], "prune": options},
        "command": f"prune-rl train CartPole-v1 --seeds {seeds} --no-control",
    }
    RunDirectory.open(path, config).close()
    log = MetricsLog(path / "metrics.jsonl")
    level = np.full(seeds, 20.0)
    for step in range(1000, STEPS + 1, 1000):
        progress = np.clip((step / STEPS - 0.1) / 0.5, 0, 1)
        share = 0.975 * (1 - (1 - progress) ** 3)
        level = level + 0.06 * (490 - 100 * (0.3 < progress < 0.9) - level) + rng.normal(0, 9, seeds)
        record: dict[str, Any] = {
            "return": level if step > 3000 else [math.nan] * seeds,
            "running_return": level,
        }
        if method != "dense":
            kept = np.ceil(256 * (1 - share))
            record["widths"] = {
                "actor/layer_0": np.full(seeds, kept),
                "actor/layer_1": np.minimum(256, kept + np.arange(seeds)),
            }
        log.write(step, record)
    log.close()
    entries = []
    for seed in range(first, first + seeds):
        dense = np.minimum(500, rng.normal(495, 9, episodes).round())
        small = np.minimum(500, dense - rng.integers(0, 12, episodes))
        policies = {
            "masked": policy([256, 256], small),
            "compact": policy([7, 7 + seed - first], small),
            "dense": policy([256, 256], dense),
        }
        if method == "dense":
            policies = {"dense": policies["dense"]}
        elif not control:
            del policies["dense"]
        entries.append({"seed": seed, "policies": policies})
    write_json(path / "evaluation.json", {"env_id": "CartPole-v1", "episodes": episodes, "seeds": entries})
    return path


def cells(text: str, start: str) -> list[str]:
    """The cells of the Markdown row that begins with `start`."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_summary_of_one_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    summary = write_summary(run)
    assert summary == run / "summary.md"
    text = summary.read_text()
    measured = json.loads((run / "evaluation.json").read_text())["seeds"][0]["policies"]
    assert cells(text, "  ")[1:] == ["dense control", "masked (wide)", "compact"]
    for column, name in enumerate(("dense", "masked", "compact"), start=1):
        returns = np.array(measured[name]["returns"])
        mean_row = cells(text, "return, mean ± std over 100 episodes")
        assert mean_row[column] == f"{returns.mean():.1f} ± {returns.std(ddof=1):.1f}"
        assert cells(text, "return, minimum")[column] == f"{returns.min():.1f}"
    assert cells(text, "hidden widths")[1:] == ["256·256", "256·256", "7·7"]
    assert cells(text, "neurons")[1:] == ["512", "512", "14 (97.3%)"]
    assert cells(text, "weights")[1:] == ["67,586", "67,586", "107 (99.8%)"]
    assert cells(text, "multiply-adds")[1:] == ["67,072", "67,072", "91"]
    assert cells(text, "bytes")[3] == "428"
    assert cells(text, "latency")[3] == "6.2"
    difference = np.subtract(measured["compact"]["returns"], measured["dense"]["returns"])
    assert cells(text, "return minus dense")[3].startswith(f"{difference.mean():+.1f} [-")
    assert "over episodes" in cells(text, "return minus dense")[0]
    assert "`prune-rl train CartPole-v1 --seeds 1 --no-control`" in text
    versions = json.loads((run / "versions.json").read_text())
    assert f"jax {versions['jax']}" in text
    assert versions["cpu"] in text
    assert "One training seed: the interval is over its episodes" in text
    assert "same return in all 100 episodes" in text
    assert "## Each seed" not in text
    assert "Su et al. 2024" in text
    assert "reached the target" not in text
    assert str(tmp_path) not in text


def test_summary_of_five_seeds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    text = write_summary(run).read_text()
    measured = [entry["policies"] for entry in json.loads((run / "evaluation.json").read_text())["seeds"]]
    means = np.array([np.mean(policies["compact"]["returns"]) for policies in measured])
    row = cells(text, "return, mean ± std over 5 seeds of 100 episodes each")
    assert row[3] == f"{means.mean():.1f} ± {means.std(ddof=1):.1f}"
    assert cells(text, "return, worst seed's mean")[3] == f"{means.min():.1f}"
    assert cells(text, "hidden widths")[3] == "7·7–11"
    assert "over seeds" in cells(text, "return minus dense")[0]
    assert cells(text, "4 ")[3:6] == ["7·11", "96.5%", "99.8%"]
    assert (
        len([line for line in text.splitlines() if line.startswith(tuple(f"| {n} " for n in range(5)))]) == 5
    )
    assert (
        "target of 7·7 neurons (seed 1 kept 7·8, seed 2 kept 7·9, seed 3 kept 7·10, seed 4 kept 7·11)" in text
    )
    assert "five seeds or more" not in text


def test_missing_control_names_the_command(tmp_path: Path) -> None:
    text = write_summary(make_run(tmp_path / "run", 2, control=False, episodes=20)).read_text()
    assert "No dense control was found" in text
    assert "`prune-rl train CartPole-v1 --seeds 2 --control` trains it" in text
    assert "Only 20 evaluation episodes" in text
    assert "Only 2 seeds" in text
    assert "minus dense" not in text


def test_dense_run(tmp_path: Path) -> None:
    text = write_summary(make_run(tmp_path / "run", 1, method="dense")).read_text()
    assert cells(text, "hidden widths")[1:] == ["256·256"]
    assert "No dense control" not in text
    assert "Su et al." not in text


def test_different_returns_of_masked_and_compact_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["seeds"][0]["policies"]["masked"]["returns"][3] += 1
    write_json(run / "evaluation.json", evaluation)
    assert "different returns in 1 of 100 episodes" in write_summary(run).read_text()


def test_unfinished_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    (run / "evaluation.json").unlink()
    text = write_summary(run).read_text()
    assert "not evaluated yet" in text
    assert (run / "summary.png").exists()
    (run / "metrics.jsonl").unlink()
    assert "There is no metrics.jsonl" in write_summary(run).read_text()
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing, so .* is no complete run directory"):
        write_summary(run)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        '{"seeds": [{"seed": 0}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": []}}}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": [NaN]}}}]}',
        '{"seeds": [{"seed": 0, "policies": {"compact": {"returns": [1.0]}}}]}',
    ],
)
def test_damaged_evaluation(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "run", 1)
    (run / "evaluation.json").write_text(damage)
    for report in (lambda: write_summary(run), lambda: aggregate([run])):
        with pytest.raises(ValueError, match=r"evaluation.json is damaged .* --write`"):
            report()


def test_targets() -> None:
    prune = {"enabled": True, "sparsity": 0.975, "min_width": 2}
    config: dict[str, Any] = {"method": "dynamic", "learner": {"hidden": [256, 64], "prune": prune}}
    assert target_widths(config) == [7, 2]
    prune["sparsity"] = 0.95
    config["learner"]["hidden"] = [20, 256]
    assert target_widths(config) == [2, 13]
    prune["sparsity"] = 0.9
    assert target_widths(config) == [2, 26]
    assert target_widths({**config, "method": "dense"}) == []
    assert target_widths({}) == []


@pytest.mark.parametrize("seeds", [1, 5])
def test_picture(tmp_path: Path, seeds: int) -> None:
    run = make_run(tmp_path / "run", seeds)
    write_summary(run)
    image = imread(io.BytesIO((run / "summary.png").read_bytes()))
    assert image.shape[0] > 900
    assert image.shape[1] > 1200
    # Blue return and vermilion width curves were really drawn.
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        distance = np.abs(image[..., :3] - np.array(colour) / 255).max(axis=-1)
        assert (distance < 0.02).sum() > 500


def test_pictures_of_odd_logs() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([], "empty", Marks())
    for records in (
        [{"step": 1}],
        [{"step": 1, "return": [math.nan]}, {"step": 2, "return": [math.nan]}],
        [{"step": 1, "return": [1.0, math.nan]}, {"step": 2, "widths": {"a": [1, 1]}}],
        [{"step": step, "return": [math.inf]} for step in range(5000)],
    ):
        assert draw(records, "odd $title_{", Marks(target_widths={"a": 1})).startswith(b"\x89PNG")


def test_paired_difference_of_seeds() -> None:
    rng = np.random.default_rng(0)
    shifts = [-3.0, -1.0, 0.0, 1.0, -2.0]
    pairs = []
    for shift in shifts:
        base = rng.normal(100, 50, 30)
        pairs.append(((base + shift).tolist(), base.tolist()))
    found = paired_difference(pairs)
    assert found.mean == pytest.approx(-1.0)
    assert (found.count, found.unit) == (5, "seeds")
    assert -3.0 <= found.low < -1.0 < found.high <= 1.0
    # Pairing matters: the interval is far narrower than the returns' own spread.
    assert found.high - found.low < 4
    assert found == paired_difference(pairs)


def test_paired_difference_of_episodes_covers_the_truth() -> None:
    """About 95 of 100 intervals over 40 episodes contain the true difference; 85 is beyond bad luck."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        base = rng.normal(0, 5, 40)
        found = paired_difference([((base + rng.normal(2, 1, 40)).tolist(), base.tolist())])
        covered += found.low <= 2 <= found.high
        assert found.unit == "episodes"
    assert 85 <= covered <= 99


def test_paired_difference_without_spread_or_pairs() -> None:
    same = paired_difference([([500.0] * 9, [500.0] * 9)])
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert str(paired_difference([([3.0], [1.0])])) == "+2.0 (one pair, no interval)"
    with pytest.raises(ValueError, match="at least one seed"):
        paired_difference([])
    with pytest.raises(ValueError, match="same episodes, got 2 and 1"):
        paired_difference([([1.0, 2.0], [1.0])])


def test_aggregate_joins_seeds_and_pairs_methods(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "small-0", 2, control=False),
        make_run(tmp_path / "small-2", 1, first=2, control=False),
        make_run(tmp_path / "dense", 3, method="dense", enabled=False, sparsity=0.5),
        make_run(tmp_path / "mild", 2, control=False, sparsity=0.5),
    ]
    text = aggregate([*runs, runs[0]])
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("| small-0 ")]) == 2
    over_seeds, differences = text.split("# Methods over seeds")[1].split("# Paired differences to dense")
    assert cells(over_seeds, "CartPole-v1 ppo dynamic, sparsity 0.975")[1] == "3"
    assert cells(over_seeds, "CartPole-v1 ppo dense")[1] == "3"
    evaluations = [json.loads((run / "evaluation.json").read_text())["seeds"] for run in runs]
    small = {e["seed"]: np.mean(e["policies"]["compact"]["returns"]) for e in evaluations[0] + evaluations[1]}
    dense = {e["seed"]: np.mean(e["policies"]["dense"]["returns"]) for e in evaluations[2]}
    expected = np.mean([small[seed] - dense[seed] for seed in range(3)])
    row = cells(differences, "CartPole-v1 ppo dynamic, sparsity 0.975")
    assert row[1] == "3"
    assert row[2].startswith(f"{expected:+.1f} [")
    assert row[3] == f"{1 + expected / np.mean(list(dense.values())):.1%}"
    assert cells(differences, "CartPole-v1 ppo dynamic, sparsity 0.5")[1] == "2"


def test_aggregate_without_a_fitting_control(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", 1, control=False)
    beside = make_run(tmp_path / "beside", 1, first=7)
    short = make_run(tmp_path / "short", 1, method="dense", episodes=50)
    assert "no dense run of the same task" in aggregate([alone, short])
    # A control that was measured beside the run serves where no dense run is given.
    assert "over episodes" in aggregate([beside])
    assert "Only dense runs were given." in aggregate([short])
    with pytest.raises(ValueError, match="at least one run"):
        aggregate([])
    twin = make_run(tmp_path / "twin", 1, control=False)
    with pytest.raises(ValueError, match="same configuration and seed"):
        aggregate([alone, twin])
