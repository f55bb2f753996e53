from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prune_rl.atomic_files import write_json
from prune_rl.cli.train import parse_train
from prune_rl.reporting.run_summary import write_summary
from prune_rl.runs.faults_file import FAULTS_FILE, write_faults
from tests.reporting.drawn_runs import cells, make_run, set_returns


def test_summary_of_one_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    summary = write_summary(run)
    assert summary == run / "summary.md"
    text = summary.read_text()
    measured = json.loads((run / "evaluation.json").read_text())["seeds"][0]["policies"]
    assert text.startswith(
        "# CartPole-v1, PPO, dynamic pruning, seed 0\n\nThe compact policy keeps **14 of 512 "
    )
    assert cells(text, "")[1:] == ["dense control", "masked", "compact"]
    for column, name in enumerate(("dense", "masked", "compact"), start=1):
        returns = np.array(measured[name]["returns"])
        mean_row = cells(text, "return, mean ± std over 100 episodes")
        assert mean_row[column] == f"{returns.mean():.1f} ± {returns.std(ddof=1):.1f}"
        assert cells(text, "return, worst of all 100 episodes")[column] == f"{returns.min():.1f}"
    assert cells(text, "hidden widths")[1:] == ["256·256", "256·256", "7·7"]
    assert cells(text, "hidden neurons (removed)")[1:] == ["512", "512", "14 (97.3%)"]
    assert cells(text, "weights and biases (removed)")[1:] == ["67,586", "67,586", "107 (99.8%)"]
    assert cells(text, "multiply-adds per action")[1:] == ["67,072", "67,072", "91"]
    assert cells(text, "bytes, with observation statistics")[3] == "428"
    assert cells(text, "latency of one action in NumPy (µs)")[3] == "6.2"
    difference = np.subtract(measured["compact"]["returns"], measured["dense"]["returns"])
    row = cells(text, "paired difference to dense [95% bootstrap interval over 100 episodes]")
    assert row[3].startswith(f"{difference.mean():+.1f} [-")
    assert f"paired difference {row[3]} (95% bootstrap interval over 100 episodes)." in text
    assert "`prune-rl train CartPole-v1 --seeds 1 --no-control`" in text
    assert "- pruning: at most 97.5% of each hidden layer, schedule from 10% to 60% of the steps" in text
    assert "grey: the steps over which the pruning schedule ran, from 10,000 to 60,000." in text
    versions = json.loads((run / "versions.json").read_text())
    assert f"jax {versions['jax']}" in text
    assert versions["cpu"] in text
    assert "One training seed only, and the comparison is over its episodes" in text
    assert "same return in all 100 episodes" in text
    assert "## Each seed" not in text
    assert "Su et al. 2024" in text
    assert "reached the target" not in text
    assert str(tmp_path) not in text
    assert (run / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_summary_of_five_seeds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    text = write_summary(run).read_text()
    measured = [entry["policies"] for entry in json.loads((run / "evaluation.json").read_text())["seeds"]]
    means = np.array([np.mean(policies["compact"]["returns"]) for policies in measured])
    dense = np.array([np.mean(policies["dense"]["returns"]) for policies in measured])
    row = cells(text, "return, mean ± std over the means of 5 seeds")
    assert row[3] == f"{means.mean():.1f} ± {means.std(ddof=1):.1f}"
    assert cells(text, "return, worst seed's mean")[3] == f"{means.min():.1f}"
    assert "| return, worst of all 500 episodes" in text
    assert cells(text, "hidden widths")[3] == "7·7–11"
    half = 2.7764451 * (means - dense).std(ddof=1) / 5**0.5  # t_{0.975, 4}
    mean = (means - dense).mean()
    interval = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert cells(text, "paired difference to dense [95% t interval over 5 seeds]")[3] == interval
    assert f"returns **{means.mean():.1f}**, the dense control {dense.mean():.1f}; paired difference" in text
    assert "[95% bootstrap interval over episodes]" in text.split("## Each seed")[1]
    assert cells(text, "4")[3:6] == ["7·11", "96.5%", "99.8%"]
    assert (
        len([line for line in text.splitlines() if line.startswith(tuple(f"| {n} " for n in range(5)))]) == 5
    )
    missed = "target of 7·7 neurons (seed 1 kept 7·8, seed 2 kept 7·9, seed 3 kept 7·10, seed 4 kept 7·11)."
    assert missed in text
    assert "a claim needs" not in text


def test_a_missed_target_names_the_rules_that_were_on(tmp_path: Path) -> None:
    text = write_summary(make_run(tmp_path / "run", 2, gate=0.2, energy=None)).read_text()
    assert "(seed 1 kept 7·8): its gate rule limited what was removed." in text


def test_a_schedule_that_rested_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "late", 2, first=3, gate=0.2, pace=(1.0, 0.7))
    text = write_summary(run).read_text()
    assert "ran, from 10,000 to 60,000–82,000, depending on the seed." in text
    assert "schedule from 10% to 60% of the steps, without the updates in which the gate is closed" in text
    assert "not complete" not in text
    run = make_run(tmp_path / "never", 2, first=3, gate=0.2, pace=(1.0, 0.5))
    text = write_summary(run).read_text()
    assert "the pruning schedule of seed 4 was not complete at the end of the log." in text
    assert (
        "- The pruning schedule was not complete at the end of the log (seed 4 90.0% done). It does not advance while "
        "the gate is closed." in text
    )


@pytest.mark.parametrize("gate", [None, 0.2])
def test_a_log_without_progress_shows_the_configured_window(tmp_path: Path, gate: float | None) -> None:
    text = write_summary(make_run(tmp_path / "run", 1, pace=None, gate=gate)).read_text()
    assert (
        "grey: the steps over which the pruning schedule was configured to run; the log does not record"
        in text
    )
    prolonged = ", which the gate may have prolonged" if gate else ""
    assert f"the window shown is the configured one{prolonged}." in text


def test_neurons_ranked_over_all_layers_have_one_target(tmp_path: Path) -> None:
    text = write_summary(make_run(tmp_path / "run", 2, scope="global", sparsity=0.975)).read_text()
    # 0.975 of 512 neurons leave 13.
    assert "Not every seed reached the target of 13 neurons (seed 0 kept 7·7, seed 1 kept 7·8)." in text


def test_equal_returns_have_no_interval(tmp_path: Path) -> None:
    for seeds, unit in ((1, "episodes"), (3, "seeds")):
        run = make_run(tmp_path / unit, seeds)
        set_returns(run, 500.0)
        text = write_summary(run).read_text()
        assert cells(text, f"paired difference to dense, equal in all {unit}")[1:] == ["-", "0.0", "0.0"]
        assert "the dense control 500.0; paired difference 0.0." in text
        assert "interval" not in text


def test_missing_control_names_the_command(tmp_path: Path) -> None:
    text = write_summary(make_run(tmp_path / "run", 2, control=False, episodes=20)).read_text()
    assert "No dense control was found" in text
    assert "there is no dense control to compare it with" in text
    words = text.split("pruning costs: `")[1].split("`")[0].split()
    assert words == ["prune-rl", "train", "CartPole-v1", "--seeds", "2"]
    # The command line itself says that it trains the control.
    assert parse_train(words[2:])[1].control
    assert "Only 20 evaluation episodes" in text
    assert "Only 2 training seeds" in text
    assert "paired difference" not in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_dense_run(tmp_path: Path, seeds: int) -> None:
    text = write_summary(make_run(tmp_path / "run", seeds, method="dense")).read_text()
    assert text.startswith("# CartPole-v1, PPO, dense, nothing pruned, ")
    assert "Nothing was pruned." in text
    assert cells(text, "")[1:] == ["dense"]
    assert cells(text, "hidden widths")[1:] == ["256·256"]
    assert cells(text, "hidden neurons")[1:] == ["512"]
    if seeds > 1:
        assert len(cells(text, "0")) == 4  # seed, return, worst episode, widths
    for word in (
        "control",
        "removed",
        "compact",
        "masked",
        "difference",
        "comparison",
        "Su et al.",
        "- pruning",
    ):
        assert word not in text.replace("--no-control", ""), word


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
    with pytest.raises(ValueError, match=r"is not a run directory of prune-rl: it has no config.json"):
        write_summary(run)


def test_weights_beyond_reason_and_a_log_without_an_episode_are_remarked_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2, gate=0.1)
    text = write_summary(run).read_text()
    assert "Weights are larger" not in text
    assert "No training episode ended" not in text
    evaluation = json.loads((run / "evaluation.json").read_text())
    for entry, largest in zip(evaluation["seeds"], (3e14, 40.0), strict=True):
        for measured in entry["policies"].values():
            measured["largest_weight"] = largest if measured["widths"] == [256, 256] else 1.0
    write_json(run / "evaluation.json", evaluation)
    log = (run / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) | {"total_episodes": [0, 0]} for line in log]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_summary(run).read_text()
    assert "Weights are larger than training gives reason for (" in text
    assert "policy of seed 0 3e+14" in text
    assert "policy of seed 1" not in text
    assert "No training episode ended, so training has no return, and the gate had none to look at" in text


def test_a_seed_without_policy_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    write_faults(run, [{"seed": 3, "sentence": "X-v0 gave seed 3 NaN as reward"}])
    assert "**Seed 3 has no policy**: X-v0 gave seed 3 NaN as reward." in write_summary(run).read_text()
    write_faults(run, [])
    assert not (run / FAULTS_FILE).exists()
    assert "has no policy" not in write_summary(run).read_text()
    (run / FAULTS_FILE).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"faults\.json is damaged .* delete it"):
        write_summary(run)


def test_a_seed_that_does_not_keep_the_tolerance_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2, tolerance=0.1)
    points = [
        {"seed": seed, "step": 1, "widths": [4], "neurons": 4, "weights": 9, "bytes": 36, "returns": [value]}
        for seed, value in ((0, 91.0), (1, 80.0))
    ]
    points += [{**points[1], "step": 2, "neurons": 8, "returns": [85.0]}]
    data = {"env_id": "CartPole-v1", "episodes": 1, "seed": 7, "points": points, "chosen": {"0": 1, "1": 1}}
    write_json(run / "frontier.json", {**data, "dense": {"0": [100.0], "1": [100.0]}})
    text = write_summary(run).read_text()
    assert (
        "**Seed 1 does not keep the tolerance** of 10.0%: the best of its policies returns 85.0 in these episodes, "
        "the dense control 100.0. The smallest that keeps it of this best has 4 hidden neurons."
    ) in text
    assert "Seed 0 does not keep" not in text
    write_json(run / "frontier.json", {**data, "dense": {}})
    assert "does not keep the tolerance" not in write_summary(run).read_text()
