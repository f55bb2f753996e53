"""Which policy of a frontier a run ships: the smallest that is good enough, or what somebody asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy

from prune_rl.reporting.statistics import mean
from prune_rl.runs.frontier import Point


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a policy is chosen by; exactly one field is set.

    Attributes:
        tolerance: the smallest whose mean return is at least ``reference − tolerance · |reference|``; the reference is
            the mean return of the dense control in the same episodes, or of the best of the frontier where there is no
            control.
        neurons: of those with at most so many hidden neurons, the one with the highest mean return.
        bytes: likewise, of at most so many bytes.
        least_return: the smallest whose mean return is at least this.
    """

    tolerance: float | None = None
    neurons: int | None = None
    bytes: int | None = None
    least_return: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one condition to choose by, --tolerance, --neurons, --bytes or --return; got {len(given)}"
            )


def choose(points: Sequence[Point], dense: Sequence[float] | None, wish: Wish, doubtful: int = 0) -> Point:
    """The point of one seed's frontier that a wish asks for.

    "Smallest" is by neurons, then weights; of equal ones the better, then the later. A point that has played at most
    ``doubtful`` episodes may miss the tolerance by one standard error: further episodes may show that it keeps it.

    Raises:
        ValueError: no point fits; the message says how near the nearest one comes.
    """
    if not points:
        raise ValueError(
            "this run kept no policies while it narrowed (--frontier 0), so there is none to choose"
        )
    returns = {id(point): mean(point["returns"]) for point in points}
    if wish.tolerance is not None or wish.least_return is not None:
        reference = dense or best_of(points)["returns"]
        least = {id(point): _least(point, reference, wish, doubtful) for point in points}
        good = [point for point in points if returns[id(point)] >= least[id(point)]]
        if not good:
            nearest = max(points, key=lambda p: returns[id(p)] - least[id(p)])
            raise ValueError(
                f"no policy of the frontier returns {least[id(nearest)]:.1f} or more, the best "
                f"{returns[id(nearest)]:.1f}"
            )
        return min(good, key=lambda p: (p["neurons"], p["weights"], -returns[id(p)], -p["step"]))
    name = "neurons" if wish.neurons is not None else "bytes"
    most = wish.neurons if wish.neurons is not None else wish.bytes
    small = [point for point in points if point[name] <= (most or 0)]
    if not small:
        raise ValueError(
            f"no policy of the frontier has {most} {name} or less, the smallest has "
            f"{min(point[name] for point in points)}"
        )
    return max(small, key=lambda p: (returns[id(p)], -p["neurons"], p["step"]))


def choose_within(
    points: Sequence[Point], dense: Sequence[float] | None, tolerance: float, doubtful: int = 0
) -> tuple[Point, str | None]:
    """The smallest point that keeps the tolerance, and None; ``doubtful``: see ``choose``.

    Where none keeps it of the dense control's return, the smallest that keeps it of the run's own best, and a sentence
    that says how near the nearest came: a wide policy that misses the control is no better than a narrow one that does.

    Raises:
        ValueError: there are no points.
    """
    wish = Wish(tolerance=tolerance)
    try:
        return choose(points, dense, wish, doubtful), None
    except ValueError as error:
        if not points:
            raise
        return choose(points, None, wish, doubtful), str(error)


def best_of(points: Sequence[Point]) -> Point:
    """The one with the highest mean return in all of its episodes.

    One that has played few may have been lucky in these; of one that was, further episodes show it.
    """
    return max(points, key=lambda point: mean(point["returns"]))


def _least(point: Point, reference: Sequence[float], wish: Wish, doubtful: int) -> float:
    """The mean return that a wish asks of a point; ``reference``: returns in the same order of episodes."""
    if wish.least_return is not None:
        return wish.least_return
    assert wish.tolerance is not None
    returns = point["returns"]
    level = mean(reference[: len(returns)])
    least = level - wish.tolerance * abs(level)
    if 1 < len(returns) <= doubtful:
        least -= float(scipy.stats.sem(np.subtract(returns, reference[: len(returns)])))
    return least
