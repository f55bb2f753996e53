from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_runs import make_run
from scipy import stats

from prune_rl.reporting.results import (
    Difference,
    bootstrap_interval,
    number,
    paired_difference,
    read_config,
    read_evaluation,
    removed,
    return_text,
    signed,
    t_interval,
    table,
    target_widths,
    widths_text,
)


def seeds_of(shifts: list[float], episodes: int = 30) -> list[tuple[list[float], list[float]]]:
    """Pairs of returns, one per seed, whose mean differences are `shifts`; what both share varies far more."""
    rng = np.random.default_rng(0)
    pairs = []
    for shift in shifts:
        base = rng.normal(100, 50, episodes)
        pairs.append(((base + shift).tolist(), base.tolist()))
    return pairs


# --- reading


def test_a_run_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    assert read_config(run)["seeds"] == 2
    evaluation = read_evaluation(run)
    assert [entry["seed"] for entry in evaluation["seeds"]] == [0, 1]
    assert set(evaluation["seeds"][0]["policies"]) == {"masked", "compact", "dense"}


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", 1)
    for path, reason in (
        (tmp_path / "nothing", "there is nothing of that name"),
        (run / "config.json", "it is a file"),
        (run / "tensorboard", "it has no config.json"),
        (tmp_path / "runs", r"it holds some; name those, as in .*runs/\*"),
    ):
        with pytest.raises(ValueError, match=f"^{path} is not a run directory of prune-rl: {reason}$"):
            read_config(path)
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged \(.*\): restore the file, or train again"):
        read_config(run)
    (run / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"has not been evaluated: measure it again with .* --write`"):
        read_evaluation(run)


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
    (tmp_path / "evaluation.json").write_text(damage)
    with pytest.raises(ValueError, match=r"evaluation.json is damaged .* --write`"):
        read_evaluation(tmp_path)


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


# --- differences


def test_difference_of_seeds_is_a_paired_t_interval() -> None:
    shifts = [-3.0, -1.0, 0.0, 1.0, -2.0]
    found = paired_difference(seeds_of(shifts))
    # By hand: mean -1, standard deviation sqrt(2.5), t_{0.975, 4} = 2.776.
    half = 2.7764451 * np.sqrt(2.5 / 5)
    assert found.mean == pytest.approx(-1.0)
    assert found.interval == pytest.approx((-1 - half, -1 + half))
    assert (found.count, found.unit) == (5, "seeds")
    assert found.interval_name == "95% t interval over 5 seeds"
    assert str(found) == "-1.0 [-3.0, +1.0]"
    # The same interval as scipy's paired t-test, which knows nothing of ours.
    left, right = (np.mean([pair[side] for pair in seeds_of(shifts)], axis=1) for side in (0, 1))
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(left, right).confidence_interval(0.95)))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_interval_over_few_seeds_covers_the_truth(seeds: int) -> None:
    """About 950 of 1000 intervals contain the true mean, where a percentile bootstrap has 760 to 900."""
    draws = np.random.default_rng(seeds).normal(2.0, 5.0, (1000, seeds))
    intervals = [t_interval(values) for values in draws]
    covered = sum(low <= 2.0 <= high for low, high in filter(None, intervals))
    assert 925 <= covered <= 975


def test_interval_over_episodes_covers_the_truth() -> None:
    """About 95 of 100 bootstraps over 60 episodes contain the true difference; 85 is beyond bad luck."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        start = rng.normal(scale=100.0, size=60)  # what both policies share
        found = paired_difference([((start + rng.normal(2, 1, 60)).tolist(), start.tolist())])
        assert found.interval is not None
        low, high = found.interval
        assert low < found.mean < high
        assert high - low < 1  # unpaired it would be 70
        covered += low <= 2 <= high
    assert 85 <= covered <= 99


def test_difference_of_one_seed_is_a_bootstrap_of_its_episodes() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.gamma(2.0, 50.0, size=(2, 100))
    found = paired_difference([(left.tolist(), right.tolist())])
    assert (found.count, found.unit) == (100, "episodes")
    assert found.interval_name == "95% bootstrap interval over 100 episodes"
    # Percentiles of resampled means, drawn here another way.
    means = np.sort((left - right)[rng.integers(100, size=(20_000, 100))].mean(axis=1))
    assert found.interval is not None
    width = found.interval[1] - found.interval[0]
    np.testing.assert_allclose(found.interval, (means[500], means[19_500]), atol=0.05 * width)
    assert found == paired_difference([(left.tolist(), right.tolist())])
    swapped = paired_difference([(right.tolist(), left.tolist())])
    assert swapped.mean == -found.mean
    np.testing.assert_allclose(swapped.interval, (-found.interval[1], -found.interval[0]), atol=0.05 * width)


def test_equal_differences_have_no_interval() -> None:
    same = ([500.0] * 9, [500.0] * 9)
    for pairs in ([same], [same] * 3):
        found = paired_difference(pairs)
        assert found.interval is None
        assert str(found) == "0.0"
    # Equal but for the last bits of the means.
    shifted = paired_difference(seeds_of([0.1] * 5))
    assert shifted.interval is None
    assert str(shifted) == "+0.1"
    assert str(paired_difference([([3.0], [1.0])])) == "+2.0"
    for interval in (t_interval, bootstrap_interval):
        assert interval(np.array([4.0])) is None
        assert interval(np.array([1.0, 1.001])) is not None


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        paired_difference([])
    for left, right in (([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match=f"same episodes, got {len(left)} and {len(right)}"):
            paired_difference([([1.0], [1.0]), (left, right)])


# --- numbers


def test_numbers() -> None:
    assert [signed(value) for value in (1.26, -0.04, 0.0, 0.04, -3.0)] == [
        "+1.3",
        "0.0",
        "0.0",
        "0.0",
        "-3.0",
    ]
    assert [number(value) for value in (67072, 14.5, float("nan"))] == ["67,072", "14.5", "?"]
    assert removed({"kept": 1, "total": 4}) == 0.75
    assert removed({"kept": 0, "total": 0}) == 0.0
    assert str(Difference(-1.94, (-11.4, 7.62), 3, "seeds")) == "-1.9 [-11.4, +7.6]"


def test_texts_of_policies() -> None:
    one, other = {"widths": [7, 8], "returns": [1.0, 3.0]}, {"widths": [7, 11], "returns": [4.0, 8.0]}
    assert widths_text([one]) == "7·8"
    assert widths_text([one, other]) == "7·8–11"
    assert return_text([one]) == "2.0 ± 1.4"
    assert return_text([one, other]) == "4.0 ± 2.8"  # of the means 2 and 6
    assert return_text([{"returns": [5.0]}]) == "5.0 ± 0.0"


def test_table_lines_up() -> None:
    text = table(
        ["run", "method", "return"], [["a|b", "dense", "1.0"], ["c", "dynamic", "100.0"]], text_columns=2
    )
    lines = text.splitlines()
    assert lines == [
        "| run  | method  | return |",
        "| ---- | ------- | -----: |",
        "| a\\|b | dense   |    1.0 |",
        "| c    | dynamic |  100.0 |",
    ]
    assert all(len(left) == len(right) for left, right in itertools.pairwise(lines))
