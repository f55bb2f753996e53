"""Importance tracked from the gradients, as an optax transformation that leaves the updates alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import Params
from prune_rl.pruning.importance import Importance, Scores
from prune_rl.pruning.scores import gradient_importance
from prune_rl.pruning.transforms.trained_params import fit_groups, trained_part


class TrackImportanceState(NamedTuple):
    """``importance``: {group name: float32[size]}, the running mean of the scores."""

    importance: Scores


def track_importance(
    groups: NeuronGroups, importance: str | Importance = "taylor", decay: float = 0.99
) -> optax.GradientTransformation:
    """Track an exponential moving average of finite scores, ``I ← β I + (1 − β) importance(params, gradients)``.

    In a chain of transformations, this should be the first one: it reads the raw gradients. A score that is not finite
    leaves I as it was; where there was none before, I is NaN, which keeps the neuron in ``update_masks``.

    Args:
        groups: from ``find_groups``.
        importance: a name in ``SCORES`` that needs gradients at most, or a function of the signature of
            ``taylor_importance``.
        decay: β in [0, 1).

    Returns:
        An :class:`optax.GradientTransformation` whose updates are the given ones.

    Raises:
        ValueError: ``decay`` is out of range; there is no such score, or it needs more than parameters and gradients;
            and from ``update`` without ``params`` or with params that the groups do not fit.

    References:
        Molchanov et al., `Importance Estimation for Neural Network Pruning <https://arxiv.org/abs/1906.10771>`_, 2019

    Examples:
        >>> import jax.numpy as jnp, optax, prune_rl
        >>> from prune_rl.pruning.transforms.track_importance import track_importance
        >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
        >>> groups = prune_rl.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((1, 2)))
        >>> tx = optax.chain(track_importance(groups), optax.sgd(0.1))
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> {name: score.shape for name, score in state[0].importance.items()}
        {'a': (3,)}
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    score = gradient_importance(importance)

    def init_fn(params: Params) -> TrackImportanceState:
        del params
        return TrackImportanceState(
            {name: jnp.zeros(group.size, jnp.float32) for name, group in groups.items()}
        )

    def update_fn(
        updates: Params, state: TrackImportanceState, params: Params | None = None
    ) -> tuple[Params, TrackImportanceState]:
        params = trained_part("track_importance", updates, params)
        here = fit_groups(groups, params)
        scores = score(here, params, updates)
        return updates, TrackImportanceState(
            # float32 whatever the params are, so that a loop can carry it.
            {
                name: _running_mean(state.importance[name], scores[name].astype(jnp.float32), decay)
                for name in here
            }
        )

    return optax.GradientTransformation(init_fn, update_fn)


def _running_mean(mean: jax.Array, score: jax.Array, decay: float) -> jax.Array:
    known = jnp.where(jnp.isfinite(mean), mean, 0.0)
    # NaN where nothing finite was seen. Not the constant: JAX_DEBUG_NANS must find none in a healthy state.
    without = jnp.where(known > 0, known, 0.0 * score)
    return jnp.where(jnp.isfinite(score), decay * known + (1.0 - decay) * score, without)
