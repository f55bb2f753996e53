"""Learners while they narrow: their own updates rest, they act without noise, the actor learns from its own mean."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import ppo, sac
from prune_rl.learners.distillation import ROUNDS
from prune_rl.learners.imitation import without_spread
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.rollout import Rollout
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import (
    DISCRETE,
    LOPSIDED,
    SMALL,
    SMALL_SAC,
    random_params,
    random_rollout,
    random_sac_state,
)

PRUNE = Pruning(
    begin=0.2, end=0.9, every=1, rest=True, distill_buffer=240, distill_batch_size=32, distill_ratio=0.5
)


class Learner(NamedTuple):
    """A learner's functions, and a small configuration that prunes nothing."""

    module: Any
    config: Any
    gradient_steps: int
    update: Any
    act: Any

    def with_prune(self, prune: Pruning) -> Any:
        return dataclasses.replace(self.config, prune=prune)

    def state(self, config: Any, spec: Spec, step: int = 0) -> Any:
        """After ``step`` updates, with random networks."""
        if self.module is sac:
            return random_sac_state(config, spec, step=step)
        state = ppo.init(jax.random.key(0), config, spec)
        return dataclasses.replace(state, params=random_params(1, state.params), step=jnp.int32(step))

    def with_actor(self, state: Any, actor: Any) -> Any:
        params = {**state.params, "actor": actor}
        if self.module is sac:
            return dataclasses.replace(state, networks=dataclasses.replace(state.networks, params=params))
        return dataclasses.replace(state, params=params)


def learner(module: Any, config: Any, gradient_steps: int) -> Learner:
    config = dataclasses.replace(config, total_timesteps=60 * 3 * 8, hidden=(16, 12))
    jitted = [quick_jit(f, static_argnames="config") for f in (module.update, module.act)]
    return Learner(module, config, gradient_steps, *jitted)


PPO = learner(ppo, SMALL, SMALL.update_epochs * SMALL.num_minibatches)
SAC = learner(sac, SMALL_SAC, SMALL_SAC.gradient_steps)
WIDE = dataclasses.replace(PRUNE, sparsity=0.0)
NEVER = dataclasses.replace(PRUNE, distill_ratio=0.0)
AWAKE = dataclasses.replace(PRUNE, rest=False)
FIRST = mask_schedules(PPO.with_prune(PRUNE))["actor"].first
LEARNERS = pytest.mark.parametrize("learner", [PPO, SAC], ids=["ppo", "sac"])
KINDS = pytest.mark.parametrize("spec", [DISCRETE, LOPSIDED], ids=["discrete", "box"])


def with_steady_returns(seed: int, spec: Spec) -> Rollout:
    """A rollout in which every episode has one step and the same return, so that the return always holds."""
    rollout = random_rollout(seed, PPO.config, spec)
    ones: Any = np.ones(rollout.reward.shape, np.float32)
    return dataclasses.replace(
        rollout, reward=ones, terminated=ones.astype(bool), truncated=ones.astype(bool) & False
    )


@functools.cache
def trained(learner: Learner, spec: Spec, prune: Pruning) -> tuple[list[Any], list[dict[str, Any]]]:
    """The states before the first update and after each of 30, and what each reports."""
    config = learner.with_prune(prune)
    states, reports = [learner.state(config, spec)], []
    for i in range(30):
        state, metrics = learner.update(states[-1], with_steady_returns(i, spec), config)
        states.append(state)
        reports.append(metrics)
    return states, reports


def equal(left: Any, right: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


@LEARNERS
@KINDS
def test_all_but_the_actor_rests_from_the_first_removal_on_and_the_actor_narrows(
    learner: Learner, spec: Spec
) -> None:
    states, reports = trained(learner, spec, PRUNE)
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        rests, warms_up = i >= FIRST, i < learner.config.warmup_updates
        assert int(reports[i]["gradient_steps"]) == (0 if rests or warms_up else learner.gradient_steps)
        rested = equal(before.params["critic"], after.params["critic"])
        assert rested == (rests or warms_up)
        if learner is SAC:
            assert equal(before.networks.target_critic, after.networks.target_critic) == rested
            assert bool(before.networks.log_alpha == after.networks.log_alpha) == rested
    widths = [int(mask.sum()) for mask in states[-1].masks.values()]
    assert all(left < size for left, size in zip(widths, learner.config.hidden, strict=True))
    assert float(reports[-1]["distillation"]) > 0


@LEARNERS
@KINDS
@pytest.mark.parametrize("prune", [NEVER, AWAKE], ids=["no distillation", "no rest"])
def test_otherwise_the_learner_goes_on(learner: Learner, spec: Spec, prune: Pruning) -> None:
    _, reports = trained(learner, spec, prune)
    steps = [int(report["gradient_steps"]) for report in reports[FIRST:]]
    assert steps == [learner.gradient_steps] * (30 - FIRST)


@LEARNERS
@KINDS
def test_the_student_is_the_mean_of_the_actors_before_and_stays_while_no_neuron_goes(
    learner: Learner, spec: Spec
) -> None:
    states, _ = trained(learner, spec, WIDE)
    first = states[FIRST]
    assert first.distillation is not None
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(state.params["actor"] for state in states[1:FIRST]))
    teacher, last = first.distillation.teacher, states[FIRST - 1].params["actor"]
    share = 1.0 / FIRST  # of the actor of this update, which nothing else holds any more
    expected = without_spread(teacher) if learner is SAC and spec is not DISCRETE else teacher
    for state in states[FIRST:]:
        jax.tree.map(np.testing.assert_array_equal, state.params["actor"], expected)
    assert not equal(teacher, last)
    newest = jax.tree.map(lambda a, b: (a - (1.0 - share) * b) / share, teacher, mean)
    off = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), newest, last)
    largest = 20 * learner.config.learning_rate * learner.gradient_steps
    assert max(jax.tree.leaves(off)) < largest, "one update away"


@LEARNERS
def test_returns_of_the_policy_with_noise_are_forgotten(learner: Learner) -> None:
    states, _ = trained(learner, DISCRETE, WIDE)
    before, begun, later = (states[i].pruning.threshold for i in (FIRST - 1, FIRST, -1))
    assert float(before.reference) == pytest.approx(1.0)
    assert not np.isfinite(begun.reference)
    assert [float(x) for x in (begun.waited, begun.weight, begun.variance, begun.noise)] == [0.0] * 4
    assert not np.any(states[FIRST].returns.fresh)
    assert float(later.reference) == pytest.approx(1.0)


@LEARNERS
@KINDS
def test_it_acts_without_noise_once_it_rests(learner: Learner, spec: Spec) -> None:
    obs = jax.random.normal(jax.random.key(1), (64, 3))
    noise = learner.module.action_noise(jax.random.key(2), (64,), spec)
    for step, prune, noisy in ((FIRST - 1, PRUNE, True), (FIRST, PRUNE, False), (FIRST, NEVER, True)):
        config = learner.with_prune(prune)
        state = learner.state(config, spec, step)
        loud, silent = (
            np.asarray(learner.act(state, obs, x, config)) for x in (noise, jnp.zeros_like(noise))
        )
        assert (np.abs(loud - silent).max() > 1e-3) == noisy, (step, noisy)
        if learner is SAC:
            np.testing.assert_array_equal(learner.act(sac.acting(state), obs, noise, config), loud)


@LEARNERS
@KINDS
def test_seeds_side_by_side_rest_together_and_compile_once(learner: Learner, spec: Spec) -> None:
    module, config = learner.module, learner.with_prune(PRUNE)
    states = [learner.state(config, spec), learner.state(config, spec)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *(dataclasses.replace(s, step=jnp.int32(0)) for s in states))
    both = dataclasses.replace(both, step=jnp.int32(FIRST - 1))
    count = 0

    def one(state: Any, rollout: Rollout) -> Any:
        nonlocal count
        count += 1
        return module.update(state, rollout, config)

    several = quick_jit(jax.vmap(one, in_axes=(module.VMAP_AXES, 0), out_axes=(module.VMAP_AXES, 0)))
    rollout = jax.tree.map(lambda x: np.stack([x, x]), with_steady_returns(0, spec))
    for expected in (learner.gradient_steps, 0, 0):
        both, metrics = several(both, rollout)
        assert metrics["gradient_steps"].tolist() == [expected, expected]
    assert count == 1


@LEARNERS
@pytest.mark.parametrize(
    ("rounds", "moved", "taken_back"), [(ROUNDS, 3.0, 1), (ROUNDS - 1, 3.0, 0), (ROUNDS, 0.0, 0)]
)
def test_what_imitation_does_not_bring_back_is_taken_back(
    learner: Learner, rounds: int, moved: float, taken_back: int
) -> None:
    """After ``ROUNDS`` distillations, if the best action is still another one and no return says that it is as good."""
    states, _ = trained(learner, LOPSIDED, PRUNE)
    state = states[FIRST + 1]
    threshold: Any = state.pruning.threshold
    assert bool(threshold.on_trial)
    assert state.distillation is not None
    actor = state.distillation.teacher
    head = {**actor["head"], "bias": actor["head"]["bias"] + moved}
    state = learner.with_actor(state, {**actor, "head": head})
    state = dataclasses.replace(state, distillation=state.distillation.replace(rounds=jnp.int32(rounds)))
    silent = dataclasses.replace(with_steady_returns(99, LOPSIDED), terminated=jnp.zeros((8, 3), bool))
    after, _ = learner.update(state, silent, learner.with_prune(PRUNE))
    found: Any = after.pruning.threshold
    assert int(found.taken_back) - int(threshold.taken_back) == taken_back
    assert (int(after.pruning.updates) > int(state.pruning.updates)) == (moved == 0.0), (
        "the same policy: more go"
    )
