"""Pruning inside PPO's update: the schedule, what masked means, and training on after compaction."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.compaction import compact
from prune_rl.learners import ppo
from prune_rl.learners.mask_rules import mask_rules, prune
from prune_rl.learners.networks import apply_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.masks import apply_masks
from prune_rl.pruning.rules import init_pruning
from prune_rl.pruning.transforms.track_importance import TrackImportanceState
from tests.learners.pruned_runs import PPO_ACTOR
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, random_rollout
from tests.learners.schedules import by_schedule

HIDDEN = (16, 24)
BASE = ppo.Config(
    hidden=HIDDEN,
    num_envs=2,
    num_steps=8,
    update_epochs=2,
    num_minibatches=2,
    total_timesteps=10 * 2 * 8,
    learning_rate=0.01,
)
update = jax.jit(ppo.update, static_argnames="config")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (by_schedule(score="fisher"), 3),
        (by_schedule(score="magnitude", scope="global"), None),
        (by_schedule(score="output", refit=True, gate=0.1), 3),
        (by_schedule(score="random", min_width=5), 5),
        (by_schedule(score="surgeon", refit=True, energy=0.999), None),
    ],
    ids=lambda value: value.score if isinstance(value, Pruning) else "",
)
def test_every_score_and_option_prunes_in_one_step(options: Pruning, expected: int | None) -> None:
    options = dataclasses.replace(options, sparsity=0.75, begin=0.0, end=0.5)
    config = dataclasses.replace(
        BASE, hidden=(12, 12), prune=options, total_timesteps=2 * BASE.steps_per_update
    )
    state = ppo.init(jax.random.key(0), config, CONTINUOUS)
    groups = ppo.prunable_groups(state.params, config)
    rng = np.random.default_rng(0)
    scores = {name: jnp.asarray(rng.random(12), jnp.float32) for name in groups}
    tracked = state.opt_state._replace(tracked=TrackImportanceState(scores))
    state = dataclasses.replace(state, opt_state=tracked, step=jnp.int32(1))
    networks = {"actor": lambda params, x: apply_mlp(params["actor"], x, config.activation)}
    rules = mask_rules(config, groups, networks)
    obs = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)
    pruned, report = jax.jit(lambda s, x: prune(s, rules, lambda: {"actor": (x,)}, jax.random.key(1)))(
        state, obs
    )
    assert float(report["prune_progress"]) == 1.0
    widths = [int(mask.sum()) for mask in pruned.state.masks.values()]
    assert all(2 <= width < 12 for width in widths) if expected is None else widths == [expected] * 2
    if options.scope == "global":
        assert sum(widths) == 24 - 18
    actor, mask = pruned.params["actor"], np.asarray(pruned.state.masks["actor/layer_1"])
    for part in (actor["layer_1"]["kernel"].T, actor["layer_1"]["bias"], actor["head"]["kernel"]):
        assert not np.any(part[~mask])
    np.testing.assert_array_equal(actor["log_std"], state.params["actor"]["log_std"])
    if not options.refit:
        np.testing.assert_array_equal(
            actor["head"]["kernel"][mask], state.params["actor"]["head"]["kernel"][mask]
        )
    jax.tree.map(np.testing.assert_array_equal, pruned.params["critic"], state.params["critic"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((pruned.params, pruned.report)))


def test_training_goes_on_the_same_in_a_compacted_state() -> None:
    # No mask update is due in this run, so the masked and the compacted network are trained alike.
    config = dataclasses.replace(BASE, prune=by_schedule(critic=True, begin=1.0, end=1.0))
    rng = np.random.default_rng(0)
    state = ppo.init(jax.random.key(0), config, CONTINUOUS)
    groups = ppo.prunable_groups(state.params, config)
    masks = {name: jnp.asarray(rng.random(group.size) < 0.4) for name, group in groups.items()}
    params = apply_masks(groups, state.params, masks)
    wide = dataclasses.replace(state, params=params, pruning=state.pruning._replace(masks=masks))

    small_params = compact(groups, params, masks)
    small_groups = ppo.prunable_groups(small_params, config)
    small = dataclasses.replace(
        state,
        params=small_params,
        opt_state=ppo.optimizer(small_groups, config).init(small_params),
        pruning=init_pruning(small_groups),
    )
    assert {name: group.size for name, group in small_groups.items()} == {
        n: int(m.sum()) for n, m in masks.items()
    }
    for i in range(2):
        rollout = random_rollout(i, config, CONTINUOUS)
        (wide, wide_metrics), (small, small_metrics) = (
            update(wide, rollout, config),
            update(small, rollout, config),
        )
        for name in ("policy_loss", "value_loss", "entropy", "approx_kl"):
            np.testing.assert_allclose(
                wide_metrics[name], small_metrics[name], rtol=1e-3, atol=1e-5, err_msg=name
            )
    expected = compact(groups, wide.params, masks)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(small.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), small.params, small_params)
    assert min(jax.tree.leaves(moved)) > 1e-3, "the comparison must be of something that was trained"


def test_the_mask_update_stays_conditional_over_many_seeds() -> None:
    config = PPO_ACTOR.config
    keys = jnp.stack([jax.random.key(i) for i in range(3)])
    states = jax.vmap(lambda key: ppo.init(key, config, DISCRETE), out_axes=ppo.VMAP_AXES)(keys)
    assert states.step.shape == ()
    assert states.params["actor"]["layer_0"]["bias"].shape == (3, 16)
    rollouts = jax.tree.map(lambda *x: jnp.stack(x), *(random_rollout(i, config, DISCRETE) for i in range(3)))
    batched = jax.vmap(
        lambda state, rollout: ppo.update(state, rollout, config),
        in_axes=(ppo.VMAP_AXES, 0),
        out_axes=(ppo.VMAP_AXES, 0),
    )
    conditions = [
        e for e in jax.make_jaxpr(batched)(states, rollouts).jaxpr.eqns if e.primitive.name == "cond"
    ]
    assert len(conditions) == 1, "a batched predicate would have become a select that runs both branches"
