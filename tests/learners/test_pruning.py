"""What holds of pruning in both learners: the schedule, what masked means, and what the log says."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from prune_rl.learners import ppo
from prune_rl.learners.mask_rules import mask_schedules, since_change
from tests.learners.pruned_runs import (
    PPO_ACTOR,
    PPO_BOTH,
    PPO_DENSE,
    SAC_ACTOR,
    SAC_BOTH,
    SAC_DENSE,
    Run,
    trained,
)
from tests.learners.random_rollouts import DISCRETE, SMALL, slices_of
from tests.learners.schedules import by_schedule

RUNS = pytest.mark.parametrize(
    "run",
    [PPO_ACTOR, PPO_BOTH, SAC_ACTOR, SAC_BOTH],
    ids=["ppo actor", "ppo both", "sac actor", "sac both"],
)


@RUNS
def test_widths_fall_along_the_schedule_to_exactly_the_target(run: Run) -> None:
    states, options, total = trained(run).states, run.prune, run.config.num_updates
    for name in states[0].masks:
        size, widths = run.sizes[name], [int(state.masks[name].sum()) for state in states]
        final = run.final_width(name)
        assert widths[-1] == final
        every = options.updates_apart(total)
        for t, width in enumerate(widths):
            if t < options.begin * total:
                assert width == size
            # Never ahead of the cubic schedule by more than the step that is due now.
            progress = (t - options.begin * total + every) / ((options.end - options.begin) * total)
            removed = (size - final) * (1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3)
            assert size - width <= removed + 1e-6
            if t >= options.end * total:
                assert width == final
        changes = np.flatnonzero(np.diff(widths)) + 1
        assert len(changes) >= 3, "gradual, not at once"
        assert all(t % every == 0 for t in changes)


@RUNS
def test_masked_neurons_never_return_and_stay_exactly_zero_in_moments_and_target_critics_too(
    run: Run,
) -> None:
    states = trained(run).states
    for before, after in itertools.pairwise(states):
        for name, mask in after.masks.items():
            kept = np.asarray(mask)
            assert not np.any(kept & ~np.asarray(before.masks[name]))
            for tree in run.masked_trees(after, name):
                for part in slices_of(tree, name):
                    assert not np.any(part[~kept])
            if not run.prune.strength:  # the proximal step may take others to zero
                assert np.all(np.any(next(slices_of(after.params, name))[kept], axis=1))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states[-1].params))


@pytest.mark.parametrize(
    ("actor", "both"), [(PPO_ACTOR, PPO_BOTH), (SAC_ACTOR, SAC_BOTH)], ids=["ppo", "sac"]
)
def test_the_critic_is_pruned_only_when_asked(actor: Run, both: Run) -> None:
    states = trained(actor).states
    assert set(states[0].masks) == {"actor/layer_0", "actor/layer_1"}
    assert set(trained(both).states[0].masks) == set(both.sizes)
    for name in ("critic/layer_0", "critic/layer_1"):
        for tree in actor.masked_trees(states[-1], name)[:1]:
            assert all(np.all(part) for part in slices_of(tree, name))


@pytest.mark.parametrize("run", [PPO_ACTOR, SAC_ACTOR], ids=["ppo", "sac"])
def test_the_actor_is_pruned_beside_a_critic_with_layer_normalisation(run: Run) -> None:
    run = run._replace(config=dataclasses.replace(run.config, critic_layer_norm=True))
    first, last = trained(run).states[0], trained(run).states[-1]
    assert set(run.module.all_groups(first.params, run.config)) == {"actor/layer_0", "actor/layer_1"}
    for name, mask in last.masks.items():
        assert int(mask.sum()) == run.final_width(name)
    for name in ("layer_0", "layer_1"):
        assert "scale" not in last.params["actor"][name]
        scale = np.asarray(last.params["critic"][name]["scale"])
        assert scale.shape == last.params["critic"][name]["bias"].shape
        assert np.all(np.asarray(first.params["critic"][name]["scale"]) == 1.0)
        assert np.any(scale != 1.0)
        assert np.all(np.isfinite(scale))
    prune = dataclasses.replace(run.prune, critic=True)
    with pytest.raises(
        ValueError, match=r"^critic_layer_norm joins the neurons .* leave it or prune\.critic out$"
    ):
        dataclasses.replace(run.config, prune=prune).check()


@pytest.mark.parametrize(("run", "outputs"), [(PPO_BOTH, 4), (SAC_BOTH, 4)], ids=["ppo", "sac"])
def test_the_output_layers_keep_every_output(run: Run, outputs: int) -> None:
    params = trained(run).states[-1].params
    assert params["actor"]["head"]["bias"].shape == (outputs,)
    assert params["critic"]["head"]["bias"].shape[-1] == 1
    for network in ("actor", "critic"):
        assert np.all(params[network]["head"]["bias"])
        assert np.all(np.any(params[network]["head"]["kernel"], axis=-2))


@RUNS
def test_the_report_tells_what_happened(run: Run) -> None:
    states, rows = trained(run)
    for metrics, (before, after) in zip(rows, itertools.pairwise(states), strict=True):
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
    progress = [float(metrics["prune_progress"]) for metrics in rows]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("dense", "pruned", "until"), [(PPO_DENSE, PPO_ACTOR, 1), (SAC_DENSE, SAC_ACTOR, 3)], ids=["ppo", "sac"]
)
def test_dense_training_removes_nothing_and_knows_no_proximal_step(
    dense: Run, pruned: Run, until: int
) -> None:
    states, metrics = trained(dense)
    assert states[-1].masks == {}
    assert not any(name.startswith("prune") for row in metrics for name in row)
    # Until pruning begins, the method without a proximal step is dense training.
    early = trained(pruned).states[until]
    assert all(bool(mask.all()) for mask in early.masks.values())
    for a, b in zip(jax.tree.leaves(early.params), jax.tree.leaves(states[until].params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_without_a_cadence_a_long_run_makes_about_as_many_mask_updates_as_a_short_one() -> None:
    for updates in (150, 400, 2000, 8000):
        config = ppo.Config(
            num_envs=1,
            num_steps=4,
            num_minibatches=1,
            total_timesteps=4 * updates,
            prune=by_schedule(begin=0.1, end=0.9),
        )
        number = mask_schedules(config)["actor"].number
        assert 100 <= number <= 150, (updates, number)
    assert by_schedule(begin=0.1, end=0.6).updates_apart(196) == 1
    assert by_schedule(every=7).updates_apart(10_000) == 7


def test_episodes_are_stale_only_after_a_change_of_the_neurons_on_trial() -> None:
    """A critic that goes by its schedule, at every mask update, does not hold trials of the actor up."""
    prune = by_schedule(tolerance=0.02, critic=True)
    state = ppo.init(jax.random.key(0), dataclasses.replace(SMALL, prune=prune), DISCRETE)
    for network, fresh in (("critic", True), ("actor", False)):
        name = f"{network}/layer_0"
        masks = {**state.pruning.masks, name: state.pruning.masks[name].at[0].set(False)}
        after = since_change(state.returns, state.pruning, state.pruning._replace(masks=masks))
        assert after.fresh.tolist() == [fresh] * SMALL.num_envs
