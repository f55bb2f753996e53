"""The environments of one seed on two devices: training is that of one device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.pendulum import Pendulum
from prune_rl.envs.task import resolve_task
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.training import engines
from prune_rl.training.config import Config
from prune_rl.training.engines.env_devices import EnvDevices
from prune_rl.training.make_engine import check_engine, make_engine
from tests.learners.schedules import by_schedule
from tests.training.engines.test_engines import CONFIG, SAC, assert_close, assert_identical, plain

# Arrays of 16 neurons, then of 8: the last of 8 updates run in the smaller ones.
SHRINKING = by_schedule(sparsity=0.8, begin=0.1, end=0.6, shrink="always")
PPO = dataclasses.replace(CONFIG, hidden=(16,), num_envs=4, total_timesteps=8 * 4 * 16, prune=SHRINKING)
OFF_POLICY = dataclasses.replace(SAC, num_envs=4, total_timesteps=6 * 4 * 8, prune=None)


def made(env: Any, config: Any, devices: int) -> engines.DeviceEngine:
    return engines.DeviceEngine(env, [3], config, 2, jax.devices()[:devices], shard_envs=True)


def trained(engine: Any, updates: int) -> Any:
    rows = []
    for _ in range(updates):
        engine.shrink()
        rows.append(plain(engine.advance(1)))
    return rows


@pytest.mark.parametrize(
    ("env", "config", "updates"), [(CartPole(time_limit=9), PPO, 8), (Pendulum(), OFF_POLICY, 5)]
)
def test_training_is_that_of_one_device(env: Any, config: Any, updates: int, tmp_path: Path) -> None:
    engine, alone = made(env, config, 2), made(env, config, 1)
    assert_identical(engine.tree, alone.tree)
    for half in (updates // 2, updates - updates // 2):
        assert_close(trained(engine, half), trained(alone, half))
        assert_close(engine.tree, alone.tree)
    assert engine.tree.obs.sharding.spec == PartitionSpec(None, "envs")
    assert engine.tree.obs.addressable_shards[1].data.shape[:2] == (1, 2)
    for leaf in jax.tree.leaves(engine.state.params):
        assert leaf.sharding.is_fully_replicated
        first, second = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(first, second)
    if config is PPO:
        assert set(engine.widths.values()) == {8}
    # A checkpoint goes on without sharing.
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(updates, engine.tree, {"widths": engine.widths})
    found = checkpoints.restore(lambda metadata: alone.template(metadata["widths"]))
    checkpoints.close()
    assert found is not None
    assert_identical(found.tree, engine.tree)
    for each in (engine, alone):
        each.close()


def test_which_devices_share_the_environments() -> None:
    both = EnvDevices.choose(6)
    assert both.note() == "6 environments on 2 devices, 3 on each; every device makes the whole update"
    assert (
        EnvDevices.choose(5, jax.devices()[:1]).note() == "there is one device, so all environments are on it"
    )
    with pytest.raises(ValueError, match=r"num_envs = 5 is no multiple of the 2 devices .* a multiple of 2"):
        EnvDevices.choose(5)


def test_what_cannot_be_shared_is_refused_before_training() -> None:
    learner = dataclasses.replace(PPO, prune=None)
    config = Config(learner=learner, method="dense", shard_envs=True)
    task = resolve_task("CartPole-v1")
    resolved = config.resolved(task)
    check_engine(resolved, task)
    engine = make_engine(resolved, task)
    assert isinstance(engine.devices, EnvDevices)
    engine.close()
    odd = dataclasses.replace(config, learner=dataclasses.replace(learner, num_envs=3, num_steps=2)).resolved(
        task
    )
    with pytest.raises(ValueError, match="num_envs = 3 is no multiple of the 2 devices"):
        check_engine(odd, task)
    with pytest.raises(ValueError, match="is for one seed, and the 2 seeds of this run share the devices"):
        dataclasses.replace(config, seeds=2).resolved(task)
    with pytest.raises(ValueError, match="one seed, got 2"):
        engines.DeviceEngine(CartPole(), [0, 1], learner, 2, shard_envs=True)
    for host, env in (("gymnasium", "CartPole-v1"), ("gymnasium", "Acrobot-v1")):
        with pytest.raises(ValueError, match=f"{env} runs on backend '{host}', on the host: leave it out"):
            dataclasses.replace(config, env=env, backend=host).resolved()  # type: ignore[arg-type]


def test_sharing_changes_neither_the_result_nor_the_folder() -> None:
    config = Config(learner=PPO)
    shared = dataclasses.replace(config, shard_envs=True)
    assert shared.resolved().default_run_dir() == config.resolved().default_run_dir()
