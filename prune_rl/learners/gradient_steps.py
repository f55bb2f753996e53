"""Gradient steps that are made only where a learner learns, and many on random batches as one compiled loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
Drawn = TypeVar("Drawn")

# At most so many gradient steps have their batches and noise drawn in one go: drawn step by step, random numbers are a
# tenth of the time of training on a CPU; drawn all at once, the batches of a long rollout could fill the memory.
DRAWN_AHEAD = 64
# Two gradient steps per turn of the loop, which copies the parameters half as often: 7 % of the time on a CPU.
UNROLL = 2


def learn_unless(
    resting: jax.Array | bool, learn: Callable[[Carry], tuple[Carry, dict[str, jax.Array]]], carry: Carry
) -> tuple[Carry, dict[str, jax.Array]]:
    """``carry, metrics = learn(carry)``; where ``resting``, bool[], the carry as it is and metrics of 0.

    Nothing is computed there, unless ``resting`` is batched.
    """

    def rest(carry: Carry) -> tuple[Carry, dict[str, jax.Array]]:
        shapes = jax.eval_shape(learn, carry)[1]
        return carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    if resting is False:
        return learn(carry)
    result: tuple[Carry, dict[str, jax.Array]] = jax.lax.cond(resting, rest, learn, carry)
    return result


def many_gradient_steps(
    step: Callable[[Carry, Drawn], tuple[Carry, dict[str, jax.Array]]],
    carry: Carry,
    draw: Callable[[jax.Array], Drawn],
    key: jax.Array,
    count: int,
    resting: jax.Array,
) -> tuple[Carry, dict[str, jax.Array]]:
    """``count`` times ``carry, metrics = step(carry, draw(key_i))``, or nothing where ``resting``.

    Returns the carry and the mean metrics, 0 where nothing was learned, with "gradient_steps", int32[].

    Args:
        step: one gradient step.
        carry: networks and optimiser states.
        draw: what a step needs that is random, such as batch and noise, from a key; a pytree of arrays.
        key: split into one key per step.
        count: gradient steps, at least 1.
        resting: bool[], True during warm-up.
    """
    ahead = next(size for size in range(min(count, DRAWN_AHEAD), 0, -1) if count % size == 0)

    def steps(carry: Carry, keys: jax.Array) -> tuple[Carry, Any]:
        return jax.lax.scan(step, carry, jax.vmap(draw)(keys), unroll=math.gcd(UNROLL, ahead))

    def learn(carry: Carry) -> tuple[Carry, dict[str, jax.Array]]:
        carry, metrics = jax.lax.scan(steps, carry, jax.random.split(key, count).reshape(-1, ahead))
        return carry, {**jax.tree.map(jnp.mean, metrics), "gradient_steps": jnp.int32(count)}

    return learn_unless(resting, learn, carry)
