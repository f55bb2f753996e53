"""The optimiser that every learner uses: Adam with a linear schedule, and pruning around it."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.transforms.group_sparse import group_sparse
from prune_rl.pruning.transforms.scale_by_width import scale_by_width

B2 = 0.999


def learning_rate(config: LearnerConfig) -> optax.Schedule:
    """Adam's step size as a function of the gradient steps made: linear from start to end over all of them.

    In a pruned run it has a floor while neurons of the actor may go, and then falls linearly to the same end.
    """
    schedule = optax.linear_schedule(config.learning_rate, config.learning_rate_end, config.learning_steps)
    if config.prune is None or config.prune.learning_rate_floor is None:
        return schedule
    floor = config.prune.learning_rate_floor * config.learning_rate
    updates_before = mask_schedules(config)["actor"].first - config.warmup_updates
    begin = config.learning_steps * updates_before // (config.num_updates - config.warmup_updates)
    end = max(begin, int(config.prune.end * config.learning_steps))

    def narrowing(step: chex.Numeric) -> chex.Numeric:
        return jnp.maximum(schedule(begin + step), floor)

    last = optax.linear_schedule(
        narrowing(end - begin), config.learning_rate_end, config.learning_steps - end
    )
    return optax.join_schedules([schedule, narrowing, last], [begin, end])


def pruned_adam(
    config: LearnerConfig,
    groups: NeuronGroups,
    *,
    proximal: bool = True,
    eps: float = 1e-8,
    max_grad_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam that tracks importance, makes proximal steps, and keeps masked slices and moments at 0.

    Args:
        config: of the learner; its ``prune`` is None in a dense run.
        groups: the neuron groups that may be pruned; none in a dense run.
        proximal: whether the group-sparse proximal step, if the config asks for it, acts on these groups.
        eps: Adam's ε.
        max_grad_norm: the gradient is scaled down to this global norm first; None: it is not.

    Returns:
        A transformation whose ``update`` takes ``masks``, see ``group_sparse``; the state is a ``GroupSparseState``.
    """
    options, schedule = config.prune or Pruning(strength=0.0), learning_rate(config)
    steps = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
    steps.append(optax.adam(schedule, b2=B2, eps=eps))
    if config.prune is not None and config.width_exponent > 0:
        steps.append(scale_by_width(groups, config.width_exponent))
    return group_sparse(
        optax.chain(*steps),
        groups,
        strength=options.strength if proximal else 0.0,
        learning_rate=schedule,
        metric=options.metric,
        importance="fisher" if options.score == "fisher" else "taylor",
        decay=options.importance_decay,
        b2=B2,
        eps=eps,
    )
