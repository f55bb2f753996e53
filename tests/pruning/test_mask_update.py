"""One core for its three users: `dynamic_pruning`, PPO and SAC have the same schedule, gate and energy rule."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prune_rl.dependency.find_groups import find_groups
from prune_rl.learners import ppo, sac
from prune_rl.learners.pruning_config import Pruning
from prune_rl.pruning.mask_schedule import MaskSchedule, target_width
from prune_rl.pruning.mask_update import mask_update
from prune_rl.pruning.rules import PruningRules, init_pruning
from prune_rl.pruning.targets import Target
from prune_rl.pruning.transforms.dynamic_pruning import dynamic_pruning
from tests.compilation import quick_jit
from tests.learners.random_rollouts import DISCRETE, SMALL, SMALL_SAC, random_rollout
from tests.learners.schedules import by_schedule

UPDATES = 20
HIDDEN = (24, 16)
USERS = ("dynamic_pruning", "ppo", "sac")


class Seen(NamedTuple):
    """After each training update: neurons left by layer, mask updates made, the reference."""

    widths: dict[str, list[int]]
    made: list[int]
    reference: list[float]


def watch(states: list[Any]) -> Seen:
    widths = {name: [int(s.masks[name].sum()) for s in states] for name in states[0].masks}
    return Seen(widths, [int(s.updates) for s in states], [round(float(s.reference), 3) for s in states])


def with_dynamic_pruning(options: Pruning, performances: list[float] | None) -> Seen:
    rng = np.random.default_rng(0)
    sizes = (3, *HIDDEN, 2)
    params = {
        f"layer_{i}": jnp.asarray(rng.normal(size=shape), jnp.float32)
        for i, shape in enumerate(itertools.pairwise(sizes))
    }
    x = jnp.asarray(rng.normal(size=(32, 3)), jnp.float32)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.tanh(x @ p["layer_0"]) @ p["layer_1"]) @ p["layer_2"]

    tx = dynamic_pruning(
        optax.adam(1e-3), find_groups(fn, params, x), total_updates=UPDATES, sparsity=options.sparsity,
        begin=options.begin, end=options.end, every=options.updates_apart(UPDATES), energy=options.energy,
        gate=options.gate, min_width=options.floor(skip=False),
    )  # fmt: skip

    @quick_jit
    def step(params: Any, state: Any, performance: jax.Array) -> Any:
        grads = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, x) - 1.0)))(params)
        updates, state = tx.update(grads, state, params, performance=performance)
        return optax.apply_updates(params, updates), state

    state, states = tx.init(params), []
    for i in range(UPDATES):
        params, state = step(params, state, jnp.float32(0.0 if performances is None else performances[i]))
        states.append(state.pruning)
    return watch(states)


def with_learner(learner: Any, small: Any, options: Pruning, performances: list[float] | None) -> Seen:
    total = UPDATES * small.steps_per_update
    config = dataclasses.replace(small, hidden=HIDDEN, total_timesteps=total, prune=options)
    if learner is sac:
        config = dataclasses.replace(config, learning_starts=0)
    state, states = learner.init(jax.random.key(0), config, DISCRETE), []
    update = quick_jit(functools.partial(learner.update, config=config))
    for i in range(UPDATES):
        if performances is not None:
            # One episode of this return, and nothing before it.
            fresh = dataclasses.replace(
                state.returns, finished=jnp.int32(0), under_way=jnp.zeros_like(state.returns.under_way)
            )
            rollout = random_rollout(i, config, DISCRETE, ends=0.0)
            reward = np.zeros_like(rollout.reward)
            reward[-1, 0] = performances[i]
            ended = np.zeros_like(rollout.terminated)
            ended[-1, 0] = True
            rollout = dataclasses.replace(rollout, reward=jnp.asarray(reward), terminated=jnp.asarray(ended))
            state = dataclasses.replace(state, returns=fresh)
        else:
            rollout = random_rollout(i, config, DISCRETE)
        state, _ = update(state, rollout)
        states.append(state.pruning)
    return watch(states)


def run(user: str, options: Pruning, performances: list[float] | None = None) -> Seen:
    if user == "dynamic_pruning":
        return with_dynamic_pruning(options, performances)
    learner, small = {"ppo": (ppo, SMALL), "sac": (sac, SMALL_SAC)}[user]
    return with_learner(learner, small, options, performances)


# Mask updates at 4, 6, 8, 10 and 12 of 20.
WINDOW = by_schedule(sparsity=0.75, begin=0.2, end=0.6, every=2, min_width=1)


@pytest.mark.parametrize("user", USERS)
def test_the_same_masks_at_the_same_updates(user: str) -> None:
    seen = run(user, WINDOW)
    assert seen.made == [0] * 3 + [1] * 2 + [2] * 2 + [3] * 2 + [4] * 2 + [5] * 9
    for size, widths in zip(HIDDEN, seen.widths.values(), strict=True):
        expected = [
            size - int(np.floor(0.75 * size * (1 - (1 - made / 5) ** 3) + 1e-4)) for made in seen.made
        ]
        assert widths == expected
        assert widths[-1] == target_width(size, 0.75, 1)


@pytest.mark.parametrize("user", USERS)
def test_a_window_without_a_multiple_of_every_has_one_mask_update_at_its_end(user: str) -> None:
    seen = run(user, dataclasses.replace(WINDOW, every=50))
    assert seen.made == [0] * 11 + [1] * 9
    for size, widths in zip(HIDDEN, seen.widths.values(), strict=True):
        assert widths == [size] * 11 + [target_width(size, 0.75, 1)] * 9


@pytest.mark.parametrize("user", USERS)
def test_with_an_energy_rule_too_the_window_ends(user: str) -> None:
    seen = run(user, dataclasses.replace(WINDOW, energy=0.05))
    assert seen.made[-1] == 5
    for size, widths in zip(HIDDEN, seen.widths.values(), strict=True):
        assert target_width(size, 0.75, 1) < widths[11] < size, "the rule binds"
        assert len(set(widths[11:])) == 1, "nothing goes after the end of the schedule"


@pytest.mark.parametrize("user", USERS)
def test_a_closed_gate_holds_mask_updates_back_and_they_are_made_up_for(user: str) -> None:
    performances = [100.0] * 20
    # Closed at the due updates 6 and 8; the best is seen at 5, where none is due.
    performances[4], performances[5], performances[7] = 200.0, 150.0, 179.0
    performances[8:] = [190.0] * 12
    seen = run(user, dataclasses.replace(WINDOW, gate=0.1), performances)
    assert seen.reference == [100.0] * 4 + [200.0] * 16, "the highest at any update, not only at due ones"
    assert seen.made == [0] * 3 + [1] * 6 + [2] * 2 + [3] * 2 + [4] * 2 + [5] * 5
    for size, widths in zip(HIDDEN, seen.widths.values(), strict=True):
        assert widths[-1] == target_width(size, 0.75, 1)


@pytest.mark.parametrize("gate", [None, 10.0])
@pytest.mark.parametrize("learner", [ppo, sac], ids=["ppo", "sac"])
def test_the_critic_can_go_at_a_time_of_its_own(learner: Any, gate: float | None) -> None:
    options = dataclasses.replace(
        WINDOW, critic=True, critic_sparsity=0.5, begin=0.4, end=0.7, critic_begin=0.1, critic_end=0.5,
        score="surgeon", refit=True, gate=gate,
    )  # fmt: skip
    seen = run("ppo" if learner is ppo else "sac", options, [100.0] * UPDATES)
    for network, first, number, sparsity in (("actor", 8, 4, 0.75), ("critic", 2, 5, 0.5)):
        made = [min(max(0, (count - first) // 2 + 1), number) for count in range(1, UPDATES + 1)]
        for layer, size in enumerate(HIDDEN):
            shares = [sparsity * (1 - (1 - m / number) ** 3) for m in made]
            expected = [size - int(np.floor(share * size + 1e-4)) for share in shares]
            assert seen.widths[f"{network}/layer_{layer}"] == expected


# --- what is computed, and when


def counted(fn: Callable[[], Any], seen: list[int]) -> Callable[[], Any]:
    """``fn``, which counts at run time how often it is evaluated."""

    def wrapped() -> Any:
        jax.debug.callback(lambda: seen.append(1))
        return fn()

    return wrapped


@pytest.mark.parametrize("gate", [None, 0.1])
def test_scores_and_refit_run_only_when_due_open_and_incomplete(gate: float | None) -> None:
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 16)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(16, 2)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(32, 3)), jnp.float32)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["a"]) @ p["b"]

    groups = find_groups(fn, params, x)
    target = Target("all", groups, 0.5, score="surgeon", refit=True, network=fn)
    rules = PruningRules(MaskSchedule.create(40, 0.15, 0.6, 8), (target,), gate=gate)
    rules.check()
    evaluations: list[int] = []

    @quick_jit
    def step(state: Any, params: Any, count: jax.Array, performance: jax.Array) -> Any:
        zero = {name: jnp.zeros(group.size) for name, group in groups.items()}
        return mask_update(
            rules, state, params, (), zero, count=count, performance=performance,
            draw_inputs=counted(lambda: {"all": (x,)}, evaluations),
        )  # fmt: skip

    state, when = init_pruning(groups), []
    for count in range(1, 41):
        low = gate is not None and count == 8
        pruned = step(state, params, jnp.int32(count), jnp.float32(50.0 if low else 100.0))
        jax.effects_barrier()
        when += [count] * len(evaluations)
        evaluations.clear()
        state, params = pruned.state, pruned.params
    # Due at 8, 16 and 24; what the gate held back at 8 is made up for at 32, and at 40 the schedule is complete.
    assert when == ([8, 16, 24] if gate is None else [16, 24, 32])
    assert int(state.masks["a"].sum()) == 8


@pytest.mark.parametrize("learner", [ppo, sac], ids=["ppo", "sac"])
def test_a_learner_draws_for_the_mask_update_only_when_it_is_due(learner: Any) -> None:
    """What a mask update looks at is computed inside its conditional, not at every update."""
    small = SMALL if learner is ppo else SMALL_SAC
    prune = by_schedule(score="surgeon", refit=True, sparsity=0.5)
    config = dataclasses.replace(small, prune=prune)
    state = learner.init(jax.random.key(0), config, DISCRETE)
    rollout = random_rollout(0, config, DISCRETE)
    jaxpr = jax.make_jaxpr(lambda s, r: learner.update(s, r, config))(state, rollout)
    sizes = {
        int(np.prod(v.aval.shape)) for e in jaxpr.jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")
    }
    if learner is sac:
        assert sac_batch_size() * DISCRETE.observation_size not in sizes
    assert sum(e.primitive.name == "cond" for e in jaxpr.jaxpr.eqns) == (1 if learner is ppo else 2)


def sac_batch_size() -> int:
    from prune_rl.learners.sac.learner import PRUNING_BATCH

    return PRUNING_BATCH


def test_what_cannot_work_is_refused_before_training() -> None:
    groups = find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 1))},
                         jnp.ones((1, 2)))  # fmt: skip
    schedule = MaskSchedule.create(10, 0.1, 0.5, 1)
    for options, words in (
        ({"gate": -0.1}, "gate must be a finite number >= 0, got -0.1"),
        ({"gate": float("inf")}, "gate must be a finite number"),
        ({"energy": 1.0}, r"energy must lie in \[0, 1\)"),
        ({"min_width": -1}, "min_width must be >= 0"),
    ):
        with pytest.raises(ValueError, match=words):
            PruningRules(schedule, (Target("all", groups, 0.5),), **options).check()
