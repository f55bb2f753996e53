"""A threshold that follows how training goes: it rises while the return holds, waits, and takes removals back.

Neurons go in *trials*. After a removal, returns are averaged anew. When enough of them are known, the trial ends: the
return holds, and the threshold rises; or it does not come back in time, and the last good state returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.pruning.gate import NO_PERFORMANCE
from prune_rl.pruning.mask_schedule import Share

# Standard errors that noise explains: between the mean return of a trial and the reference that it sets, or misses. The
# two add up: a good policy whose mean is one above sets what a later one may miss by one.
MARGIN = 1.0
# Standard errors that the tolerance has to hold, for a short trial.
PRECISE = 2.0
# The share of a trial after which it can end, where noise is smaller than the tolerance.
SHORTEST = 0.25
# Forgetting per unit of weight of the variance of returns.
VARIANCE_DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """How the threshold moves.

    Attributes:
        tolerance: δ ≥ 0: the return holds if it is at least reference − δ |reference|, as far as noise lets one see.
        start: the threshold before the first removal: what goes at once holds at most this share of its layer's
            score.
        growth: the threshold grows by this factor at the end of a trial in which the return held. Its logarithm halves
            when a removal is taken back.
        backoff: the threshold shrinks by this factor when a removal is taken back.
        trial: weight of the returns (episodes, or calls that came with a performance) of a trial; a quarter of it is
            enough where 2 s ≤ δ |x̄|.
        patience: trials of that length until a removal is taken back.
        at_once: at most this share of the neurons that are left in a layer goes at once (at least one may).
    """

    tolerance: Share = 0.02
    start: float = 0.001
    growth: float = 2.0
    backoff: float = 0.25
    trial: float = 16.0
    patience: float = 5.0
    at_once: float = 0.5

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot work."""
        if isinstance(self.tolerance, int | float) and not 0.0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance must be a finite number >= 0, got {self.tolerance}")


class ThresholdState(NamedTuple):
    """What the threshold carries from one training update to the next; every leaf is an array.

    Attributes:
        threshold: float32[], τ.
        growth: float32[], its present factor.
        mean: float32[], x̄, the mean return of this trial.
        weight: float32[], Σ d w of this trial, with d < 1 for returns of some time ago.
        squares: float32[], Σ d² w of this trial: n = (Σ d w)² / Σ d² w episodes would know the mean as well.
        waited: float32[], Σ w of this trial, without forgetting.
        variance: float32[], σ², of a return of weight 1.
        reference: float32[], R, −inf before the first trial.
        noise: float32[], σ_R², the variance when R was set.
        on_trial: bool[], whether neurons went when this trial began.
        taken_back: int32[], how often a removal was taken back.
        good_masks: {group name: bool[size]}, of the last good state.
        good_params: params of the last good state; None for leaves that are not restored.
    """

    threshold: jax.Array
    growth: jax.Array
    mean: jax.Array
    weight: jax.Array
    squares: jax.Array
    waited: jax.Array
    variance: jax.Array
    reference: jax.Array
    noise: jax.Array
    on_trial: jax.Array
    taken_back: jax.Array
    good_masks: dict[str, jax.Array]
    good_params: Any


class Verdict(NamedTuple):
    """How a trial ends, bool[] each: the return holds, or fails to; neither: the trial goes on.

    ``rises``: it holds, and lies above the reference of before by more than the tolerance.
    """

    holds: jax.Array
    fails: jax.Array
    rises: jax.Array


def init_threshold(rules: DynamicThreshold, masks: Mapping[str, jax.Array], params: Any) -> ThresholdState:
    """The state before the first training update; ``params`` with None for leaves that are not to be restored."""
    # Arrays of their own, since a state that holds one twice cannot be donated.
    zero = functools.partial(jnp.zeros, (), jnp.float32)
    return ThresholdState(
        threshold=jnp.float32(rules.start),
        growth=jnp.float32(rules.growth),
        mean=zero(),
        weight=zero(),
        squares=zero(),
        waited=zero(),
        variance=zero(),
        reference=jnp.full((), NO_PERFORMANCE, jnp.float32),
        noise=zero(),
        on_trial=jnp.zeros((), bool),
        taken_back=jnp.zeros((), jnp.int32),
        good_masks=dict(masks),
        good_params=params,
    )


def observe(
    rules: DynamicThreshold, state: ThresholdState, performance: jax.Array, weight: jax.Array
) -> ThresholdState:
    """One more return, a mean over ``weight`` (float32[]) episodes; one that is not finite does not count."""
    known = jnp.isfinite(performance) & (weight > 0)
    x, w = jnp.where(known, performance, state.mean), jnp.where(known, weight, 0.0)
    # The squared deviation from the mean so far has the expectation σ² (1/w + 1/n).
    n = _num_episodes(state)
    sample = jnp.square(x - state.mean) / (1.0 / jnp.maximum(w, 1e-12) + 1.0 / jnp.maximum(n, 1e-12))
    keep = jnp.where(known & (n > 0), VARIANCE_DECAY**w, 1.0)
    first = state.variance == 0
    variance = jnp.where(first & (n > 0), sample, keep * state.variance + (1.0 - keep) * sample)
    decay = (1.0 - 0.5 / rules.trial) ** w
    total = decay * state.weight + w
    return state._replace(
        mean=state.mean + w / jnp.maximum(total, 1e-12) * (x - state.mean),
        weight=total,
        squares=jnp.square(decay) * state.squares + w,
        waited=state.waited + w,
        variance=jnp.where(known, variance, state.variance),
    )


def verdict(rules: DynamicThreshold, state: ThresholdState) -> tuple[ThresholdState, Verdict]:
    """Whether the return holds, with the reference that this trial may have raised.

    R ← max(R, x̄ − s) with s = σ / √n; it holds where x̄ + s_R ≥ R − δ |R|, with s_R = min(σ, σ_R) / √n: a policy
    that has become erratic is not excused by its own noise. A removal on trial does not set the first reference.
    """
    known = jnp.isfinite(state.reference)
    precise = PRECISE * _standard_error(state, state.variance) <= rules.tolerance * jnp.abs(state.mean)
    # The first trial finds out what noise there is.
    quick = precise & known & (state.waited >= SHORTEST * rules.trial)
    enough = quick | (state.waited >= rules.trial)
    higher = enough & (known | ~state.on_trial) & (_lower_bound(state) > state.reference)
    reference = jnp.where(higher, _lower_bound(state), state.reference)
    noise = jnp.where(higher, state.variance, state.noise)
    best = jnp.where(jnp.isfinite(reference), reference, 0.0)
    margin = MARGIN * _standard_error(state, jnp.minimum(state.variance, noise))
    holds = enough & jnp.isfinite(reference) & (state.mean + margin >= best - rules.tolerance * jnp.abs(best))
    fails = ~holds & (state.waited >= rules.patience * rules.trial)
    before = jnp.where(known, state.reference, best)
    rises = holds & (best > before + rules.tolerance * jnp.abs(before))
    return state._replace(reference=reference, noise=noise), Verdict(holds, fails, rises)


def new_trial(state: ThresholdState, on_trial: jax.Array | bool) -> ThresholdState:
    """The state in which nothing is known of the returns of this trial."""
    zero = jnp.zeros((), jnp.float32)
    return state._replace(mean=zero, weight=zero, squares=zero, waited=zero, on_trial=jnp.asarray(on_trial))


def forgotten(state: ThresholdState) -> ThresholdState:
    """The state in which no return is known, as after the network began to act in another way; a trial goes on."""
    zero = jnp.zeros((), jnp.float32)
    unknown = state._replace(reference=jnp.full((), NO_PERFORMANCE, jnp.float32), noise=zero, variance=zero)
    return new_trial(unknown, state.on_trial)


def raised(
    state: ThresholdState, masks: Mapping[str, jax.Array], params: Any, rises: jax.Array | bool = False
) -> ThresholdState:
    """After a trial in which the return held: the threshold rises, and ``masks`` and ``params`` are the good ones.

    Where the return still ``rises``, the threshold stays: there is more to learn before neurons go.
    """
    higher = jnp.minimum(state.threshold * state.growth, 1.0)
    return state._replace(
        threshold=jnp.where(rises, state.threshold, higher),
        good_masks=dict(masks),
        good_params=params,
    )


def taken_back(rules: DynamicThreshold, state: ThresholdState, untouched: jax.Array | bool) -> ThresholdState:
    """After a trial in which the return did not come back.

    Where there is nothing to take back, the reference may have been luck: it gives way by the tolerance, at most to
    what was measured. If the network is ``untouched``, bool[], no neuron has gone so far, it becomes what was measured:
    training got worse by itself.
    """
    measured = _lower_bound(state)
    lower = jnp.maximum(state.reference - rules.tolerance * jnp.abs(state.reference), measured)
    lower = jnp.where(untouched, measured, lower)
    return state._replace(
        threshold=jnp.where(state.on_trial, state.threshold * rules.backoff, state.threshold),
        growth=jnp.where(state.on_trial, jnp.sqrt(state.growth), state.growth),
        reference=jnp.where(state.on_trial, state.reference, lower),
        taken_back=state.taken_back + state.on_trial.astype(jnp.int32),
    )


def _num_episodes(state: ThresholdState) -> jax.Array:
    return jnp.square(state.weight) / jnp.maximum(state.squares, 1e-12)


def _lower_bound(state: ThresholdState) -> jax.Array:
    """x̄ − s: what the mean return of this trial is at least, as far as noise goes."""
    return state.mean - MARGIN * _standard_error(state, state.variance)


def _standard_error(state: ThresholdState, variance: jax.Array) -> jax.Array:
    """s, of the mean return of this trial, where one return has this variance."""
    return jnp.sqrt(variance / jnp.maximum(_num_episodes(state), 1.0))
