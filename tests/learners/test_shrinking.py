"""Both learners train on in smaller arrays as they would with masked neurons in the full ones."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_rl
from prune_rl.dependency.tree_paths import leaves_by_path
from prune_rl.pruning.shrinking import full_masks
from tests.compilation import quick_jit
from tests.learners.pruned_runs import PPO, SAC, Run, lasting
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, random_rollout
from tests.learners.schedules import by_schedule

UPDATES = 55
# Two shrinkings at least lie between the first and the last mask update.
WINDOW = by_schedule(sparsity=0.8, critic=True, critic_sparsity=0.6, begin=0.1, end=0.7)
PRESET_LIKE = dataclasses.replace(WINDOW, score="surgeon", refit=True, strength=1e-4, every=3)
ADAM = dataclasses.replace(WINDOW, metric="adam", strength=1e-3, score="fisher")
BOUNDED = dataclasses.replace(WINDOW, score="surgeon", scope="global", energy=0.2, gate=10.0)
RANDOM = dataclasses.replace(WINDOW, score="random", refit=True)
ON_TRIAL = dataclasses.replace(WINDOW, tolerance=0.02, score="elimination", refit=True, every=2, end=0.9)
PPO_WIDE, SAC_WIDE = (dataclasses.replace(config, hidden=(24, 16)) for config in (PPO, SAC))

RUNS = {
    "ppo, Box, surgeon and refit": Run(
        prune_rl.ppo,
        dataclasses.replace(lasting(PPO_WIDE, UPDATES, PRESET_LIKE), skip=True, width_exponent=0.75),
        CONTINUOUS,
    ),
    "ppo, Box, dynamic threshold": Run(prune_rl.ppo, lasting(PPO_WIDE, UPDATES, ON_TRIAL), CONTINUOUS),
    "ppo, Discrete, proximal step of Adam": Run(prune_rl.ppo, lasting(PPO_WIDE, UPDATES, ADAM), DISCRETE),
    "sac, Box, random and refit": Run(prune_rl.sac, lasting(SAC_WIDE, UPDATES, RANDOM), CONTINUOUS),
    "sac, Discrete, energy, gate and global": Run(
        prune_rl.sac, lasting(SAC_WIDE, UPDATES, BOUNDED), DISCRETE
    ),
}


def doubled(tree: Any) -> Any:
    """float64 in place of float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def doubled_state(state: Any) -> Any:
    """A train state in float64, but for what an update computes in float32 whatever the params: statistics of the
    dynamic threshold, and two numbers of episodes. States of all updates are then of one type, and share a program.
    """
    threshold = state.pruning.threshold
    double = doubled(state)
    double = dataclasses.replace(
        double,
        pruning=double.pruning._replace(reference=state.pruning.reference),
        returns=dataclasses.replace(double.returns, fresh_episodes=state.returns.fresh_episodes),
    )
    if threshold:
        threshold = threshold._replace(good_params=doubled(threshold.good_params))
        double = dataclasses.replace(double, pruning=double.pruning._replace(threshold=threshold))
    return double


def kept_widths(state: Any) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in state.pruning.needed.items()}


def compacted(run: Run, state: Any) -> Any:
    """What is left of everything that pruning touches, in arrays of just that size, and the masks of all neurons."""
    groups = run.module.prunable_groups(state.params, run.config)
    target = {"critic": state.networks.target_critic} if run.module is prune_rl.sac else None
    # In NumPy, which compiles nothing.
    params, trees, masks = jax.device_get(
        (state.params, (state.opt_state, target, state.importance), state.masks)
    )
    _, params, others, _ = prune_rl.shrink(groups, params, trees, masks)
    return {"params": params, "others": others, "masks": full_masks(state.pruning), "returns": state.returns}


def assert_alike(left: Any, right: Any, tolerance: float) -> None:
    """Relative to the largest entry of each leaf."""
    right_leaves = leaves_by_path(right)
    for path, leaf in leaves_by_path(left).items():
        a, b = np.asarray(leaf), np.asarray(right_leaves[path])
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        a, b = a.astype(np.float64), b.astype(np.float64)
        error = np.max(np.abs(a - b), initial=0.0)
        assert error <= tolerance * max(1.0, np.max(np.abs(a), initial=0.0)), (path, error)


def side_by_side(run: Run, updates: int, tolerance: float, start: Any) -> int:
    """Train a masked state and one that shrinks twice on equal rollouts, and compare them; returns the shrinkings."""
    update = quick_jit(run.module.update, static_argnames="config")
    dtype = start.params["actor"]["head"]["bias"].dtype
    masked = small = start
    shrinkings = 0
    for t in range(updates):
        rollout = random_rollout(t, run.config, run.spec)
        if dtype == jnp.float64:
            rollout = doubled(rollout)
        masked, expected = update(masked, rollout, run.config)
        small, metrics = update(small, rollout, run.config)
        assert_alike(expected, metrics, tolerance)
        arrays = {name: len(mask) for name, mask in small.masks.items()}
        widths = {name: -(-width // 4) * 4 for name, width in kept_widths(small).items()}
        if shrinkings < 2 and sum(widths.values()) <= 0.7 * sum(arrays.values()):
            shrink = quick_jit(functools.partial(run.module.shrink, widths=widths, config=run.config))
            small, shrinkings = shrink(small), shrinkings + 1
            assert {name: len(mask) for name, mask in small.masks.items()} == widths
    assert any(len(mask) > mask.sum() for mask in small.masks.values()), "some arrays hold masked neurons"
    assert_alike(compacted(run, masked), compacted(run, small), tolerance)
    return shrinkings


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_masked_and_shrinking_runs_agree_in_float64(run: Run) -> None:
    """To 1e-9 in every param, moment, score and metric, over 55 updates across two shrinkings or more."""
    with jax.enable_x64(True):
        start = quick_jit(lambda key: doubled_state(run.module.init(key, run.config, run.spec)))(
            jax.random.key(0)
        )
        assert side_by_side(run, UPDATES, 1e-9, start) == 2


@pytest.mark.parametrize("name", ["ppo, Discrete, proximal step of Adam", "sac, Box, random and refit"])
def test_masked_and_shrinking_runs_agree_in_float32_over_a_short_horizon(name: str) -> None:
    """Rounding grows with training, so only past the first shrinking.

    Not with `surgeon` or a refit: with covariances that are nearly singular, rounding decides between neurons that
    stand in for each other, and shows in what they take over.
    """
    run = RUNS[name]
    prune = dataclasses.replace(run.config.prune, refit=False)
    run = run._replace(config=dataclasses.replace(run.config, prune=prune))
    start = quick_jit(lambda key: run.module.init(key, run.config, run.spec))(jax.random.key(0))
    assert side_by_side(run, 15, 1e-3, start) >= 1
