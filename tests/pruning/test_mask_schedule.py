"""When mask updates are due, and how many neurons a share stands for, against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_rl.pruning.mask_schedule import MaskSchedule, num_removable, target_width
from prune_rl.pruning.ranking import update_masks

SHARES = [k / 1000 for k in range(1000)]


@pytest.mark.parametrize("size", [1, 7, 10, 64, 256, 1000, 4096, 100_000, 1_000_000])
def test_a_share_of_the_neurons_is_counted_exactly(size: int) -> None:
    expected = [math.floor(Fraction(str(share)) * size) for share in SHARES]
    np.testing.assert_array_equal(num_removable(jnp.asarray(SHARES, jnp.float32), size), expected)
    np.testing.assert_array_equal(
        jax.jit(num_removable, static_argnums=1)(jnp.asarray(SHARES), size), expected
    )


@pytest.mark.parametrize(
    ("size", "share", "floor"), [(100_000, 0.9, 1), (100_000, 0.7, 1), (64, 0.975, 2), (5, 0.9, 3)]
)
def test_the_target_width_is_what_the_masks_end_at(size: int, share: float, floor: int) -> None:
    masks = update_masks(
        {"a": jnp.ones(size, bool)}, {"a": jnp.arange(size, dtype=jnp.float32)}, share, min_width=floor
    )
    exact = size - min(math.floor(Fraction(str(share)) * size), size - floor)
    assert int(masks["a"].sum()) == target_width(size, share, floor) == exact


@given(
    total=st.integers(1, 400), every=st.integers(1, 60), begin=st.integers(0, 100), length=st.integers(0, 100)
)
def test_mask_updates_are_the_multiples_of_every_in_the_window(
    total: int, every: int, begin: int, length: int
) -> None:
    end = min(begin + length, 100)
    schedule = MaskSchedule.create(total, begin / 100, end / 100, every)
    window = range(max(-(-begin * total // 100), 1), end * total // 100 + 1)
    expected = [count for count in window if count % every == 0]
    # If there is none, one at the end of the window.
    expected = expected or [max(-(-end * total // 100), 1)]
    # Of one length for all examples, whose operations are compiled once.
    counts = jnp.arange(1, 401)
    due = np.asarray(schedule.due(counts, gated=False))[:total]
    assert (np.flatnonzero(due) + 1).tolist() == expected
    assert (schedule.number, schedule.last) == (len(expected), expected[-1])
    gated = np.asarray(schedule.due(counts, gated=True))[:total]
    later = range(expected[-1] + every, total + 1, every)
    assert (np.flatnonzero(gated) + 1).tolist() == [*expected, *later]


def test_progress_counts_mask_updates() -> None:
    schedule = MaskSchedule.create(100, 0.2, 0.5, 10)
    assert [float(schedule.progress(jnp.int32(made))) for made in range(6)] == [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0.1, 0.5, 1), "total_updates and every must be >= 1, got 0 and 1"),
        ((10, 0.1, 0.5, 0), "got 10 and 0"),
        ((10, 0.6, 0.5, 1), "begin <= end <= 1, got 0.6 and 0.5"),
        ((10, -0.1, 0.5, 1), "got -0.1"),
        ((10, 0.1, 1.5, 1), "got 0.1 and 1.5"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(arguments: tuple[int, float, float, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskSchedule.create(*arguments)


@given(
    total=st.integers(1, 200),
    every=st.integers(1, 30),
    windows=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted), min_size=1, max_size=3),
)
def test_a_schedule_that_covers_others_has_a_mask_update_at_each_of_theirs(
    total: int, every: int, windows: list[list[int]]
) -> None:
    schedules = [MaskSchedule.create(total, begin / 100, end / 100, every) for begin, end in windows]
    covering = MaskSchedule.covering(schedules)
    # Of one length for all examples, whose operations are compiled once.
    counts = jnp.arange(1, 201)
    due = np.asarray(covering.due(counts, gated=False))[:total]
    made = np.cumsum(due)
    np.testing.assert_array_equal(np.asarray(covering.made_before(counts))[:total][due], made[due] - 1)
    padded = jnp.asarray(np.pad(made, (0, 200 - total)))
    for schedule in schedules:
        mine = np.asarray(schedule.due(counts, gated=False))[:total]
        assert np.all(due[mine])
        within = np.asarray(schedule.made_within(covering, padded))[:total]
        np.testing.assert_array_equal(np.where(made > 0, within, 0), np.cumsum(mine))
    if len({(schedule.first, schedule.every, schedule.number) for schedule in schedules}) == 1:
        assert (covering.first, covering.number) == (schedules[0].first, schedules[0].number)
