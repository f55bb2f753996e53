from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.atomic_files import write_json
from prune_rl.reporting.compare_runs import aggregate
from tests.reporting.drawn_runs import cells, make_run, set_returns


def test_joins_seeds_and_pairs_methods(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "small-0", 2, control=False),
        make_run(tmp_path / "small-2", 1, first=2, control=False),
        make_run(tmp_path / "dense", 3, method="dense"),
        make_run(tmp_path / "mild", 2, control=False, sparsity=0.5),
    ]
    text = aggregate([*runs, runs[0]])
    each, over_seeds = text.split("# Methods over seeds")
    over_seeds, differences = over_seeds.split("# Difference to dense")
    assert len([line for line in each.splitlines() if line.startswith("| small-0 ")]) == 2
    small_name = "CartPole-v1 ppo dynamic, sparsity 0.975"
    assert cells(each, "small-2", small_name)[2] == "2"
    assert "over 100 evaluation episodes per seed" in each
    evaluations = [json.loads((run / "evaluation.json").read_text())["seeds"] for run in runs]
    small = {e["seed"]: np.mean(e["policies"]["compact"]["returns"]) for e in evaluations[0] + evaluations[1]}
    dense = {e["seed"]: np.mean(e["policies"]["dense"]["returns"]) for e in evaluations[2]}
    row = cells(over_seeds, small_name)
    means = np.array(list(small.values()))
    half = 4.3026527 * means.std(ddof=1) / 3**0.5  # t_{0.975, 2}
    assert row[1:5] == [
        "3",
        f"{means.mean():.1f}",
        f"[{means.mean() - half:.1f}, {means.mean() + half:.1f}]",
        f"{means.min():.1f}",
    ]
    assert row[5] == "97.2% (97.1%–97.3%)"
    assert cells(over_seeds, "CartPole-v1 ppo dense")[1] == "3"
    paired = np.array([small[seed] - dense[seed] for seed in range(3)])
    half = 4.3026527 * paired.std(ddof=1) / 3**0.5
    assert cells(differences, small_name)[1:] == [
        "3",
        f"{paired.mean():+.1f}",
        f"[{paired.mean() - half:+.1f}, {paired.mean() + half:+.1f}] over 3 seeds",
        f"{1 + paired.mean() / np.mean(list(dense.values())):.1%}",
    ]
    assert cells(differences, "CartPole-v1 ppo dynamic, sparsity 0.5")[1] == "2"
    assert "Student's t over the seeds' differences" in differences
    assert "bootstrap" not in text


def test_one_seed_is_a_bootstrap_over_episodes(tmp_path: Path) -> None:
    # A control that was measured beside the run serves where no dense run is given.
    text = aggregate([make_run(tmp_path / "beside", 1, first=7)])
    row = cells(text.split("# Difference to dense")[1], "CartPole-v1 ppo dynamic")
    assert row[3].endswith("over 100 episodes")
    assert "over the episodes of one seed is a percentile bootstrap" in text
    assert "Student's t over the seeds' differences" not in text
    assert (
        cells(text.split("# Methods over seeds")[1].split("# Difference")[0], "CartPole-v1 ppo dynamic")[3]
        == "-"
    )


def test_equal_returns_have_no_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    set_returns(run, 500.0)
    over_seeds, differences = aggregate([run]).split("# Methods over seeds")[1].split("# Difference to dense")
    assert cells(over_seeds, "CartPole-v1 ppo dynamic")[2:4] == ["500.0", "-"]
    row = cells(differences, "CartPole-v1 ppo dynamic")
    assert row[1:] == ["3", "0.0", "none, equal in all seeds", "100.0%"]


def test_without_a_fitting_control(tmp_path: Path) -> None:
    alone = make_run(tmp_path / "alone", 1, control=False)
    short = make_run(tmp_path / "short", 1, method="dense", episodes=50)
    other_seed = make_run(tmp_path / "other", 1, first=1, method="dense")
    for dense in (short, other_seed):
        assert "no dense run of the same task, seeds and episodes" in aggregate([alone, dense])
    assert "Only dense runs were given." in aggregate([short])


def change_config(run: Path, **changes: Any) -> Path:
    path = run / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)
    return run


def test_the_number_of_checkpoints_is_no_part_of_a_method(tmp_path: Path) -> None:
    runs = [
        change_config(
            make_run(tmp_path / f"run-{seed}", 1, first=seed), checkpoints=1 + 11 * seed, host_resets=1
        )
        for seed in range(2)
    ]
    over_seeds = aggregate(runs).split("# Methods over seeds")[1].split("# Difference")[0]
    assert cells(over_seeds, "CartPole-v1 ppo dynamic")[1] == "2"


def test_other_options_are_part_of_a_method_and_named(tmp_path: Path) -> None:
    runs = [
        change_config(make_run(tmp_path / f"resets-{number}", 1), host_resets=number, checkpoints=5)
        for number in (1, 12)
    ]
    shorter = make_run(tmp_path / "shorter", 1)
    learner = json.loads((shorter / "config.json").read_text())["learner"]
    change_config(shorter, host_resets=1, checkpoints=5, learner=learner | {"total_timesteps": 5000})
    over_seeds = aggregate([*runs, shorter]).split("# Methods over seeds")[1].split("# Difference")[0]
    for resets, steps in ((1, 100_000), (12, 100_000), (1, 5000)):
        name = f"CartPole-v1 ppo dynamic, host_resets {resets}, total_timesteps {steps}"
        assert cells(over_seeds, name)[1] == "1"


def test_runs_of_earlier_versions_are_the_same_method(tmp_path: Path) -> None:
    """Earlier versions kept the steps at the top level, and pruning options in dense runs."""
    for method, prune in (("dense", None), ("dynamic", {"sparsity": 0.975, "begin": 0.1, "end": 0.6})):
        new, old = (
            make_run(tmp_path / f"{method}-{seed}", 1, first=seed, method=method) for seed in range(2)
        )
        learner = {"hidden": [256, 256], "prune": prune}
        change_config(new, learner=learner | {"total_timesteps": 1000})
        earlier = {**(prune or {"sparsity": 0.5}), "enabled": True}
        change_config(old, steps=1000, learner=learner | {"total_updates": 7, "prune": earlier})
        over_seeds = aggregate([new, old]).split("# Methods over seeds")[1].split("# Difference")[0]
        assert cells(over_seeds, f"CartPole-v1 ppo {method}")[1] == "2"


def test_runs_that_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        aggregate([])
    alone, twin = (make_run(tmp_path / name, 1, control=False) for name in ("alone", "twin"))
    with pytest.raises(
        ValueError, match=r"alone and .*twin hold the same method and seed 0: give one of them"
    ):
        aggregate([alone, twin])
    with pytest.raises(ValueError, match="nowhere is not a run directory of prune-rl"):
        aggregate([alone, tmp_path / "nowhere"])
    (twin / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="the run has not been evaluated"):
        aggregate([alone, twin])
