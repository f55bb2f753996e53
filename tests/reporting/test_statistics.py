from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prune_rl.reporting.statistics import (
    bootstrap_interval,
    interquartile_interval,
    interquartile_mean,
    paired_difference,
    t_interval,
)
from prune_rl.reporting.tables import difference_text


def seeds_of(shifts: list[float], episodes: int = 30) -> list[tuple[list[float], list[float]]]:
    """Pairs of returns, one per seed, whose mean differences are `shifts`; what both share varies far more."""
    rng = np.random.default_rng(0)
    pairs = []
    for shift in shifts:
        base = rng.normal(100, 50, episodes)
        pairs.append(((base + shift).tolist(), base.tolist()))
    return pairs


def test_difference_of_seeds_is_a_paired_t_interval() -> None:
    shifts = [-3.0, -1.0, 0.0, 1.0, -2.0]
    found = paired_difference(seeds_of(shifts))
    # By hand: mean -1, standard deviation sqrt(2.5), t_{0.975, 4} = 2.776.
    half = 2.7764451 * np.sqrt(2.5 / 5)
    assert found.mean == pytest.approx(-1.0)
    assert found.interval == pytest.approx((-1 - half, -1 + half))
    assert (found.count, found.unit) == (5, "seeds")
    assert found.interval_name == "95% t interval over 5 seeds"
    assert difference_text(found) == "-1.0 [-3.0, +1.0]"
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
    assert swapped.interval is not None
    np.testing.assert_allclose(swapped.interval, (-found.interval[1], -found.interval[0]), atol=0.05 * width)


def test_equal_differences_have_no_interval() -> None:
    same = ([500.0] * 9, [500.0] * 9)
    for pairs in ([same], [same] * 3):
        found = paired_difference(pairs)
        assert found.interval is None
        assert difference_text(found) == "0.0"
    # Equal but for the last bits of the means.
    shifted = paired_difference(seeds_of([0.1] * 5))
    assert shifted.interval is None
    assert difference_text(shifted) == "+0.1"
    assert difference_text(paired_difference([([3.0], [1.0])])) == "+2.0"
    for interval in (t_interval, bootstrap_interval):
        assert interval(np.array([4.0])) is None
        assert interval(np.array([1.0, 1.001])) is not None


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        paired_difference([])
    for left, right in (([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match=f"same episodes, got {len(left)} and {len(right)}"):
            paired_difference([([1.0], [1.0]), (left, right)])


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert interquartile_mean(np.array([1.0, 2.0, 4.0, 1000.0])) == 3.0
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0, "the mean of fewer than four"


def test_the_interval_of_an_interquartile_mean_covers_the_truth() -> None:
    """Of normal values the interquartile mean is the mean, whatever the outliers."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        values = rng.normal(3.0, 2.0, 40)
        values[0] = 1e6
        low, high = interquartile_interval([values]) or (np.nan, np.nan)
        assert low < interquartile_mean(values) < high
        covered += low <= 3.0 <= high
    assert covered >= 52  # 57 of 60 are expected; fewer than 52 in 2 % of such tests


def test_strata_are_resampled_by_themselves() -> None:
    """Two strata without spread of their own have none together, however far apart; one sample of all has."""
    low, high = np.zeros(8), np.full(8, 10.0)
    assert interquartile_interval([low, high]) == (5.0, 5.0)
    mixed = interquartile_interval([np.concatenate([low, high])])
    assert mixed is not None
    assert mixed[0] < 4.0
    assert mixed[1] > 6.0
    assert interquartile_interval([low]) is None
