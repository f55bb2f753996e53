from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.task import resolve_task
from prune_rl.export.policy import load_policy
from prune_rl.learners import ppo, sac
from prune_rl.learners.registry import learner_of
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.logging import read_metrics
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.spaces import Discrete, Spec
from prune_rl.training import config as config_module
from prune_rl.training.config import Config
from prune_rl.training.engines import Learners, init_runner, seed_keys
from prune_rl.training.engines.engine import shrink_tree
from prune_rl.training.engines.faults import Faults
from prune_rl.training.engines.timing import Timing
from prune_rl.training.loop import run_updates
from prune_rl.training.run_config import read_config

TIMEOUT = 240.0


def last_checkpoint(run: Any) -> Any:
    """What the newest checkpoint holds, read with the shapes that the run's configuration calls for."""
    config = read_config(run)
    learner, spec = config.learner, resolve_task(config.env).spec
    module = learner_of(learner)
    axes = Learners(module.VMAP_AXES, cast(Any, 0))

    def host(key: Any) -> Any:
        return Learners(module.init(key, learner, spec), key)

    def template(keys: Any) -> Any:
        if config.backend == "jax":
            return init_runner(CartPole(), keys, learner)
        return jax.vmap(host, out_axes=axes)(keys)

    checkpoints = Checkpoints(run / "checkpoints")
    keys = seed_keys(config.all_seeds)

    def of_widths(metadata: Any) -> Any:
        def smaller(keys: Any) -> Any:
            return shrink_tree(template(keys), widths=metadata["widths"], config=learner)

        return jax.eval_shape(smaller, keys)

    restored = checkpoints.restore(of_widths)
    checkpoints.close()
    assert checkpoints.notes == []
    return restored


def bits(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.dtype, array.shape, array.tobytes()


def rows_of(run: Any) -> Any:
    """Lines of metrics.jsonl as they are written, but for the time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_time"} for line in lines]


def files_of(run: Any) -> Any:
    """Name and content of every policy file."""
    files = [
        file for kind in ("policy", "wide", "frontier") for file in (run / kind).rglob("*") if file.is_file()
    ]
    return {file.relative_to(run): file.read_bytes() for file in files}


def assert_same_run(run: Any, reference: Any) -> None:
    """Every number that training made is bit for bit the same."""
    assert rows_of(run) == rows_of(reference)
    assert files_of(run) == files_of(reference)
    found, expected = last_checkpoint(run), last_checkpoint(reference)
    assert found.step == expected.step == read_config(reference).learner.num_updates
    structures: list[Any] = [jax.tree.structure(each.tree) for each in (found, expected)]
    assert structures[0] == structures[1]
    for left, right in zip(jax.tree.leaves(found.tree), jax.tree.leaves(expected.tree), strict=True):
        assert bits(left) == bits(right)
    masks, expected_masks = MaskHistory(run / "masks"), MaskHistory(reference / "masks")
    assert masks.steps() == expected_masks.steps()
    for step in masks.steps():
        left, right = masks.read(step), expected_masks.read(step)
        assert {name: bits(mask) for name, mask in left.items()} == {
            name: bits(mask) for name, mask in right.items()
        }


def newest(run: Any) -> Any:
    steps = [folder.name.removeprefix("step_") for folder in run.glob("checkpoints/step_*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def kill_when(process: Any, ready: Any, delay: Any) -> Any:
    """SIGKILL, `delay` seconds after `ready()`; whether the process was still training then."""
    end = time.monotonic() + TIMEOUT
    while not ready() and process.poll() is None:
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.002)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    process.wait(TIMEOUT)
    return alive


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "cache", "first_checkpoints"),
    # The first shares the compiled program with its reference; the second compiles again, as a user's would, and is
    # killed before its first checkpoint, too.
    [("jax_run", None, 2), ("host_run", "second", 0), ("sac_run", None, 2)],
)
def test_a_killed_run_ends_bit_identical(
    reference: str,
    cache: str | None,
    first_checkpoints: int,
    start: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    whole: Any = request.getfixturevalue(reference)
    run = tmp_path / "runs" / whole.path.name
    rng = random.Random(cache or "first")
    for checkpoints in (first_checkpoints, rng.randint(2, 5)):
        process, begun = start(whole.arguments, tmp_path, cache), newest(run)

        def ready(target: Any = begun + 2 * checkpoints) -> Any:
            return (run / "metrics.jsonl").exists() and newest(run) >= target

        assert kill_when(process, ready, rng.uniform(0.0, 0.15) if checkpoints else 0.0), "it was not killed"
        assert newest(run) >= begun + 2 * checkpoints
        assert not (run / "policy").exists()
    stopped_at, steps = newest(run), read_config(run).learner.steps_per_update
    process = start(whole.arguments, tmp_path, cache)
    status, output = process.wait(TIMEOUT), (tmp_path / "output").read_text()
    assert status == 0, output
    assert f"continuing from the checkpoint at {stopped_at * steps:,} steps" in output
    assert_same_run(run, whole.path)


@pytest.mark.slow
def test_a_run_of_sac_fills_its_buffer_before_it_learns(sac_run: Any) -> None:
    rows = read_metrics(sac_run.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [32 * i for i in range(1, 33)]
    for i, row in enumerate(rows):
        assert np.isfinite(row["critic_loss"]).all() == np.isfinite(row["alpha"]).all() == (i >= 2)
    assert rows[-1]["widths"] == {
        f"{net}/layer_{i}": [8 if net == "critic" else 6] for net in ("actor", "critic") for i in (0, 1)
    }
    last = last_checkpoint(sac_run.path)
    assert last.tree.state.replay.experience.reward.shape == (1, 1, 1024)
    assert len(np.unique(last.tree.state.replay.experience.reward)) > 1000
    policy = load_policy(sac_run.path)
    assert (policy.widths, policy.squash, policy.metadata["algo"]) == ((6, 6), True, "sac")
    assert policy(np.zeros((5, 3))).shape == (5, 1)


def copy_before_the_policies(trained: Any, folder: Any) -> Any:
    """A copy of the run as it is between its last checkpoint and its policies."""
    run = folder / "runs" / trained.path.name
    shutil.copytree(trained.path, run, ignore=shutil.ignore_patterns("policy", "wide"))
    return run


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back(host_run: Any, start: Any, tmp_path: Path) -> None:
    run = copy_before_the_policies(host_run, tmp_path)
    folders = sorted((run / "checkpoints").glob("step_*"))
    before, last = (int(folder.name.removeprefix("step_")) for folder in folders[-2:])
    file = max(
        (file for file in folders[-1].rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    os.truncate(file, file.stat().st_size // 2)
    assert start(host_run.arguments, tmp_path).wait(TIMEOUT) == 0
    output = (tmp_path / "output").read_text()
    assert f"note: checkpoint {last} is damaged" in output
    assert f"continuing from the checkpoint at {before * 128:,} steps" in output
    assert_same_run(run, host_run.path)


def test_a_finished_run_trains_nothing_again(host_run: Any) -> None:
    measured_again = {"evaluation.json", "summary.md", "summary.png", "timing.json", ".lock"}
    files = [file for file in host_run.path.rglob("*") if file.is_file() and file.name not in measured_again]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    output = host_run.again()
    assert "steps to do" not in output
    assert "continuing" not in output
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files} == before


def test_a_damaged_policy_is_written_again_from_the_last_checkpoint(host_run: Any) -> None:
    before = files_of(host_run.path)
    (host_run.path / "policy" / "policy.safetensors").write_bytes(b"")
    assert "continuing from the checkpoint at 4,096 steps" in host_run.again()
    assert files_of(host_run.path) == before


def test_a_seed_starts_alike_alone_and_among_others() -> None:
    """Bit for bit: parameters, optimiser, environments and keys."""
    config = ppo.Config(hidden=(8,), num_envs=2)
    several = init_runner(CartPole(), seed_keys([5, 6, 7]), config)
    alone = init_runner(CartPole(), seed_keys([6]), config)
    seeds = 0
    for left, right in zip(jax.tree.leaves(alone), jax.tree.leaves(several), strict=True):
        if left.ndim:  # the step is shared by all seeds
            seeds += 1
            assert bits(left[0]) == bits(right[1])
    assert seeds == len(jax.tree.leaves(alone)) - 1


@pytest.mark.slow
def test_a_seed_trains_alike_alone_and_among_others(jax_run: Any, train: Any, tmp_path: Path) -> None:
    """To rounding: the compiled program for one seed sums in another order than that for three.

    Measured: every action of all 32 updates is the same, and the weights differ by at most 6e-8 in the end. Longer
    runs drift apart once a rounding error tips an action, so only the first updates are compared here.
    """
    assert jax_run.arguments[-2:] == ["--seeds", "3"]
    alone = train([*jax_run.arguments[:-2], "--seed", "1"], tmp_path)
    assert alone.path.name.startswith("CartPole-v1-ppo-dynamic-seed1-")
    for left, right in zip(rows_of(alone.path)[:8], rows_of(jax_run.path)[:8], strict=True):
        assert left["episodes"] == right["episodes"][1:2]
        assert left["return"] == right["return"][1:2]
        assert left["widths"] == {name: widths[1:2] for name, widths in right["widths"].items()}
        for name in ("value_loss", "entropy", "explained_variance"):
            np.testing.assert_allclose(left[name], right[name][1:2], rtol=1e-3, atol=1e-5)


def test_the_seeds_of_a_run_differ(jax_run: Any) -> None:
    last = rows_of(jax_run.path)[-1]
    assert len(set(last["value_loss"])) == 3
    policies = [(jax_run.path / "wide" / f"seed_{k}" / "policy.safetensors").read_bytes() for k in range(3)]
    assert len(set(policies)) == 3


class Metronome:
    """An engine without a learner: what update i measures is i; it breaks down before update `breaks_at`."""

    def __init__(self, breaks_at: Any = None) -> None:
        self.tree = {"done": jnp.int32(0), "mask": jnp.ones((1, 4), bool)}
        self.timing = Timing()
        self.faults = Faults([0], sac.Config(), Spec(1, Discrete(2)))
        self.breaks_at = breaks_at

    @property
    def masks(self) -> Any:
        return {"actor/layer_0": np.asarray(self.tree["mask"])}

    spec = None

    @property
    def groups(self) -> Any:
        return NeuronGroups(())

    @property
    def widths(self) -> Any:
        return {"actor/layer_0": 4}

    def template(self, widths: Any) -> Any:
        assert widths == self.widths
        return self.tree

    def shrink(self) -> bool:
        return False

    def advance(self, n: Any) -> Any:
        assert n == 1
        done = int(self.tree["done"]) + 1
        if done == self.breaks_at:
            raise RuntimeError("broken")
        self.tree = {**self.tree, "done": jnp.int32(done)}
        row = {
            "return": float(done),
            "episodes": 1.0,
            "critic_loss": float(done),
            "running_return": float(done),
        }
        return {name: np.full((1, 1), value, np.float32) for name, value in row.items()}

    def close(self) -> None: ...


def test_lines_of_the_log_that_share_updates_are_the_same_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "LOG_LINES", 5)
    learner = sac.Config(num_envs=1, num_steps=10, learning_starts=0, total_timesteps=200)
    config = Config(
        env="Pendulum-v1",
        algo="sac",
        backend="gymnasium",
        checkpoints=3,
        host_resets=3,
        learner=learner,
        frontier=0,
    ).resolved()
    assert (config.learner.num_updates, config.log_every, config.checkpoint_every) == (20, 4, 7)
    console = Console(file=io.StringIO())
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    run_updates(cast(Any, Metronome()), config, tmp_path / "whole", console)
    rows = rows_of(tmp_path / "whole")
    # Every fourth update; at each checkpoint; the last.
    assert [row["step"] for row in rows] == [40, 70, 80, 120, 140, 160, 200]
    assert [row["iteration"] for row in rows] == [4, 7, 8, 12, 14, 16, 20]
    assert [row["critic_loss"] for row in rows] == [[2.5], [6.0], [8.0], [10.5], [13.5], [15.5], [18.5]]
    assert [row["episodes"] for row in rows] == [[4.0], [3.0], [1.0], [4.0], [2.0], [2.0], [4.0]]
    assert [row["running_return"] for row in rows] == [[4.0], [7.0], [8.0], [12.0], [14.0], [16.0], [20.0]]
    for breaks_at in (3, 10, 18, None):
        with contextlib.suppress(RuntimeError):
            run_updates(cast(Any, Metronome(breaks_at)), config, tmp_path / "broken", console)
    assert rows_of(tmp_path / "broken") == rows
