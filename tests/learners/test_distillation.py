"""Distillation from the policy of before the first removal: what is stored, what is learned, and when."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prune_rl.learners import ppo, sac
from prune_rl.learners.distillation import (
    AVERAGED,
    ENOUGH,
    Distance,
    Distillation,
    distill,
    init_distillation,
    settle_teacher,
    student,
    updates_apart,
    watch,
)
from prune_rl.learners.imitation import (
    BEST_ACTION,
    CATEGORICAL,
    best_action_divergence,
    categorical_divergence,
    clipped_divergence,
    without_spread,
)
from prune_rl.learners.mask_rules import mask_schedules, rests
from prune_rl.learners.networks import apply_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.pruning.rules import PruningState
from prune_rl.spaces import Box, Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, SMALL, random_params, random_rollout

PRUNE = Pruning(distill_buffer=72, distill_ratio=0.1, distill_batch_size=32, distill_learning_rate=0.02)
CONFIG = dataclasses.replace(SMALL, prune=PRUNE, activation="tanh", total_timesteps=100 * 24)
AT_REST = dataclasses.replace(CONFIG, prune=dataclasses.replace(PRUNE, rest=True))
RESTING = sac.Config(
    total_timesteps=100 * 24,
    num_envs=3,
    num_steps=8,
    hidden=(6, 5),
    learning_starts=24,
    buffer_size=240,
    prune=AT_REST.prune,
)
FIRST = mask_schedules(RESTING)["actor"].first
assert mask_schedules(CONFIG)["actor"].first == FIRST
RNG = np.random.default_rng(0)
RESTS_OR_NOT = pytest.mark.parametrize("config", [CONFIG, AT_REST], ids=["learns", "rests"])


def start(seed: int = 1) -> tuple[ppo.State, Distillation]:
    state = ppo.init(jax.random.key(seed), CONFIG, DISCRETE)
    stats = RunningStatistics(jnp.ones(3), jnp.full(3, 4.0), jnp.float32(100.0))
    state = dataclasses.replace(state, params=random_params(seed, state.params), obs_stats=stats)
    assert state.distillation is not None
    return state, state.distillation


def watch_one(
    distillation: Any, state: Any, pruning: PruningState, rollout: int, step: int, **changed: Any
) -> Any:
    """``watch`` of a rollout by the state's actor, or by what is ``changed``."""
    seen = {"actor": state.params["actor"], "obs_stats": state.obs_stats, "config": CONFIG} | changed
    obs = jnp.asarray(random_rollout(rollout, CONFIG, DISCRETE).obs)
    return watch(distillation, pruning, obs=obs, step=jnp.int32(step), **seen)


def watched(state: ppo.State, rollouts: int, updates: int = 1) -> Distillation:
    """The distillation after so many rollouts since ``updates`` mask updates; the state's actor is the teacher."""
    distillation = state.distillation
    for i in range(rollouts + 1):
        pruning = state.pruning._replace(updates=jnp.int32(0 if i == 0 else updates))
        distillation = watch_one(distillation, state, pruning, i, FIRST if i == 0 else FIRST + 1)
    assert distillation is not None
    return distillation


def narrowed(pruning: PruningState, updates: int = 1, on_trial: bool = True) -> PruningState:
    threshold: Any = pruning.threshold
    threshold = threshold._replace(on_trial=jnp.asarray(on_trial))
    return pruning._replace(updates=jnp.int32(updates), threshold=threshold)


def learner(config: ppo.Config) -> Any:
    return quick_jit(
        lambda state, pruning, actor, stats, key, step: distill(
            state, pruning, actor, Distance(categorical_divergence, stats, config), key, step, 16.0
        )
    )


LEARN = {config: learner(config) for config in (CONFIG, AT_REST)}


def learn(
    state: ppo.State,
    distillation: Distillation,
    actor: Any,
    pruning: Any,
    step: int = 0,
    config: ppo.Config = CONFIG,
) -> Any:
    return LEARN[config](distillation, pruning, actor, state.obs_stats, jax.random.key(3), jnp.int32(step))


def distance(state: ppo.State, distillation: Distillation, actor: Any) -> float:
    return float(Distance(categorical_divergence, state.obs_stats, CONFIG).of_last(distillation, actor))


@RESTS_OR_NOT
def test_the_teacher_is_the_actor_of_before_the_first_removal(config: ppo.Config) -> None:
    state, distillation = start()
    pruning, later = state.pruning, random_params(7, state.params["actor"])
    before = watch_one(distillation, state, pruning, 0, FIRST, config=config)
    jax.tree.map(np.testing.assert_array_equal, before.teacher, state.params["actor"])
    stats = state.obs_stats.replace(mean=jnp.zeros(3))  # type: ignore[attr-defined]
    pruning = pruning._replace(updates=jnp.int32(1))
    after = watch_one(before, state, pruning, 0, FIRST + 1, actor=later, obs_stats=stats, config=config)
    jax.tree.map(np.testing.assert_array_equal, after.teacher, state.params["actor"])
    np.testing.assert_array_equal(after.obs_stats.mean, state.obs_stats.mean)


def test_arrays_that_shrank_leave_the_teacher_as_wide_as_it_was() -> None:
    state, _ = start()
    distillation = watched(state, 1)
    small = ppo.shrink(state, {"actor/layer_0": 2, "actor/layer_1": 3}, CONFIG)
    assert small.distillation is not None
    jax.tree.map(np.testing.assert_array_equal, small.distillation, state.distillation)
    after = watch_one(distillation, small, narrowed(small.pruning), 5, FIRST + 1)
    jax.tree.map(np.testing.assert_array_equal, after.teacher, distillation.teacher)
    assert int(after.stored) == int(distillation.stored) + 1


def test_the_last_rollouts_are_stored_with_the_outputs_of_the_teacher() -> None:
    state, _ = start()
    assert watched(state, 0).obs.shape == (updates_apart(CONFIG), 24, 3)
    few = dataclasses.replace(CONFIG, num_steps=1024)
    assert updates_apart(few) == 1
    roomy = init_distillation(state.params["actor"], state.obs_stats, few)
    assert roomy is not None
    assert roomy.obs.shape == (1, 3072, 3)
    extended = dataclasses.replace(few, total_timesteps=2 * few.total_timesteps)
    longer = init_distillation(state.params["actor"], state.obs_stats, extended)
    assert longer is not None
    assert longer.obs.shape == roomy.obs.shape, "a finished run may be extended"
    distillation = watched(state, 3)
    assert int(distillation.stored) == 4
    for i in range(4):
        obs = np.asarray(random_rollout(i, CONFIG, DISCRETE).obs).reshape(24, 3)
        np.testing.assert_array_equal(distillation.obs[i], obs)
        seen = np.clip((obs - 1.0) / np.sqrt(4.0 + 1e-8), -10, 10)
        expected = apply_mlp(state.params["actor"], jnp.asarray(seen), "tanh")
        np.testing.assert_allclose(distillation.outputs[i], expected, rtol=1e-4, atol=1e-5)


def test_a_full_buffer_forgets_the_oldest_rollout() -> None:
    state, distillation = start()
    two = dataclasses.replace(distillation, obs=distillation.obs[:2], outputs=distillation.outputs[:2])
    distillation = watched(dataclasses.replace(state, distillation=two), 4)
    for place, rollout in ((0, 4), (1, 3)):
        obs = np.asarray(random_rollout(rollout, CONFIG, DISCRETE).obs).reshape(24, 3)
        np.testing.assert_array_equal(distillation.obs[place], obs)


@RESTS_OR_NOT
def test_a_teacher_that_stays_labels_all_that_is_stored(config: ppo.Config) -> None:
    state, _ = start()
    distillation, none = watched(state, 3, updates=0), state.pruning
    stale = dataclasses.replace(distillation, outputs=distillation.outputs + 1.0)
    one, two = (none._replace(updates=jnp.int32(updates)) for updates in (1, 2))
    for before, after, step in ((none, one, FIRST + 2), (none, none, FIRST), (one, one, FIRST)):
        settled = settle_teacher(stale, before, after, jnp.int32(step), config)
        assert settled is not None
        np.testing.assert_allclose(settled.outputs[:4], distillation.outputs[:4], rtol=1e-5, atol=1e-6)
    for before, after, step in ((none, none, FIRST - 1), (one, two, FIRST + 1)):
        same = settle_teacher(stale, before, after, jnp.int32(step), config)
        assert same is not None
        np.testing.assert_array_equal(same.outputs, stale.outputs)


@RESTS_OR_NOT
def test_a_run_that_was_extended_learns_again_and_has_another_teacher(config: ppo.Config) -> None:
    state, _ = start()
    distillation = watched(state, 3)
    small = ppo.shrink(state, {"actor/layer_0": 4, "actor/layer_1": 3}, CONFIG)
    small = dataclasses.replace(small, params=random_params(8, small.params))
    pruning = small.pruning._replace(updates=jnp.int32(5))
    stats = small.obs_stats.replace(mean=jnp.zeros(3))  # type: ignore[attr-defined]
    after = watch_one(distillation, small, pruning, 4, FIRST, obs_stats=stats, config=config)
    after = settle_teacher(after, pruning, pruning, jnp.int32(FIRST), config)
    assert after is not None
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), after, distillation)
    for rollout in range(5):
        obs = np.asarray(random_rollout(rollout, CONFIG, DISCRETE).obs).reshape(24, 3)
        seen = jnp.asarray(np.clip(obs / np.sqrt(4.0 + 1e-8), -10, 10))
        expected = apply_mlp(small.params["actor"], seen, "tanh")
        np.testing.assert_allclose(after.outputs[rollout], expected, rtol=1e-4, atol=1e-5)
    begun = student(after, small.params["actor"], jnp.int32(FIRST), config, CATEGORICAL)
    jax.tree.map(np.testing.assert_array_equal, begun, small.params["actor"])
    later = watch_one(distillation, small, pruning, 4, FIRST + 1, obs_stats=stats, config=config)
    jax.tree.map(np.testing.assert_array_equal, later.teacher, distillation.teacher)


def test_the_student_comes_back_to_the_teacher() -> None:
    state, _ = start()
    distillation, other = watched(state, 5), random_params(9, state.params["actor"])
    before = distance(state, distillation, other)
    learned, later = learn(state, distillation, other, narrowed(state.pruning))
    assert before > 0.1
    assert distance(state, distillation, learned) < 0.1 * before
    assert int(later.rounds) == int(distillation.rounds) + 1


@pytest.mark.parametrize("why", ["no trial", "not due", "near enough", "a long trial"])
def test_nothing_is_learned_where_there_is_no_reason(why: str) -> None:
    state, _ = start()
    distillation, actor = watched(state, 5), random_params(9, state.params["actor"])
    if why == "near enough":
        actor = jax.tree.map(lambda x: x * 1.0005, state.params["actor"])
        assert 0.0 < distance(state, distillation, actor) < ENOUGH
    pruning = narrowed(state.pruning, on_trial=why != "no trial")
    if why == "a long trial":
        threshold: Any = pruning.threshold
        pruning = pruning._replace(threshold=threshold._replace(waited=jnp.float32(16.0)))
    learned, later = learn(state, distillation, actor, pruning, step=1 if why == "not due" else 0)
    jax.tree.map(np.testing.assert_array_equal, learned, actor)
    jax.tree.map(np.testing.assert_array_equal, later, distillation)


@pytest.mark.parametrize(("updates", "learns"), [(0, False), (1, True)])
def test_where_the_learner_rests_imitation_goes_on(updates: int, learns: bool) -> None:
    state, _ = start()
    distillation, actor = watched(state, 5), random_params(9, state.params["actor"])
    pruning = narrowed(state.pruning, updates, on_trial=False)
    learned, later = learn(state, distillation, actor, pruning, config=AT_REST)
    near, far = distance(state, distillation, learned), distance(state, distillation, actor)
    assert near < 0.1 * far if learns else near == far
    assert int(later.rounds) == int(learns)


def test_rounds_are_counted_from_the_last_removal() -> None:
    state, _ = start()
    distillation, pruning = dataclasses.replace(watched(state, 3), rounds=jnp.int32(5)), state.pruning
    for updates, rounds in (((1, 1), 5), ((1, 2), 0)):
        before, after = (pruning._replace(updates=jnp.int32(x)) for x in updates)
        settled = settle_teacher(distillation, before, after, jnp.int32(FIRST + 1), CONFIG)
        assert settled is not None
        assert int(settled.rounds) == rounds


def test_where_the_learner_rests_the_teacher_is_the_mean_of_the_last_actors() -> None:
    state = sac.init(jax.random.key(0), RESTING, CONTINUOUS)
    obs = jnp.asarray(random_rollout(0, RESTING, CONTINUOUS).obs)
    actors = [random_params(i, state.params["actor"]) for i in range(3)]

    def after(distillation: Any, actor: Any, step: int = 0) -> Any:
        return watch(distillation, state.pruning, actor, state.obs_stats, obs, jnp.int32(step), RESTING)

    distillation: Any = state.distillation
    for actor in actors:
        distillation = after(distillation, actor)
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *actors)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), distillation.teacher, mean
    )
    # The share of a new one does not vanish, so that an early policy is forgotten.
    late = after(distillation.replace(stored=jnp.int32(10 * AVERAGED)), actors[0])
    moved = jax.tree.map(lambda old, new: old + (new - old) / AVERAGED, distillation.teacher, actors[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), late.teacher, moved)
    settled = after(distillation, actors[0], FIRST + 1)
    jax.tree.map(np.testing.assert_array_equal, settled.teacher, distillation.teacher)


def test_the_student_starts_as_the_teacher_at_one_update() -> None:
    state = sac.init(jax.random.key(0), RESTING, CONTINUOUS)
    actor = random_params(1, state.params["actor"])
    distillation: Any = state.distillation
    distillation = distillation.replace(teacher=random_params(2, actor))
    never = dataclasses.replace(RESTING, prune=dataclasses.replace(PRUNE, distill_ratio=0.0))
    for step in range(FIRST - 2, FIRST + 3):
        begun = student(distillation, actor, jnp.int32(step), RESTING, BEST_ACTION)
        expected = without_spread(distillation.teacher) if step == FIRST else actor
        jax.tree.map(np.testing.assert_array_equal, begun, expected)
        assert bool(rests(jnp.int32(step), RESTING)) == (step >= FIRST)
        other = student(distillation, actor, jnp.int32(step), never, BEST_ACTION)
        jax.tree.map(np.testing.assert_array_equal, other, actor)
    assert not rests(jnp.int32(FIRST), never)
    assert not rests(jnp.int32(FIRST), dataclasses.replace(RESTING, prune=None))


def test_without_spread_the_means_are_the_same() -> None:
    config = dataclasses.replace(RESTING, skip=True)
    actor = random_params(1, sac.init(jax.random.key(0), config, CONTINUOUS).params["actor"])
    obs = jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)
    before, after = (apply_mlp(x, obs, "relu") for x in (actor, without_spread(actor)))
    size = before.shape[1] // 2
    np.testing.assert_allclose(after[:, :size], before[:, :size], rtol=1e-6)
    np.testing.assert_allclose(after[:, size:], np.tile(actor["head"]["bias"][size:], (7, 1)), rtol=1e-6)
    assert np.std(before[:, size:], axis=0).min() > 1e-3


def test_removed_neurons_stay_zero() -> None:
    state, _ = start()
    distillation, actor = watched(state, 5), random_params(9, state.params["actor"])
    gone = jnp.arange(6) >= 4
    actor["layer_0"] = jax.tree.map(lambda x: jnp.where(gone, 0.0, x), actor["layer_0"])
    kernel = actor["layer_1"]["kernel"]
    actor["layer_1"]["kernel"] = jnp.where(gone[:, None], 0.0, kernel)
    learned, _ = learn(state, distillation, actor, narrowed(state.pruning))
    assert not np.any(np.asarray(learned["layer_0"]["kernel"])[:, 4:])
    assert not np.any(np.asarray(learned["layer_0"]["bias"])[4:])
    assert not np.any(np.asarray(learned["layer_1"]["kernel"])[4:])
    assert np.any(np.asarray(learned["layer_1"]["kernel"])[:4] != np.asarray(kernel)[:4])


@pytest.mark.parametrize("prune", [None, Pruning(tolerance=None), Pruning(distill_ratio=0.0)])
def test_where_nothing_is_distilled_the_state_holds_nothing(prune: Pruning | None) -> None:
    state = ppo.init(jax.random.key(0), dataclasses.replace(CONFIG, prune=prune), CONTINUOUS)
    assert state.distillation is None


def test_divergences_are_those_of_the_policies() -> None:
    outputs, others = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 5, 4)))
    softmax = [np.asarray(jax.nn.softmax(x)) for x in (outputs, others)]
    expected = scipy.stats.entropy(softmax[0].T, softmax[1].T)
    np.testing.assert_allclose(categorical_divergence(outputs, others), expected, rtol=1e-4)
    log_std = jnp.asarray(RNG.normal(size=4), jnp.float32)
    scaled = np.square(np.asarray(outputs - others) / np.exp(np.asarray(log_std))[None])
    unbounded = clipped_divergence(log_std, jnp.stack([jnp.full(4, -jnp.inf), jnp.full(4, jnp.inf)]))
    np.testing.assert_allclose(unbounded(outputs, others), 0.5 * scaled.sum(1), rtol=1e-4)


@pytest.mark.parametrize(("mean", "other", "same"), [(0.6, 0.8, False), (1.6, 1.8, True), (-1.6, 1.6, False)])
def test_ppo_compares_the_actions_that_the_environment_sees(mean: float, other: float, same: bool) -> None:
    # A Gaussian of mean 1 is at the bound, 0.4 in the environment's units.
    spec = Spec(3, Box((-0.4, -0.4), (0.4, 0.4), (2,)))
    state = ppo.init(jax.random.key(0), CONFIG, spec)
    assert state.distillation is not None

    def constant(value: float) -> Any:
        actor = jax.tree.map(jnp.zeros_like, state.params["actor"])
        actor["head"]["bias"] = jnp.full(2, value)
        return {**actor, "log_std": jnp.full(2, -3.0)}

    state = dataclasses.replace(
        state,
        params={**state.params, "actor": constant(mean)},
        distillation=dataclasses.replace(state.distillation, teacher=constant(other)),
        pruning=state.pruning._replace(updates=jnp.int32(1)),
        step=jnp.int32(FIRST),
    )
    _, metrics = quick_jit(ppo.update, static_argnums=2)(state, random_rollout(0, CONFIG, spec), CONFIG)
    if same:
        assert metrics["distillation"] < 1e-6
    else:
        assert metrics["distillation"] > 1.0


def test_best_actions_are_compared_as_they_are_squashed() -> None:
    outputs, others = (jnp.asarray(x, jnp.float32) for x in RNG.normal(size=(2, 5, 4)))
    expected = np.square(np.tanh(outputs[:, :2]) - np.tanh(others[:, :2])).sum(1)
    np.testing.assert_allclose(best_action_divergence(outputs, others), expected, rtol=1e-4)
    spreads = jnp.concatenate([outputs[:, :2], others[:, 2:]], axis=1)
    np.testing.assert_array_equal(best_action_divergence(outputs, spreads), np.zeros(5))
    saturated = best_action_divergence(
        jnp.array([[5.0, -1.0], [-4.0, -1.0]]), jnp.array([[9.0, -1.0], [4.0, -1.0]])
    )
    np.testing.assert_allclose(saturated, [0.0, 4.0], atol=1e-2)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("distill_ratio", -0.1),
        ("distill_ratio", float("nan")),
        ("distill_batch_size", 0),
        ("distill_buffer", 0),
        ("distill_buffer", 10**12),
        ("distill_learning_rate", 0.0),
        ("distill_learning_rate", 1.5),
    ],
)
def test_an_option_that_cannot_work_is_named(option: str, value: float) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=rf"prune\.{option} must .*, got"):
        Pruning(**options).check((8,))
