"""When arrays get smaller, to which widths, and that a run does not depend on it."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.task import resolve_task
from prune_rl.learners import sac
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import planned_widths
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.registry import learner_of
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.spaces import Box, Spec
from prune_rl.training import engines
from prune_rl.training.config import Config
from prune_rl.training.engines import array_widths
from prune_rl.training.engines.array_widths import bucket, check_every, next_shrinking, touched_weights
from prune_rl.training.loop import run_updates
from prune_rl.training.make_engine import make_engine
from tests.learners.schedules import by_schedule
from tests.training.engines.compiled_once import sharing_programs
from tests.training.engines.test_engines import CONFIG, assert_identical, plain

HOPPER = Spec(observation_size=11, action=Box((-1.0,) * 3, (1.0,) * 3, (3,)))
BOTH = by_schedule(sparsity=0.9336, critic=True, critic_sparsity=0.9, begin=0.15, end=0.6, every=8)
LONG = sac.Config(num_envs=8, num_steps=8, utd_ratio=0.5, batch_size=128, total_timesteps=500_000, prune=BOTH)


def shapes_of(config: LearnerConfig, spec: Spec, widths: Any = None) -> tuple[Any, Any]:
    """The groups and the shapes of the params, in arrays of these widths."""
    learner: Any = learner_of(config)

    def init() -> Any:
        state = learner.init(jax.random.key(0), config, spec)
        return state if widths is None else learner.shrink(state, widths, config)

    params = jax.eval_shape(init).params
    return learner.prunable_groups(params, config), params


def course(config: LearnerConfig, spec: Spec, seeds: int = 1) -> list[array_widths.Shrinking]:
    """All shrinkings of a run whose neurons go as the schedule allows."""
    sizes = {name: group.size for name, group in shapes_of(config, spec)[0].items()}
    found: list[array_widths.Shrinking] = []
    while True:
        update, widths = (found[-1].update, found[-1].widths) if found else (0, sizes)
        groups, params = shapes_of(config, spec, widths)
        upcoming = next_shrinking(config, groups, params, widths, sizes, update, seeds)
        if upcoming is None:
            return found
        found.append(upcoming)


def test_buckets_hold_the_width_and_are_few() -> None:
    assert [bucket(width) for width in (1, 8, 9, 17, 24, 25, 33, 64, 65, 256, 257)] == [
        8, 8, 16, 24, 24, 32, 64, 64, 128, 256, 512,
    ]  # fmt: skip
    assert all(bucket(width) >= width for width in range(1, 2000))


def test_a_long_run_gets_smaller_a_few_times_and_a_short_one_not_at_all() -> None:
    shrinkings = course(LONG, HOPPER)
    assert 2 <= len(shrinkings) <= 5
    assert [max(each.widths.values()) for each in shrinkings] == sorted(
        (max(each.widths.values()) for each in shrinkings), reverse=True
    )
    assert set(shrinkings[-1].widths.values()) == {bucket(17), bucket(26)}
    assert all(each.update % check_every(LONG.num_updates) == 0 for each in shrinkings)
    short = dataclasses.replace(LONG, total_timesteps=12_800, batch_size=16)
    assert course(short, HOPPER) == []
    always = dataclasses.replace(LONG, prune=dataclasses.replace(BOTH, shrink="always"))
    assert len(course(always, HOPPER)) > len(shrinkings)


def test_distillation_makes_smaller_arrays_worth_more() -> None:
    groups, params = shapes_of(LONG, HOPPER)
    sizes, kept = {name: group.size for name, group in groups.items()}, dict.fromkeys(groups, 100)
    found = []
    for ratio in (0.0, 50.0):
        prune = Pruning(critic=True, distill_ratio=ratio)
        config = dataclasses.replace(LONG, prune=prune, total_timesteps=20_000, batch_size=1)
        found.append(next_shrinking(config, groups, params, kept, sizes, config.num_updates // 2, 1))
    assert found[0] is None
    assert found[1] is not None


def test_the_course_is_the_cheapest_of_all_with_one_shrinking() -> None:
    """One seed of a short run: every single point is tried, and none costs less."""
    config = dataclasses.replace(LONG, total_timesteps=40_000, prune=dataclasses.replace(BOTH, every=1))
    groups, params = shapes_of(config, HOPPER)
    sizes = {name: group.size for name, group in groups.items()}
    (found,) = course(config, HOPPER)
    rate, full = 3.0 * config.gradient_samples, touched_weights(groups, params, sizes)

    def cost(update: int) -> float:
        planned = planned_widths(config, groups, sizes, update)
        widths = {name: min(sizes[name], bucket(width)) for name, width in planned.items()}
        rest = (config.num_updates - update) * touched_weights(groups, params, widths)
        return rate * (update * full + rest)

    costs = {u: cost(u) for u in range(0, config.num_updates, check_every(config.num_updates))}
    assert found.update == min(costs, key=lambda u: costs[u])


def test_touched_weights_are_those_of_the_arrays() -> None:
    groups, params = shapes_of(LONG, HOPPER)
    actor = 12 * 256 + 257 * 256 + 256 * 6
    critics = 2 * (15 * 256 + 257 * 256 + 256)
    assert touched_weights(groups, params, dict.fromkeys(groups, 256)) == actor + critics
    smaller, small_params = shapes_of(LONG, HOPPER, dict.fromkeys(groups, 24))
    both = [
        touched_weights(g, p, dict.fromkeys(groups, 24))
        for g, p in ((groups, params), (smaller, small_params))
    ]
    assert both[0] == both[1] == 12 * 24 + 25 * 24 + 24 * 6 + 2 * (15 * 24 + 25 * 24 + 24)


PPO = dataclasses.replace(
    CONFIG,
    hidden=(16,),
    total_timesteps=8 * CONFIG.steps_per_update,
    prune=by_schedule(sparsity=0.8, critic=True, critic_sparsity=0.7, begin=0.1, end=0.6, shrink="always"),
)


@pytest.fixture(scope="module")
def shrunk() -> Any:
    """Two seeds on the device, 8 updates: the engine and the widths before each update."""
    engine = sharing_programs(engines.DeviceEngine(CartPole(), [0, 1], PPO, length=2), "widths")
    widths, masks = [], []
    for _ in range(PPO.num_updates):
        engine.shrink()
        widths.append(engine.widths)
        engine.advance(1)
        masks.append(engine.masks)
    yield engine, widths, masks
    engine.close()


def test_arrays_get_smaller_and_masks_are_told_at_full_size(shrunk: Any) -> None:
    engine, widths, masks = shrunk
    assert [each["actor/layer_0"] for each in widths] == sorted(
        (each["actor/layer_0"] for each in widths), reverse=True
    )
    assert widths[0] == dict.fromkeys(engine.widths, 16)
    assert set(engine.widths.values()) == {8}
    for name, mask in masks[-1].items():
        assert mask.shape == (2, 16)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask.sum(-1), np.asarray(engine.state.masks[name]).sum(-1))
    for before, after in itertools.pairwise(masks):
        assert all(np.all(before[name] | ~after[name]) for name in after), (
            "no neuron returns under another number"
        )


def test_one_layer_alone_gets_smaller_where_a_run_finds_its_widths() -> None:
    config = dataclasses.replace(PPO, hidden=(24, 8), prune=Pruning(shrink="always"))
    engine = engines.DeviceEngine(CartPole(), [0, 1], config, length=2)
    state: Any = engine.state
    pruning = state.pruning
    masks = {**pruning.masks, "actor/layer_0": jnp.broadcast_to(jnp.arange(24) < 10, (2, 24))}
    threshold = pruning.threshold._replace(good_masks=jax.tree.map(jnp.copy, masks))
    state = dataclasses.replace(state, pruning=pruning._replace(masks=masks, threshold=threshold))
    engine.tree = engine.tree.replace(state=state)
    assert engine.shrink()
    assert engine.widths == {"actor/layer_0": 16, "actor/layer_1": 8}
    state = engine.state
    assert state.pruning.threshold.good_params["actor"]["layer_0"]["kernel"].shape == (2, 4, 16)
    engine.advance(1)
    engine.close()


def test_a_checkpoint_knows_its_widths(shrunk: Any, tmp_path: Path) -> None:
    """A fresh engine, at full width, restores the shrunk state and goes on to the same bits."""
    engine, _, _ = shrunk
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, engine.tree, {"widths": engine.widths})
    fresh = sharing_programs(engines.DeviceEngine(CartPole(), [0, 1], PPO, length=2), "widths")
    restored = checkpoints.restore(lambda metadata: fresh.template(metadata["widths"]))
    checkpoints.close()
    assert restored is not None
    fresh.tree = restored.tree
    assert_identical(fresh.tree, engine.tree)
    assert fresh.widths == engine.widths
    assert_identical(fresh.advance(2), engine.advance(2))
    assert_identical(fresh.tree, engine.tree)
    fresh.close()


def test_a_run_that_stops_within_a_shrinking_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is gone while arrays are gathered, after the checkpoint before it: the next one repeats it."""
    config = Config(env="CartPole-v1", checkpoints=4, learner=PPO).resolved()
    task = resolve_task(config.env, config.backend)
    console = Console(file=io.StringIO())
    states = {}
    for folder, breaks in (("whole", False), ("broken", True)):
        path = tmp_path / folder
        path.mkdir()
        engine = sharing_programs(make_engine(config, task), "widths of a run")
        if breaks:
            monkeypatch.setattr(engine, "_shrunk", stop_at_first_call(engine._shrunk))
            with pytest.raises(KeyboardInterrupt):
                run_updates(engine, config, path, console)
            engine.close()
            engine = sharing_programs(make_engine(config, task), "widths of a run")
        run_updates(engine, config, path, console)
        states[folder] = plain(engine.tree)
        engine.close()
    assert_identical(states["whole"], states["broken"])


def stop_at_first_call(fn: Any) -> Any:
    calls = []

    def wrapped(widths: Any) -> Any:
        calls.append(widths)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return fn(widths)

    return wrapped
