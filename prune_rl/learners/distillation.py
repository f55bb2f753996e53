"""Distillation of the policy that a run had before its first neuron went, on the states that the narrower one visits.

Its actor is the teacher. Rollouts are stored with the teacher's outputs, and gradient steps on them bring the narrower
policy back to the teacher's. Learning from states of the student with outputs of the teacher is dataset aggregation.

References:
    Ross, Gordon and Bagnell, `A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning
    <https://arxiv.org/abs/1011.0686>`_, 2011, algorithm 3.1

    Rusu et al., `Policy Distillation <https://arxiv.org/abs/1511.06295>`_, 2016, section 3.2
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from prune_rl.dependency.tree_paths import Params
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.imitation import Divergence, Imitated
from prune_rl.learners.mask_rules import mask_schedules, rest_begins
from prune_rl.learners.networks import apply_mlp
from prune_rl.learners.running_statistics import RunningStatistics, normalize
from prune_rl.pruning.dynamic_threshold import ThresholdState
from prune_rl.pruning.rules import PruningState

# Environment steps from one distillation to the next, at least: the gradient steps of each start from fresh moments.
STEPS_APART = 1024
# The last step size of a distillation, as a share of its first.
LAST_STEP_SIZE = 0.05
# Divergences from the teacher, in nats; one update of PPO takes a policy about 0.01 away. Up to the first a
# removal on trial waits for no returns (experiments/results/narrowing-pilots.md, "How near is near enough"); below the
# second there is nothing more to learn.
SAME = 1e-1
ENOUGH = 1e-3
# Where the learner rests: distillations after which a removal that changed the policy by more than ``SAME`` is taken
# back, unless its returns hold.
ROUNDS = 12
# Where the learner rests, the teacher is the mean of about so many updates' params.
AVERAGED = 64
# Where the learner rests, layers that are wider make fewer steps: each costs more, and imitation goes on anyway.
WIDE = 32


@struct.dataclass
class Distillation:
    """The teacher, and the rollouts that it labelled; every leaf is an array.

    Attributes:
        teacher: params of its actor, of the widths at the start of training.
        obs_stats: its statistics of observations.
        obs: float32[R, B, D], the observations of the last R rollouts, as the environment gave them.
        outputs: float32[R, B, size], the outputs of the teacher's network there.
        stored: int32[], rollouts stored so far.
        rounds: int32[], distillations since neurons went last.
    """

    teacher: Params
    obs_stats: RunningStatistics
    obs: jax.Array
    outputs: jax.Array
    stored: jax.Array
    rounds: jax.Array


def init_distillation(
    actor: Params, obs_stats: RunningStatistics, config: LearnerConfig
) -> Distillation | None:
    """No rollout is stored; None where nothing is distilled: in a dense run, and where neurons go by a schedule."""
    prune = config.prune
    if prune is None or not config.distills:
        return None
    # Copies, since a state that holds an array twice cannot be donated.
    teacher, stats = jax.tree.map(jnp.copy, (actor, obs_stats))
    (obs_size,), (size,) = obs_stats.mean.shape, actor["head"]["bias"].shape
    # At least what follows a distillation. The shape does not depend on the length of training, which may be extended.
    rollouts = max(prune.distill_buffer // config.steps_per_update, updates_apart(config))
    shape = (rollouts, config.steps_per_update)
    obs, outputs = jnp.zeros((*shape, obs_size), jnp.float32), jnp.zeros((*shape, size), jnp.float32)
    zero = functools.partial(jnp.zeros, (), jnp.int32)
    return Distillation(teacher, stats, obs, outputs, zero(), zero())


def updates_apart(config: LearnerConfig) -> int:
    """Updates from one distillation to the next."""
    return -(-STEPS_APART // config.steps_per_update)


def watch(
    state: Distillation | None,
    pruning: PruningState,
    actor: Params,
    obs_stats: RunningStatistics,
    obs: jax.Array,
    step: jax.Array,
    config: LearnerConfig,
) -> Distillation | None:
    """Store a rollout's observations [T, N, D] in place of the oldest. For the state before a mask update.

    After ``step`` updates, int32[]. Until neurons may go, and until the first one does where the learner does not rest,
    ``actor`` is the teacher. Where it rests, the mean of the last ones is: they differ by the noise of the updates, and
    there is one moment at which the teacher is taken. A run that was extended learns once more with the neurons that
    are left, and its teacher is the last actor.
    """
    if state is None:
        return None
    untouched, first = pruning.updates == 0, mask_schedules(config)["actor"].first
    share = jnp.where(untouched, 1.0 / jnp.minimum(state.stored + 1, AVERAGED), 1.0) if config.rests else 1.0
    mean = jax.tree.map(
        lambda new, old: ((1.0 - share) * old + share * _padded(new, old.shape)).astype(old.dtype),
        actor,
        state.teacher,
    )
    taught = (step <= first) | (untouched & (not config.rests))
    teacher, stats = jax.tree.map(
        lambda new, old: jnp.where(taught, new, old), (mean, obs_stats), (state.teacher, state.obs_stats)
    )
    i, obs = state.stored % state.obs.shape[0], obs.reshape(state.obs.shape[1:]).astype(jnp.float32)
    outputs = _outputs(teacher, stats, obs, config)
    obs, outputs = state.obs.at[i].set(obs), state.outputs.at[i].set(outputs)
    return Distillation(teacher, stats, obs, outputs, state.stored + 1, state.rounds)


def student(
    state: Distillation | None, actor: Params, step: jax.Array, config: LearnerConfig, imitated: Imitated
) -> Params:
    """The actor after ``step`` updates: made of the teacher if the learner rests from now on, else ``actor``."""
    if state is None or not config.rests:
        return actor
    same_shape = jax.tree.map(jnp.shape, actor) == jax.tree.map(jnp.shape, state.teacher)
    begun = imitated.student_of(state.teacher if same_shape else actor)  # the same function, see `watch`
    begins = rest_begins(step, config)
    return jax.tree.map(lambda new, old: jnp.where(begins, new, old), begun, actor)


def settle_teacher(
    state: Distillation | None,
    before: PruningState,
    after: PruningState,
    step: jax.Array,
    config: LearnerConfig,
) -> Distillation | None:
    """After a mask update: a teacher that stays labels all that is stored anew; rounds count from the last removal."""
    if state is None:
        return None
    settled = (step == mask_schedules(config)["actor"].first) | ((before.updates == 0) & (after.updates > 0))

    def label(i: jax.Array, outputs: jax.Array) -> jax.Array:
        return outputs.at[i].set(_outputs(state.teacher, state.obs_stats, state.obs[i], config))

    # A loop, which costs nothing under vmap either where no seed needs it.
    number = jnp.where(settled, jnp.minimum(state.stored, state.obs.shape[0]), 0)
    outputs = jax.lax.fori_loop(0, number, label, state.outputs)
    rounds = jnp.where(after.updates > before.updates, 0, state.rounds)
    return state.replace(outputs=outputs, rounds=rounds)  # type: ignore[attr-defined,no-any-return]


def _padded(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """In a larger array of zeros, as which neurons that are gone change nothing."""
    return jnp.pad(leaf, [(0, large - small) for small, large in zip(leaf.shape, shape, strict=True)])


def _outputs(actor: Params, stats: RunningStatistics, obs: jax.Array, config: LearnerConfig) -> jax.Array:
    outputs = apply_mlp(actor, normalize(stats, obs, config), config.activation)
    return outputs.astype(jnp.float32)  # with 64-bit types too


@dataclasses.dataclass(frozen=True, eq=False)
class Distance:
    """The mean divergence from the teacher's policy.

    Attributes:
        divergence: of the outputs of teacher and actor.
        obs_stats: with which the actor sees observations.
        config: of the learner.
    """

    divergence: Divergence
    obs_stats: RunningStatistics
    config: LearnerConfig

    def __call__(self, actor: Params, obs: jax.Array, outputs: jax.Array) -> jax.Array:
        """float32[], in nats, for observations float32[B, D] and the teacher's outputs float32[B, size] there."""
        return jnp.mean(self.divergence(outputs, _outputs(actor, self.obs_stats, obs, self.config)))

    def of_last(self, state: Distillation | None, actor: Params) -> jax.Array:
        """float32[], on the rollouts since the last distillation; infinite where nothing is distilled."""
        if state is None:
            return jnp.full((), jnp.inf, jnp.float32)
        number = jnp.minimum(state.stored, state.obs.shape[0])
        last = (state.stored - 1 - jnp.arange(updates_apart(self.config)) % number) % state.obs.shape[0]
        return self(actor, *(x[last].reshape(-1, x.shape[-1]) for x in (state.obs, state.outputs)))


def distill(
    state: Distillation | None,
    pruning: PruningState,
    actor: Params,
    distance: Distance,
    key: jax.Array,
    step: jax.Array,
    episodes: float,
) -> tuple[Params, Distillation | None]:
    """Bring the actor back to the teacher after a removal of neurons; returns it, and the state with one round more.

    What imitation does not bring back in the first ``episodes`` of a trial is left to the learner's own updates; where
    the learner rests, imitation goes on. Gradient steps of Adam on the mean divergence from the teacher, from moments
    of zero, with a step size that falls as a cosine. None is made where the divergence on the last rollouts is at most
    ``ENOUGH``. Masked slices stay 0, since their gradient is.

    Args:
        state: after ``watch``.
        pruning: after the mask update.
        actor: the params that learn.
        distance: of the actor from the teacher.
        key: for the minibatches.
        step: int32[], updates made, the same for all seeds.
        episodes: for how many of a trial the actor learns here.
    """
    config, threshold = distance.config, pruning.threshold
    if state is None or config.prune is None:
        return actor, state
    assert isinstance(threshold, ThresholdState)
    prune, apart = config.prune, updates_apart(config)
    widths = [jnp.sum(pruning.masks[name]) for name in threshold.good_masks]
    width = sum(widths, jnp.zeros((), jnp.int32)) / max(len(widths), 1)
    first_step_size = prune.distill_learning_rate / jnp.sqrt(width + 1.0)
    most = prune.distill_ratio * apart * config.steps_per_update
    # By what is left and not by the arrays, whose widths depend on the other seeds.
    share = jnp.minimum(1.0, jnp.square(WIDE / jnp.maximum(width, 1.0))) if config.rests else 1.0
    steps = jnp.ceil(most * share)
    adam = optax.scale_by_adam()

    def when_due(actor: Params) -> tuple[Params, jax.Array]:
        available = jnp.minimum(state.stored, state.obs.shape[0]) * config.steps_per_update
        obs, outputs = (x.reshape(-1, x.shape[-1]) for x in (state.obs, state.outputs))

        def minibatch(i: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            actor, opt_state = carry
            row_key = jax.random.fold_in(key, i)
            rows = jax.random.randint(row_key, (prune.distill_batch_size,), 0, available)
            grads = jax.grad(distance)(actor, obs[rows], outputs[rows])
            updates, opt_state = adam.update(grads, opt_state)
            cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * i / steps))
            step_size = first_step_size * (LAST_STEP_SIZE + (1.0 - LAST_STEP_SIZE) * cosine)
            changes = jax.tree.map(lambda x, update: (-step_size * update).astype(x.dtype), actor, updates)
            return optax.apply_updates(actor, changes), opt_state

        early = threshold.on_trial & (threshold.waited < episodes)
        wanted = pruning.updates > 0 if config.rests else early
        needed = wanted & (distance.of_last(state, actor) > ENOUGH)
        number = jnp.where(needed, steps, 0).astype(jnp.int32)
        learned: Params = jax.lax.fori_loop(0, number, minibatch, (actor, adam.init(actor)))[0]
        return learned, state.rounds + needed

    # Not batched over seeds, so that it costs nothing at other updates.
    actor, rounds = jax.lax.cond(step % apart == 0, when_due, lambda actor: (actor, state.rounds), actor)
    return actor, state.replace(rounds=rounds)  # type: ignore[attr-defined]
