"""The schedule of mask updates: when they come due, and how many neurons may be gone after each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Share = float | jax.Array


def cubic_sparsity(progress: jax.Array | float, final: Share) -> jax.Array:
    """``s(p) = s_F (1 − (1 − p)³)`` with p clipped to [0, 1], float32[].

    References:
        Zhu and Gupta, `To prune, or not to prune <https://arxiv.org/abs/1710.01878>`_, 2017, section 3, with an initial
        sparsity of 0.
    """
    return polynomial_sparsity(progress, final, 3.0)


def polynomial_sparsity(progress: jax.Array | float, final: Share, power: float) -> jax.Array:
    """``s(p) = s_F (1 − (1 − p)^power)`` with p clipped to [0, 1], float32[]; ``s_F`` for p > 0 if it is infinite."""
    remaining = 1.0 - jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    # A product, where it can be: rounded alike with and without jit.
    exponent = int(power) if math.isfinite(power) and power == int(power) else power
    return jnp.asarray(final, jnp.float32) * (1.0 - remaining**exponent)


def num_removable(share: Share, size: int | jax.Array) -> jax.Array:
    """``⌊share · size⌋``, the neurons that a share of ``size`` neurons stands for: float32[], a whole number.

    Computed in integers, in units of 2⁻²⁴, for ``size`` below 2²⁴: a float32 product would be rounded, and differently
    with and without ``jit``. A small term covers the rounding of the share itself, so that 0.7 of 10 neurons is 7. 0
    for a share of NaN.
    """
    share = jnp.asarray(share, jnp.float32)
    units = jnp.round(share * 2.0**24).astype(jnp.uint32)
    size = jnp.asarray(size, jnp.uint32)
    count = 256 * jnp.maximum(1678, (3 * size + 3) // 4)  # 1e-4, or 3/4 of a unit per neuron
    for digit in (units & 255, (units >> 8) & 255, units >> 16):
        count = (count >> 8) + digit * size
    return jnp.where(jnp.isnan(share), 0.0, (count >> 8).astype(jnp.float32))


def target_width(size: int, sparsity: float, min_width: int) -> int:
    """Neurons left of ``size`` when a schedule that ends at ``sparsity`` is complete, as ``update_masks`` leaves
    them.
    """
    return size - min(int(num_removable(sparsity, size)), max(size - min_width, 0))


@dataclasses.dataclass(frozen=True)
class MaskSchedule:
    """Mask updates at the training updates ``first``, ``first + every``, …, ``number`` of them.

    The sparsity rises with the mask updates that were made, not with time: one that a closed gate held back does not
    count, so that a gated schedule may go on after its last regular update.

    Attributes:
        first: the training update, counted from 1, at which the first mask update is due.
        every: training updates between two mask updates.
        number: mask updates in the whole schedule; after these it is complete.
        power: of the polynomial that the sparsity follows, see ``polynomial_sparsity``.
    """

    first: int
    every: int
    number: int
    power: float = 3.0

    @classmethod
    def create(
        cls, total_updates: int, begin: float, end: float, every: int, power: float = 3.0
    ) -> MaskSchedule:
        """Mask updates at the multiples of ``every`` in [``begin`` T, ``end`` T] with T = ``total_updates``.

        If there is no multiple of ``every`` in this window, one mask update is due at its end.

        Raises:
            ValueError: ``total_updates`` or ``every`` is below 1, not 0 ≤ ``begin`` ≤ ``end`` ≤ 1, or ``power`` is not
                above 0.
        """
        if not power > 0.0:
            raise ValueError(f"power must be > 0, got {power}")
        if total_updates < 1 or every < 1:
            raise ValueError(f"total_updates and every must be >= 1, got {total_updates} and {every}")
        if not 0.0 <= begin <= end <= 1.0:
            raise ValueError(f"begin and end must satisfy 0 <= begin <= end <= 1, got {begin} and {end}")
        # A product such as 0.07 · 100 is a little more than 7 in float64.
        first = max(math.ceil(round(begin * total_updates / every, 6)), 1)
        last = math.floor(round(end * total_updates / every, 6))
        if last < first:
            return cls(max(math.ceil(round(end * total_updates, 6)), 1), every, 1, power)
        return cls(first * every, every, last - first + 1, power)

    @property
    def last(self) -> int:
        """The training update of the last mask update, if the gate was never closed."""
        return self.first + (self.number - 1) * self.every

    def due(self, count: jax.Array, *, gated: bool) -> jax.Array:
        """Whether a mask update is due after ``count`` (int32[]) training updates, as bool[].

        It depends on ``count`` alone, so that it can steer a ``lax.cond`` under ``vmap``. With a gate, updates stay due
        after ``last``, since some may have been held back.
        """
        on = self.in_step(count) & (count >= self.first)
        return on if gated else on & (count <= self.last)

    def in_step(self, count: jax.Array) -> jax.Array:
        """Whether a whole number of ``every`` updates lie between ``count`` (int32[]) and ``first``, as bool[]."""
        return (count - self.first) % self.every == 0

    @classmethod
    def covering(cls, schedules: Sequence[MaskSchedule]) -> MaskSchedule:
        """The schedule with a mask update wherever one of the given ones has its own, as sparse as possible."""
        first, last = (
            min(schedule.first for schedule in schedules),
            max(schedule.last for schedule in schedules),
        )
        starts = (schedule.first - first for schedule in schedules)
        spacings = (schedule.every for schedule in schedules if schedule.number > 1)
        every = math.gcd(*starts, *spacings) or schedules[0].every
        return cls(first, every, (last - first) // every + 1)

    def made_within(self, covering: MaskSchedule, made: int | jax.Array) -> Any:
        """How many of its mask updates this schedule has had after ``made`` of one that covers it."""
        now = covering.first + (made - 1) * covering.every
        return jnp.clip((now - self.first) // self.every + 1, 0, self.number)

    def made_before(self, count: jax.Array) -> jax.Array:
        """Mask updates before that of training update ``count`` (int32[]), if the gate was never closed."""
        return (count - self.first) // self.every

    def progress(self, made: jax.Array) -> jax.Array:
        """Share of the schedule that is done after ``made`` (int32[]) mask updates: float32[] in [0, 1]."""
        return jnp.minimum(made.astype(jnp.float32) / self.number, 1.0)

    def sparsity(self, progress: jax.Array | float, final: Share) -> jax.Array:
        """The share of a layer that may be gone at this progress, float32[]."""
        return polynomial_sparsity(progress, final, self.power)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When neurons go, as shares of training, and along which curve. Its constructors name the usual cases.

    Attributes:
        begin: share of training after which mask updates are due.
        end: share of training after which none is due any more.
        every: training updates between two mask updates.
        power: of the curve ``s(p) = s_F (1 − (1 − p)^power)``, p being the share of the mask updates that were made: 1
            removes the same number at each, 3 is the cubic schedule, infinity allows all at the first.

    Examples:
        >>> Schedule.polynomial(power=1).over(1000)
        MaskSchedule(first=100, every=100, number=6, power=1)
        >>> Schedule.one_shot(0.25).over(1000)
        MaskSchedule(first=250, every=1, number=1, power=3.0)
    """

    begin: float = 0.1
    end: float = 0.6
    every: int = 100
    power: float = 3.0

    @classmethod
    def one_shot(cls, at: float = 0.5) -> Schedule:
        """All at one mask update, after the share ``at`` of training."""
        return cls(at, at, 1)

    @classmethod
    def polynomial(
        cls, power: float = 3.0, *, begin: float = 0.1, end: float = 0.6, every: int = 100
    ) -> Schedule:
        """Along a polynomial of any power > 0 (Zhu and Gupta 2017: 3)."""
        return cls(begin, end, every, power)

    @classmethod
    def periodic(cls, every: int = 100, *, begin: float = 0.1, end: float = 0.6) -> Schedule:
        """The whole share may be gone from the first mask update on; what bounds each one is ``energy`` or the gate.

        Without such a bound, all go at the first one.
        """
        return cls(begin, end, every, math.inf)

    def over(self, total_updates: int) -> MaskSchedule:
        """The mask updates of a training of so many updates. Raises ``ValueError`` as ``MaskSchedule.create``."""
        return MaskSchedule.create(total_updates, self.begin, self.end, self.every, self.power)
