"""A healthy train state holds no NaN and computes none, so that JAX_DEBUG_NANS can be used on a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import ppo, sac
from prune_rl.spaces import Spec
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, SMALL, SMALL_SAC, random_rollout
from tests.learners.schedules import by_schedule

PRUNE = by_schedule(
    sparsity=0.5, begin=0.0, end=0.8, gate=0.1, strength=1e-3, metric="adam", score="surgeon", refit=True
)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
@pytest.mark.parametrize(("learner", "small"), [(ppo, SMALL), (sac, SMALL_SAC)], ids=["ppo", "sac"])
def test_neither_state_nor_metrics_hold_nan_before_or_after_the_first_episode(
    learner: Any, small: Any, spec: Spec
) -> None:
    config = dataclasses.replace(small, total_timesteps=5 * small.steps_per_update, prune=PRUNE)
    with jax.debug_nans(True):
        state = learner.init(jax.random.key(0), config, spec)
        update = jax.jit(learner.update, static_argnames="config")
        for i in range(5):  # no episode ends in the first two; SAC's warm-up takes two, too
            rollout = random_rollout(i, config, spec, ends=0.0 if i < 2 else 0.3)
            state, metrics = update(state, rollout, config)
            floats = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
            assert not any(np.isnan(x).any() for x in floats)
    assert int(state.pruning.updates) > 0
    assert int(state.returns.finished) > 0
