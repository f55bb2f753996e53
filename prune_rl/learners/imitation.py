"""What of a policy another one imitates, and how far it is from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.distributions import Categorical, Gaussian

Divergence = Callable[[jax.Array, jax.Array], jax.Array]
"""``divergence(outputs, others)`` of the policies with these outputs of the actor, float32[B, size]: float32[B]."""


def categorical_divergence(outputs: jax.Array, others: jax.Array) -> jax.Array:
    """KL(teacher ‖ student), float32[B], of logits float32[B, n]."""
    return Categorical(outputs).kl_divergence(Categorical(others))


def clipped_divergence(log_std: jax.Array, bounds: jax.Array) -> Divergence:
    """KL(teacher ‖ student) of means float32[B, size], of actions clipped to ``bounds`` float32[2, size].

    Both have the spread ``log_std`` float32[size]: one that learned here would grow where the student cannot follow.
    """
    return lambda outputs, others: Gaussian(outputs, log_std).clipped_kl_divergence(
        Gaussian(others, log_std), bounds
    )


def best_action_divergence(outputs: jax.Array, others: jax.Array) -> jax.Array:
    """Squared distance, float32[B], of the best actions tanh μ in [−1, 1]; ``outputs`` float32[B, 2 · size] are means
    and log standard deviations, of which the latter do not count.

    It is KL(teacher ‖ student) of normal distributions of variance ½ around the best actions.
    """
    action, other = (jnp.tanh(jnp.split(x, 2, axis=-1)[0]) for x in (outputs, others))
    return jnp.sum(jnp.square(action - other), axis=-1)


def without_spread(actor: Params) -> Params:
    """The actor with the same log standard deviation everywhere, so that no neuron is needed for it; same means."""
    last = {name: actor[name]["kernel"] for name in ("head", "skip") if name in actor}
    size = actor["head"]["bias"].shape[0] // 2
    return actor | {name: {**actor[name], "kernel": x.at[:, size:].set(0.0)} for name, x in last.items()}


class Imitated(NamedTuple):
    """What the student has of the teacher.

    Attributes:
        divergence: from the teacher's outputs to the student's.
        student_of: the params that the student starts with, of the teacher's, where the learner rests.
    """

    divergence: Divergence
    student_of: Callable[[Params], Params] = lambda teacher: teacher


CATEGORICAL = Imitated(categorical_divergence)
BEST_ACTION = Imitated(best_action_divergence, without_spread)
