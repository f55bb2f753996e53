"""Means, interquartile means, paired differences and their 95% intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from prune_rl.runs.evaluation_file import Entries

CONFIDENCE = 0.95
RESAMPLES = 9999

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
      mean: over `count` seeds or episodes.
      interval: its 95% confidence interval, None where there is none.
      count: how many differences were averaged.
      unit: what was averaged over.
    """

    mean: float
    interval: Interval | None
    count: int
    unit: Literal["seeds", "episodes"]

    @property
    def interval_name(self) -> str:
        """The kind of the interval, for a table's head."""
        kind = "t" if self.unit == "seeds" else "bootstrap"
        return f"{CONFIDENCE:.0%} {kind} interval over {self.count} {self.unit}"


def mean(values: Sequence[float]) -> float:
    """Mean in float64."""
    return float(np.mean(np.asarray(values, np.float64)))


def paired_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Difference of mean return between two policies, with a 95% interval.

    With several seeds, the interval is Student's t over the seeds' mean differences; it generalises over training
    runs. With one seed, it is a bootstrap over episodes, and holds for these two trained policies only. There is no
    interval for a single value, or for values that are all equal.

    Args:
      pairs: (returns, returns of the control) per training seed, over the same episodes.

    Raises:
      ValueError: there are no pairs, or the two policies of a seed played different numbers of episodes.
    """
    if not pairs:
        raise ValueError("a paired difference needs at least one seed measured with both policies")
    for left, right in pairs:
        if len(left) != len(right) or not len(left):
            raise ValueError(f"paired policies must play the same episodes, got {len(left)} and {len(right)}")
    each = [np.subtract(left, right, dtype=np.float64) for left, right in pairs]
    if len(each) > 1:
        values = np.array([np.mean(differences) for differences in each])
        return Difference(float(np.mean(values)), t_interval(values), len(values), "seeds")
    return Difference(float(np.mean(each[0])), bootstrap_interval(each[0]), len(each[0]), "episodes")


def difference_to_dense(seeds: Entries, name: str) -> Difference | None:
    """Paired difference of the policy `name` to the dense control, over the seeds that have both; None if none has."""
    both = [entry["policies"] for entry in seeds if {name, "dense"} <= set(entry["policies"])]
    pairs = [(policies[name]["returns"], policies["dense"]["returns"]) for policies in both]
    usable = [pair for pair in pairs if len(pair[0]) == len(pair[1])]
    return paired_difference(usable) if usable else None


def t_interval(values: NDArray[np.float64]) -> Interval | None:
    """Student's t interval of the mean of `values` [n]; None for fewer than two values, or equal ones.

    Exact for normal values at any n. The percentile bootstrap is not: its 95% intervals cover the mean of 3 normal
    values in 76% of cases, of 5 in 85%, of 10 in 90%.
    """
    if _without_spread(values):
        return None
    low, high = scipy.stats.t.interval(
        CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    return float(low), float(high)


def bootstrap_interval(values: NDArray[np.float64]) -> Interval | None:
    """Percentile bootstrap of the mean of `values` [n]; None for fewer than two values, or equal ones.

    Deterministic: the same values give the same interval. Suited to about 30 values or more of any distribution.

    References:
      Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3
    """
    return _percentile_interval([values], np.mean)


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Mean of the middle half of `values` [n]: a quarter is left out at either end, rounded down.

    References:
      Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021, section 4.3
    """
    return float(scipy.stats.trim_mean(values, 0.25))


def interquartile_interval(strata: Sequence[NDArray[np.float64]]) -> Interval | None:
    """Percentile interval of the interquartile mean of all values, by a stratified bootstrap.

    Args:
      strata: values [n] of each, such as one per training seed; each is resampled by itself.

    Returns:
      Deterministic: the same values give the same interval. None for fewer than two values, or equal ones.
    """

    def statistic(*resampled: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        trimmed: NDArray[np.float64] = scipy.stats.trim_mean(np.concatenate(resampled, axis), 0.25, axis=axis)
        return trimmed

    return _percentile_interval(strata, statistic)


def _percentile_interval(
    samples: Sequence[NDArray[np.float64]], statistic: Callable[..., Any]
) -> Interval | None:
    """The bootstrap's interval of ``statistic``; each sample [n] is resampled by itself, always in the same way."""
    if _without_spread(np.concatenate(samples)):
        return None
    found = scipy.stats.bootstrap(
        tuple(samples),
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // sum(map(len, samples))),  # bounds the memory
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _without_spread(values: NDArray[np.float64]) -> bool:
    # Equal up to rounding: means of equal differences may differ in their last bits.
    return len(values) < 2 or bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.max(np.abs(values)))))
