"""SAC while it narrows: its own updates rest, it acts without noise, and the actor learns from its own mean alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import sac
from prune_rl.learners.distillation import ROUNDS
from prune_rl.learners.imitation import without_spread
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.rollout import Rollout
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import DISCRETE, LOPSIDED, SMALL_SAC, random_rollout, random_sac_state

PRUNE = Pruning(begin=0.2, end=0.9, every=1, distill_buffer=240, distill_batch_size=32, distill_ratio=0.5)


def config_with(prune: Pruning) -> sac.Config:
    return dataclasses.replace(SMALL_SAC, total_timesteps=60 * 3 * 8, hidden=(16, 12), prune=prune)


RESTING = config_with(PRUNE)
WIDE = config_with(dataclasses.replace(PRUNE, sparsity=0.0))
NEVER = config_with(dataclasses.replace(PRUNE, distill_ratio=0.0))
FIRST = mask_schedules(RESTING)["actor"].first
KINDS = pytest.mark.parametrize("spec", [DISCRETE, LOPSIDED], ids=["discrete", "box"])
update = quick_jit(sac.update, static_argnames="config")
act = quick_jit(sac.act, static_argnames="config")


def with_steady_returns(seed: int, spec: Spec) -> Rollout:
    """A rollout in which every episode has one step and the same return, so that the return always holds."""
    rollout = random_rollout(seed, RESTING, spec)
    ones: Any = np.ones(rollout.reward.shape, np.float32)
    return dataclasses.replace(
        rollout, reward=ones, terminated=ones.astype(bool), truncated=ones.astype(bool) & False
    )


@functools.cache
def trained(spec: Spec, config: sac.Config) -> tuple[list[sac.State], list[dict[str, Any]]]:
    """The states before the first update and after each of 30, and what each reports."""
    states, reports = [random_sac_state(config, spec)], []
    for i in range(30):
        state, metrics = update(states[-1], with_steady_returns(i, spec), config)
        states.append(state)
        reports.append(metrics)
    return states, reports


def equal(left: Any, right: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


@KINDS
def test_critics_and_temperature_rest_from_the_first_removal_on_and_the_actor_narrows(spec: Spec) -> None:
    states, reports = trained(spec, RESTING)
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        rests, warms_up = i >= FIRST, i < RESTING.warmup_updates
        assert int(reports[i]["gradient_steps"]) == (0 if rests or warms_up else RESTING.gradient_steps)
        rested = equal(before.params["critic"], after.params["critic"])
        assert rested == (rests or warms_up)
        assert equal(before.networks.target_critic, after.networks.target_critic) == rested
        assert bool(before.networks.log_alpha == after.networks.log_alpha) == rested
    widths = [int(mask.sum()) for mask in states[-1].masks.values()]
    assert all(left < size for left, size in zip(widths, RESTING.hidden, strict=True))
    assert float(reports[-1]["distillation"]) > 0


@KINDS
def test_without_distillation_the_learner_goes_on(spec: Spec) -> None:
    _, reports = trained(spec, NEVER)
    assert [int(report["gradient_steps"]) for report in reports[FIRST:]] == [NEVER.gradient_steps] * (
        30 - FIRST
    )


@KINDS
def test_the_student_is_the_mean_of_the_actors_before_and_stays_while_no_neuron_goes(spec: Spec) -> None:
    states, _ = trained(spec, WIDE)
    first = states[FIRST]
    assert first.distillation is not None
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(state.params["actor"] for state in states[1:FIRST]))
    teacher, last = first.distillation.teacher, states[FIRST - 1].params["actor"]
    share = 1.0 / FIRST  # of the actor of this update, which nothing else holds any more
    expected = teacher if spec is DISCRETE else without_spread(teacher)
    for state in states[FIRST:]:
        jax.tree.map(np.testing.assert_array_equal, state.params["actor"], expected)
    assert not equal(teacher, last)
    newest = jax.tree.map(lambda a, b: (a - (1.0 - share) * b) / share, teacher, mean)
    off = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), newest, last)
    assert max(jax.tree.leaves(off)) < 20 * RESTING.learning_rate * RESTING.gradient_steps, "one update away"


@KINDS
def test_it_acts_without_noise_once_it_rests(spec: Spec) -> None:
    obs = jax.random.normal(jax.random.key(1), (64, 3))
    noise = sac.action_noise(jax.random.key(2), (64,), spec)
    for step, config, noisy in ((FIRST - 1, RESTING, True), (FIRST, RESTING, False), (FIRST, NEVER, True)):
        state = random_sac_state(config, spec, step=step)
        loud, silent = (np.asarray(act(state, obs, x, config)) for x in (noise, jnp.zeros_like(noise)))
        assert (np.abs(loud - silent).max() > 1e-3) == noisy, (step, noisy)
        alone = act(sac.acting(state), obs, noise, config)
        np.testing.assert_array_equal(alone, loud)


@KINDS
def test_seeds_side_by_side_rest_together_and_compile_once(spec: Spec) -> None:
    states = [random_sac_state(RESTING, spec), random_sac_state(RESTING, spec)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *(dataclasses.replace(s, step=jnp.int32(0)) for s in states))
    both = dataclasses.replace(both, step=jnp.int32(FIRST - 1))
    count = 0

    def one(state: sac.State, rollout: Rollout) -> Any:
        nonlocal count
        count += 1
        return sac.update(state, rollout, RESTING)

    several = quick_jit(jax.vmap(one, in_axes=(sac.VMAP_AXES, 0), out_axes=(sac.VMAP_AXES, 0)))
    rollout = jax.tree.map(lambda x: np.stack([x, x]), with_steady_returns(0, spec))
    for expected in (RESTING.gradient_steps, 0, 0):
        both, metrics = several(both, rollout)
        assert metrics["gradient_steps"].tolist() == [expected, expected]
    assert count == 1


@pytest.mark.parametrize(
    ("rounds", "moved", "taken_back"), [(ROUNDS, 3.0, 1), (ROUNDS - 1, 3.0, 0), (ROUNDS, 0.0, 0)]
)
def test_what_imitation_does_not_bring_back_is_taken_back(rounds: int, moved: float, taken_back: int) -> None:
    """After ``ROUNDS`` distillations, if the best action is still another one and no return says that it is as good."""
    states, _ = trained(LOPSIDED, RESTING)
    state = states[FIRST + 1]
    threshold: Any = state.pruning.threshold
    assert bool(threshold.on_trial)
    assert state.distillation is not None
    actor = state.distillation.teacher
    head = {**actor["head"], "bias": actor["head"]["bias"] + moved}
    state = dataclasses.replace(
        state,
        networks=dataclasses.replace(
            state.networks, params={**state.params, "actor": {**actor, "head": head}}
        ),
        distillation=state.distillation.replace(rounds=jnp.int32(rounds)),  # type: ignore[attr-defined]
    )
    silent = dataclasses.replace(with_steady_returns(99, LOPSIDED), terminated=jnp.zeros((8, 3), bool))
    after, _ = update(state, silent, RESTING)
    found: Any = after.pruning.threshold
    assert int(found.taken_back) - int(threshold.taken_back) == taken_back
    assert (int(after.pruning.updates) > int(state.pruning.updates)) == (moved == 0.0), (
        "the same policy: more go"
    )
