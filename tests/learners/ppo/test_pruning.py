"""Pruning inside PPO's update: the schedule, what masked means, and training on after compaction."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prune_rl.dependency.compaction import compact
from prune_rl.learners import ppo
from prune_rl.learners.mask_rules import mask_rules, prune
from prune_rl.learners.networks import apply_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.mask_update import init_pruning
from prune_rl.pruning.masks import apply_masks
from prune_rl.pruning.transforms.track_importance import TrackImportanceState
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, random_rollout

HIDDEN = (16, 24)
SIZES = {f"{network}/layer_{i}": size for network in ("actor", "critic") for i, size in enumerate(HIDDEN)}
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


class Trained(NamedTuple):
    config: ppo.Config
    states: list[ppo.State]  # states[t] after t updates
    metrics: list[Any]  # metrics[t] of the update that led to states[t + 1]


@functools.cache
def run(config: ppo.Config) -> Trained:
    states, metrics = [ppo.init(jax.random.key(0), config, DISCRETE)], []
    for t in range(config.num_updates):
        state, numbers = update(states[-1], random_rollout(t, config, DISCRETE), config)
        states.append(state)
        metrics.append(numbers)
    return Trained(config, states, metrics)


ACTOR = dataclasses.replace(BASE, prune=Pruning(sparsity=0.75, begin=0.2, end=0.6))
# Pruning may take all of training, at a cadence that does not divide it; the proximal step is on.
BOTH = dataclasses.replace(
    BASE,
    total_timesteps=7 * BASE.steps_per_update,
    prune=Pruning(
        sparsity=0.875,
        critic=True,
        critic_sparsity=0.5,
        begin=0.0,
        end=1.0,
        every=2,
        strength=1e-3,
        metric="adam",
    ),
)
DENSE = dataclasses.replace(BASE, prune=None)


def slices_of(tree: Any, name: str) -> Iterator[Any]:
    """The incoming columns, biases and outgoing rows of a layer's neurons, neurons first, by the layers' names."""
    network, layer = name.split("/")
    following = "head" if layer == f"layer_{len(HIDDEN) - 1}" else f"layer_{int(layer[-1]) + 1}"
    yield np.asarray(tree[network][layer]["kernel"]).T
    yield np.asarray(tree[network][layer]["bias"])[:, None]
    yield np.asarray(tree[network][following]["kernel"])


def final_width(config: ppo.Config, name: str) -> int:
    size = SIZES[name]
    assert config.prune is not None
    sparsity = config.prune.sparsity if name.startswith("actor") else config.prune.critic_sparsity
    return size - int(np.floor(sparsity * size + 1e-9))


@pytest.mark.parametrize("config", [ACTOR, BOTH], ids=["actor", "both"])
def test_widths_fall_along_the_schedule_to_exactly_the_target(config: ppo.Config) -> None:
    trained, options = run(config), config.prune
    assert options is not None
    total = config.num_updates
    for name in trained.states[0].masks:
        size, widths = SIZES[name], [int(state.masks[name].sum()) for state in trained.states]
        final = final_width(config, name)
        assert widths[-1] == final
        for t, width in enumerate(widths):
            if t < options.begin * total:
                assert width == size
            # Never ahead of the cubic schedule by more than the step that is due now.
            progress = (t - options.begin * total + options.every) / ((options.end - options.begin) * total)
            removed = (size - final) * (1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3)
            assert size - width <= removed + 1e-6
            if t >= options.end * total:
                assert width == final
        changes = np.flatnonzero(np.diff(widths)) + 1
        assert len(changes) >= 3, "gradual, not at once"
        assert all(t % options.every == 0 for t in changes)


@pytest.mark.parametrize("config", [ACTOR, BOTH], ids=["actor", "both"])
def test_masked_neurons_never_return_and_stay_exactly_zero(config: ppo.Config) -> None:
    assert config.prune is not None
    states = run(config).states
    for before, after in itertools.pairwise(states):
        for name, mask in after.masks.items():
            kept = np.asarray(mask)
            assert not np.any(kept & ~np.asarray(before.masks[name]))
            moments = [optax.tree.get(after.opt_state, moment) for moment in ("mu", "nu")]
            for tree in (after.params, *moments):
                for part in slices_of(tree, name):
                    assert not np.any(part[~kept])
            if not config.prune.strength:  # the proximal step may well take others to zero
                assert np.all(np.any(next(slices_of(after.params, name))[kept], axis=1))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states[-1].params))


def test_the_critic_is_pruned_only_when_asked() -> None:
    states = run(ACTOR).states
    assert set(states[0].masks) == {"actor/layer_0", "actor/layer_1"}
    assert set(run(BOTH).states[0].masks) == set(SIZES)
    for name in ("critic/layer_0", "critic/layer_1"):
        incoming, _, outgoing = slices_of(states[-1].params, name)
        assert np.all(incoming)
        assert np.all(outgoing)


def test_the_output_layers_keep_every_output() -> None:
    params = run(BOTH).states[-1].params
    for network, outputs in (("actor", 4), ("critic", 1)):
        assert params[network]["head"]["bias"].shape == (outputs,)
        assert np.all(params[network]["head"]["bias"])
        assert np.all(np.any(params[network]["head"]["kernel"], axis=0))


@pytest.mark.parametrize("config", [ACTOR, BOTH], ids=["actor", "both"])
def test_the_report_tells_what_happened(config: ppo.Config) -> None:
    trained = run(config)
    for t, metrics in enumerate(trained.metrics):
        before, after = trained.states[t], trained.states[t + 1]
        assert set(metrics["prune"]) == set(after.masks)
        for name, report in metrics["prune"].items():
            removed = np.asarray(before.masks[name] & ~after.masks[name])
            assert int(report["width"]) == int(after.masks[name].sum())
            assert int(report["nan_scores"]) == 0
            score = np.asarray(after.importance[name])
            np.testing.assert_allclose(report["threshold"], score[removed].max(initial=0.0), rtol=1e-5)
            share = score[removed].sum() / max(score[np.asarray(before.masks[name])].sum(), 1e-30)
            np.testing.assert_allclose(report["removed_importance"], share, rtol=1e-4, atol=1e-7)
            if removed.any():
                assert score[removed].max() <= score[np.asarray(after.masks[name])].min()


def test_dense_training_removes_nothing_and_knows_no_proximal_step() -> None:
    trained = run(DENSE)
    assert trained.states[-1].masks == {}
    assert all("prune" not in metrics for metrics in trained.metrics)
    # Until pruning begins, the method without a proximal step is dense training.
    early = run(ACTOR).states[1]
    for a, b in zip(jax.tree.leaves(early.params), jax.tree.leaves(trained.states[1].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Pruning(score="fisher"), 3),
        (Pruning(score="magnitude", scope="global"), None),
        (Pruning(score="output", refit=True, gate=0.1), 3),
        (Pruning(score="random", min_width=5), 5),
        (Pruning(score="surgeon", refit=True, energy=0.999), None),
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
    config = dataclasses.replace(BASE, prune=Pruning(critic=True, begin=1.0, end=1.0))
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
    keys = jnp.stack([jax.random.key(i) for i in range(3)])
    states = jax.vmap(lambda key: ppo.init(key, ACTOR, DISCRETE), out_axes=ppo.VMAP_AXES)(keys)
    assert states.step.shape == ()
    assert states.params["actor"]["layer_0"]["bias"].shape == (3, 16)
    rollouts = jax.tree.map(lambda *x: jnp.stack(x), *(random_rollout(i, ACTOR, DISCRETE) for i in range(3)))
    batched = jax.vmap(
        lambda state, rollout: ppo.update(state, rollout, ACTOR),
        in_axes=(ppo.VMAP_AXES, 0),
        out_axes=(ppo.VMAP_AXES, 0),
    )
    conditions = [
        e for e in jax.make_jaxpr(batched)(states, rollouts).jaxpr.eqns if e.primitive.name == "cond"
    ]
    assert len(conditions) == 1, "a batched predicate would have become a select that runs both branches"
