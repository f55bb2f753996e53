"""Seeds shared by four devices. Not collected by itself: `test_seed_devices` runs it in a process that has as many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.training import engines
from tests.learners.schedules import by_schedule
from tests.training.engines.compiled_once import sharing_programs
from tests.training.engines.test_engines import CONFIG, assert_close, assert_identical, of_seed, plain
from tests.training.engines.test_engines import SAC as OFF_POLICY

# Arrays of 16 neurons, then of 8: the last of 8 updates run in the smaller ones.
SHRINKING = by_schedule(sparsity=0.8, critic=True, critic_sparsity=0.7, begin=0.1, end=0.6, shrink="always")
PPO = dataclasses.replace(CONFIG, hidden=(16,), total_timesteps=8 * 3 * 16, prune=SHRINKING)
SAC = dataclasses.replace(OFF_POLICY, hidden=(16,), total_timesteps=8 * 2 * 8, overlap=True, prune=SHRINKING)
Make = Callable[[list[int], int], Any]


def on_device(seeds: list[int], devices: int) -> Any:
    engine = engines.DeviceEngine(CartPole(), seeds, PPO, 2, jax.devices()[:devices])
    return sharing_programs(engine, "device", len(seeds), devices)


def on_host(seeds: list[int], devices: int) -> Any:
    task = resolve_task("CartPole-v1", "gymnasium")
    made = [HostEnv(task, SAC.num_envs) for _ in seeds]
    envs = iter(made)
    engine = engines.HostEngine(lambda: next(envs), seeds, SAC, 4, jax.devices()[:devices])
    return sharing_programs(engine, "host", len(seeds), devices)


def trained(engine: Any, updates: int = 8) -> Any:
    """Metrics of further updates; arrays get smaller where it is time."""
    rows = []
    for _ in range(updates):
        engine.shrink()
        rows.append({key: value for key, value in plain(engine.advance(1)).items() if "distil" not in key})
    return rows


@pytest.mark.parametrize("make", [on_device, on_host])
def test_a_seed_is_the_same_on_four_devices_as_on_one(make: Make) -> None:
    assert len(jax.devices()) == 4
    engine = make([0, 1, 2, 3], 4)
    kernel = engine.state.params["actor"]["layer_0"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("seeds")
    assert engine.state.step.sharding.is_fully_replicated
    rows = trained(engine)
    assert set(engine.widths.values()) == {8}
    kernel = engine.state.params["actor"]["layer_0"]["kernel"]
    assert isinstance(kernel.sharding, NamedSharding), "what was gathered on the host is shared again"
    assert len(kernel.addressable_shards) == 4
    together = make([0, 1, 2, 3], 1)
    assert_close(rows, trained(together))
    assert_close(engine.tree, together.tree)
    # One seed per device is the program of a single seed, which XLA compiles to the same bits.
    alone = make([2], 1)
    alone_rows = trained(alone)
    assert_identical(of_seed(engine.tree.state.params, 2), of_seed(alone.tree.state.params, 0))
    assert_identical(
        [row["running_return"][:, 2] for row in rows], [row["running_return"][:, 0] for row in alone_rows]
    )
    for each in (engine, together, alone):
        each.close()


@pytest.mark.parametrize("make", [on_device, on_host])
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_a_checkpoint_goes_on_on_other_devices(make: Make, before: int, after: int, tmp_path: Path) -> None:
    """Also with arrays that have shrunk before it."""
    first = make([0, 1, 2, 3], before)
    trained(first, 4)
    assert first.shrink() or set(first.widths.values()) == {8} or make is on_device
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, first.tree, {"widths": first.widths})
    second = make([0, 1, 2, 3], after)
    found = checkpoints.restore(lambda metadata: second.template(metadata["widths"]))
    checkpoints.close()
    assert found is not None
    second.tree = found.tree
    assert_identical(second.tree, first.tree)
    if make is on_device:
        rows = trained(second, 4)
        assert_close(rows, trained(first, 4))
        assert_close(second.tree, first.tree)
    else:  # host environments go on from a checkpoint only where they are reset
        rows = trained(second, 4)
        assert all(np.isfinite(row["running_return"]).all() for row in rows)
    for each in (first, second):
        each.close()


def test_a_frozen_seed_leaves_those_of_other_devices_alone() -> None:
    """Its place is filled from a seed of another device."""
    engine, healthy = (on_device([0, 1, 2, 3], 4) for _ in range(2))
    for each in (engine, healthy):
        trained(each, 2)
    kernel = engine.state.params["critic"]["head"]["kernel"]
    params = engine.state.params
    broken = {
        **params,
        "critic": {
            **params["critic"],
            "head": {**params["critic"]["head"], "kernel": kernel.at[1].set(np.nan)},
        },
    }
    engine.tree = engine.tree.replace(state=dataclasses.replace(engine.state, params=broken))
    for each in (engine, healthy):
        trained(each, 2)
    assert engine.faults.frozen.tolist() == [False, True, False, False]
    assert_identical(of_seed(engine.tree, 1), of_seed(engine.tree, 0))
    for seed in (0, 2, 3):
        assert_identical(of_seed(engine.tree, seed), of_seed(healthy.tree, seed))
