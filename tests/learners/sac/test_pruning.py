"""Pruning inside SAC's update: the schedule, what masked means (target critics included), and compaction."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.compaction import compact
from prune_rl.learners import sac
from prune_rl.learners.networks import apply_ensemble, apply_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.masks import apply_masks
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.pruned_runs import SAC_ACTOR, SAC_BOTH, Run, trained
from tests.learners.random_rollouts import (
    CONTINUOUS,
    DISCRETE,
    SMALL_SAC,
    random_rollout,
    random_sac_state,
    slices_of,
)
from tests.learners.sac import sac_reference as reference
from tests.learners.schedules import by_schedule

HIDDEN = (8, 12)
BASE = dataclasses.replace(
    SMALL_SAC, hidden=HIDDEN, utd_ratio=5 / 24, total_timesteps=10 * SMALL_SAC.steps_per_update
)
update = quick_jit(sac.update, static_argnames="config")


def test_the_critics_are_pruned_less_than_the_actor() -> None:
    masks = trained(SAC_BOTH).states[-1].masks
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "actor/layer_0": 2,
        "actor/layer_1": 3,
        "critic/layer_0": 4,
        "critic/layer_1": 6,
    }


@pytest.mark.parametrize("run", [SAC_ACTOR, SAC_BOTH], ids=["actor", "both"])
def test_target_critics_keep_what_the_critics_keep_and_learning_goes_on_after_the_last_removal(
    run: Run,
) -> None:
    states = trained(run).states
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states[-1].networks))
    if run is SAC_ACTOR:
        for name in ("critic/layer_0", "critic/layer_1"):
            assert all(
                np.all(part) for part in slices_of({"critic": states[-1].networks.target_critic}, name)
            )
    last, second = (state.networks.target_critic["head"]["kernel"] for state in (states[-1], states[-2]))
    jax.tree.map(np.testing.assert_array_equal, states[-1].masks, states[-2].masks)
    assert np.abs(last - second).max() > 1e-4


def test_both_critics_lose_the_same_neurons_and_no_other() -> None:
    state = trained(SAC_BOTH).states[-1]
    for name in ("critic/layer_0", "critic/layer_1"):
        incoming, _, outgoing = slices_of(state.params, name)
        for member in range(2):
            np.testing.assert_array_equal(np.any(incoming[:, member], axis=-1), state.masks[name])
            np.testing.assert_array_equal(np.any(outgoing[:, member], axis=-1), state.masks[name])


def in_one_update(options: Pruning) -> sac.Config:
    """All pruning at the end of one update that learns nothing: Adam's step is too small for float32."""
    options = dataclasses.replace(options, critic=True, sparsity=0.75, begin=0.0, end=1.0)
    return dataclasses.replace(
        BASE,
        total_timesteps=1 * BASE.steps_per_update,
        learning_starts=0,
        utd_ratio=1 / 24,
        learning_rate=1e-30,
        learning_rate_end=1e-30,
        prune=options,
    )


OUTPUT = in_one_update(by_schedule(score="output", refit=True, gate=0.1))


@pytest.mark.parametrize(
    ("spec", "config", "widths"),
    [
        (DISCRETE, in_one_update(by_schedule(score="fisher")), [2, 3, 4, 6]),
        (CONTINUOUS, in_one_update(by_schedule(score="magnitude", scope="global")), None),
        (CONTINUOUS, OUTPUT, [2, 3, 4, 6]),
        (DISCRETE, in_one_update(by_schedule(score="random", min_width=7)), [7, 7, 7, 7]),
        (DISCRETE, in_one_update(by_schedule(score="surgeon", refit=True)), [2, 3, 4, 6]),
    ],
    ids=["fisher", "magnitude", "output", "random", "surgeon"],
)
def test_every_score_and_option_prunes_and_every_network_is_refitted_when_asked(
    spec: Spec, config: sac.Config, widths: list[int] | None
) -> None:
    assert config.prune is not None
    start = random_sac_state(config, spec)
    state, metrics = update(start, random_rollout(0, config, spec), config)
    left = [int(state.masks[name].sum()) for name in sorted(state.masks)]
    if config.prune.scope == "global":
        assert min(left) >= 2
        assert [sum(left[:2]), sum(left[2:])] == [20 - 15, 20 - 10]
    else:
        assert left == widths
    for name, mask in state.masks.items():
        for part in slices_of(state.params, name):
            assert not np.any(part[~np.asarray(mask)])
    groups = sac.prunable_groups(start.params, config)
    masked = apply_masks(groups, start.params, state.masks)
    for network in ("actor", "critic"):
        kernels = [params[network]["head"]["kernel"] for params in (state.params, masked)]
        assert np.array_equal(*kernels) != config.prune.refit
    floats = (state.networks, metrics["prune"])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(floats))


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
def test_each_critic_and_target_critic_has_a_refit_of_its_own(spec: Spec) -> None:
    config = in_one_update(by_schedule(score="surgeon", refit=True))
    start, rollout = random_sac_state(config, spec), random_rollout(0, config, spec)
    state, _ = update(start, rollout, config)
    seen = jnp.reshape(rollout.obs, (-1, 3))
    if spec is CONTINUOUS:
        seen = jnp.concatenate([seen, jnp.reshape(rollout.action, (-1, 2))], axis=1)
    groups = sac.prunable_groups(start.params, config).within("critic")
    for before, after in (
        (start.params["critic"], state.params["critic"]),
        (start.networks.target_critic, state.networks.target_critic),
    ):
        whole = apply_ensemble(before, seen, config.activation)
        refitted = apply_ensemble(after, seen, config.activation)
        masked = apply_masks(groups, {"critic": before}, state.masks)["critic"]
        without = apply_ensemble(masked, seen, config.activation)
        error, error_without = (np.square(q - whole).mean(axis=(1, 2)) for q in (refitted, without))
        assert np.all(error < 0.5 * error_without), (error, error_without)


def test_the_output_score_looks_at_what_actor_and_critics_read() -> None:
    start, rollout = random_sac_state(OUTPUT, CONTINUOUS), random_rollout(0, OUTPUT, CONTINUOUS)
    state, _ = update(start, rollout, OUTPUT)
    obs, action = rollout.obs.reshape(-1, 3), rollout.action.reshape(-1, 2)
    critics = reference.both(reference.to_numpy(start.params["critic"]))
    for network, members, x in (
        ("actor", [reference.to_numpy(start.params["actor"])], obs),
        ("critic", critics, np.concatenate([obs, action], axis=1)),
    ):
        inputs = [x for _ in members]
        for layer, following in (("layer_0", "layer_1"), ("layer_1", "head")):
            inputs = [
                np.tanh(x @ member[layer]["kernel"] + member[layer]["bias"])
                for x, member in zip(inputs, members, strict=True)
            ]
            score = sum(
                np.abs(x).mean(axis=0) * np.linalg.norm(member[following]["kernel"], axis=1)
                for x, member in zip(inputs, members, strict=True)
            )
            kept = np.asarray(state.masks[f"{network}/{layer}"])
            # The learner's mean is over a sample of these transitions.
            assert score[kept].min() > 0.95 * score[~kept].max()


@pytest.mark.parametrize("run", [SAC_ACTOR, SAC_BOTH], ids=["actor", "both"])
def test_compact_networks_are_the_same_functions_as_masked_ones(run: Run) -> None:
    state = trained(run).states[-1]
    groups = sac.prunable_groups(state.params, run.config)
    small = compact(groups, state.params, state.masks)
    kept = [int(state.masks[f"actor/layer_{i}"].sum()) for i in range(2)]
    assert small["actor"]["layer_1"]["kernel"].shape == tuple(kept)
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(0.0, 3.0, size=(100, 3)), jnp.float32)
    action = jnp.asarray(rng.uniform(-1.0, 1.0, (100, 2)), jnp.float32)
    critic_input = obs if run.spec is DISCRETE else jnp.concatenate([obs, action], -1)
    for wide, narrow in (
        (apply_mlp(state.params["actor"], obs, "tanh"), apply_mlp(small["actor"], obs, "tanh")),
        (
            apply_ensemble(state.params["critic"], critic_input, "tanh"),
            apply_ensemble(small["critic"], critic_input, "tanh"),
        ),
    ):
        assert np.abs(wide).max() > 1e-3
        np.testing.assert_allclose(wide, narrow, rtol=0.0, atol=1e-5)


def test_no_neuron_goes_before_anything_was_learned() -> None:
    prune = by_schedule(sparsity=0.75, begin=0.0, end=0.3)
    config = dataclasses.replace(SMALL_SAC, hidden=HIDDEN, utd_ratio=5 / 24, prune=prune)
    state = random_sac_state(config, DISCRETE)
    widths = []
    for i in range(config.num_updates):
        state, _ = update(state, random_rollout(i, config, DISCRETE), config)
        widths.append(int(state.masks["actor/layer_0"].sum()))
    assert widths[:2] == [8, 8], "two updates of warm-up, whose importance is 0 everywhere"
    assert widths[-1] == 2
