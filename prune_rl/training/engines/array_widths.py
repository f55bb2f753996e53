"""How wide the arrays of a pruned run are: when they get smaller, and what comes next.

A program is compiled for every set of shapes, so arrays take a few widths only, and get smaller only where the work
saved is worth a compilation. What is decided follows from the masks at fixed updates, so that a continued run repeats
it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.slices import axis_slices
from prune_rl.dependency.tree_paths import leaves_by_path
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import planned_widths

Widths = Mapping[str, int]

# The arrays can get smaller at this many points of a run, evenly spaced.
CHECKS = 256
# Multiplications that take as long as one compilation of an update, 8 to 12 s on two cores.
COMPILATION = 4e11
# And the share of the whole run's multiplications that a further compilation must save at least.
LEAST_SAVING = 0.005


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """Smaller arrays from ``update`` on: of ``widths``, {group name: neurons}."""

    update: int
    widths: dict[str, int]


def check_every(num_updates: int) -> int:
    """Updates between two points at which the arrays can get smaller."""
    return -(-num_updates // CHECKS)


def bucket(width: int) -> int:
    """The width of the arrays for ``width`` neurons: a multiple of 8 up to 32, above that a power of two.

    Other widths are not faster on a CPU: a gradient step with 17 takes longer than one with 24.
    """
    return max(8, -(-width // 8) * 8) if width <= 32 else 1 << (width - 1).bit_length()


def next_shrinking(
    config: LearnerConfig,
    groups: NeuronGroups,
    params: Any,
    kept: Widths,
    sizes: Widths,
    update: int,
    num_seeds: int,
) -> Shrinking | None:
    """The next time that the arrays get smaller in the cheapest course of the rest of the run; None: not any more.

    Cheapest in multiplications and compilations, if neurons go as the mask schedule allows. Where another rule holds
    them back, the answer at a later update is another one.

    Args:
        config: of a pruned run.
        groups: the groups that may be pruned, with their present sizes.
        params: of one seed; only shapes are used.
        kept: {group name: neurons left now}; of several seeds, the most.
        sizes: {group name: neurons before any pruning}.
        update: updates made, a point at which the arrays can get smaller, or the start of a run.
        num_seeds: seeds that are trained at once.
    """
    assert config.prune is not None
    every, end = check_every(config.num_updates), config.num_updates
    points = [*range(-(-update // every) * every, end, every)]
    present = {name: group.size for name, group in groups.items()}
    courses = []
    for point in points:
        planned = planned_widths(config, groups, sizes, point)
        left = {name: kept[name] if point == update else min(kept[name], planned[name]) for name in groups}
        courses.append({name: min(size, bucket(left[name])) for name, size in present.items()})
    # A forward and a backward pass: about three products with every weight for each sample.
    learning = 3.0 * config.gradient_samples * num_seeds
    # Where arrays can get smaller, neurons go, and distillation follows.
    own = 0.0 if config.rests else learning
    per_weight = own + 3.0 * config.distillation_samples * num_seeds
    work = [per_weight * touched_weights(groups, params, widths) for widths in courses]
    now = per_weight * touched_weights(groups, params, present)
    compilation = max(COMPILATION, LEAST_SAVING * end * learning * touched_weights(groups, params, sizes))
    if config.prune.shrink == "always":
        compilation = 1.0
    # cheapest[i]: the least work from points[i] on, in arrays that got smaller there; from the last point backwards.
    cheapest = [0.0] * len(points)

    def best(start: int, rate: float, first: int) -> tuple[float, int | None]:
        options = [(rate * (end - start), None)] + [
            (rate * (points[j] - start) + compilation + cheapest[j], j)
            for j in range(first, len(points))
            if work[j] < rate
        ]
        return min(options, key=lambda option: option[0])

    for i in reversed(range(len(points))):
        cheapest[i] = best(points[i], work[i], i + 1)[0]
    chosen = best(update, now, 0)[1]
    return None if chosen is None else Shrinking(points[chosen], courses[chosen])


def touched_weights(groups: NeuronGroups, params: Any, widths: Widths) -> int:
    """Entries of the leaves that have slices of the groups, if those had ``widths`` neurons."""
    leaves, total = leaves_by_path(params), 0
    for path, axes in axis_slices(groups).items():
        shape = list(np.shape(leaves[path]))
        for axis, pieces in axes.items():
            for group, piece in pieces:
                shape[axis] -= (group.size - widths[group.name]) * piece.indices(group.size).shape[1]
        total += math.prod(shape)
    return total
