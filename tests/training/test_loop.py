from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from prune_rl.envs.cartpole import CartPole
from prune_rl.export.policy import load_policy
from prune_rl.training.checkpoints import Checkpoints
from prune_rl.training.config import Config
from prune_rl.training.engines import Learners, Runner, init_runner, seed_keys
from prune_rl.training.experiment import read_config
from prune_rl.training.metrics import MaskHistory

TIMEOUT = 180.0


def template_of(config: Config) -> Runner | Learners:
    """Shapes and types of what a checkpoint of the run holds."""
    runner = jax.eval_shape(
        lambda: init_runner(CartPole(), seed_keys(config.all_seeds), config.method_learner())
    )
    return runner if config.backend == "jax" else Learners(runner.state, runner.key)


def last_checkpoint(run: Path):
    checkpoints = Checkpoints(run / "checkpoints")
    restored = checkpoints.restore(template_of(read_config(run)))
    checkpoints.close()
    assert checkpoints.notes == []
    return restored


def bits(leaf):
    array = np.asarray(
        jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    )
    return array.dtype, array.shape, array.tobytes()


def rows_of(run: Path, without=("wall_time",)):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in without} for line in lines]


def assert_same_run(run: Path, reference: Path):
    """Every number that training made is bit for bit the same."""
    assert rows_of(run) == rows_of(reference)
    files = sorted(
        file.relative_to(reference) for kind in ("policy", "wide") for file in (reference / kind).rglob("*")
    )
    assert files == sorted(
        file.relative_to(run) for kind in ("policy", "wide") for file in (run / kind).rglob("*")
    )
    for file in files:
        if (reference / file).is_file():
            assert (run / file).read_bytes() == (reference / file).read_bytes(), file
    found, expected = last_checkpoint(run), last_checkpoint(reference)
    assert found.step == expected.step == read_config(reference).learner.total_updates
    assert jax.tree.structure(found.tree) == jax.tree.structure(expected.tree)
    for left, right in zip(jax.tree.leaves(found.tree), jax.tree.leaves(expected.tree), strict=True):
        assert bits(left) == bits(right)
    masks, expected_masks = MaskHistory(run / "masks"), MaskHistory(reference / "masks")
    assert masks.steps() == expected_masks.steps()
    for step in masks.steps():
        for name, mask in expected_masks.read(step).items():
            np.testing.assert_array_equal(masks.read(step)[name], mask)


def newest(run: Path) -> int:
    steps = [int(folder.name[5:]) for folder in run.glob("checkpoints/step_*") if folder.name[5:].isdigit()]
    return max(steps, default=0)


def kill_when(process, ready, delay: float) -> bool:
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
@pytest.mark.parametrize("reference", ["jax_run", "host_run"])
def test_a_killed_run_ends_bit_identical(reference, start, tmp_path, request):
    reference = request.getfixturevalue(reference)
    run = tmp_path / reference.path.relative_to(reference.path.parents[1])
    rng = random.Random(f"moments {reference.arguments}")
    killed = kill_when(start(reference.arguments, tmp_path), (run / "config.json").exists, 0.0)
    for _ in range(2):
        process, begun = start(reference.arguments, tmp_path), newest(run)
        target = begun + 2 * rng.randint(1, 3)
        killed += kill_when(process, lambda target=target: newest(run) >= target, rng.uniform(0.0, 0.15))
        assert not (run / "policy").exists()
    assert killed == 3
    stopped_at = newest(run)
    assert 0 < stopped_at < read_config(reference.path).learner.total_updates
    process = start(reference.arguments, tmp_path)
    assert process.wait(TIMEOUT) == 0, (tmp_path / "output").read_text()
    assert (
        f"continuing from the checkpoint at {stopped_at * 128:,} steps" in (tmp_path / "output").read_text()
    )
    assert_same_run(run, reference.path)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back(host_run, start, tmp_path):
    run = tmp_path / host_run.path.relative_to(host_run.path.parents[1])
    shutil.copytree(host_run.path, run)
    for folder in ("policy", "wide"):
        shutil.rmtree(run / folder)
    steps = Checkpoints(run / "checkpoints").steps()
    folder = next((run / "checkpoints").glob(f"step_*{steps[-1]}"))
    file = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    process = start(host_run.arguments, tmp_path)
    assert process.wait(TIMEOUT) == 0
    output = (tmp_path / "output").read_text()
    assert f"note: checkpoint {steps[-1]} is damaged" in output.replace("\n", " ")
    assert f"continuing from the checkpoint at {steps[-2] * 128:,} steps" in output
    assert_same_run(run, host_run.path)


def test_a_finished_run_trains_nothing_again(host_run, train_again):
    before = {
        file: (file.stat().st_mtime_ns, file.read_bytes())
        for file in host_run.path.rglob("*")
        if file.is_file() and file.name not in ("evaluation.json", "summary.md", "summary.png", ".lock")
    }
    output = train_again(host_run)
    assert "steps to do" not in output
    assert "continuing" not in output
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before}
    assert after == before


def test_a_lost_policy_is_written_again_from_the_last_checkpoint(host_run, train_again, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(host_run.path / "policy", kept)
    (host_run.path / "policy" / "policy.safetensors").write_bytes(b"")
    output = train_again(host_run)
    assert "continuing from the checkpoint at 4,096 steps" in output
    for file in kept.iterdir():
        assert (host_run.path / "policy" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_a_seed_among_several_is_the_seed_alone(jax_run, train_here, tmp_path):
    """Bit-identical while both programs round alike; XLA may order a batched sum otherwise, so only nearly in the end."""
    config = read_config(jax_run.path)
    several = init_runner(CartPole(), seed_keys([0, 1, 2]), config.method_learner())
    alone = init_runner(CartPole(), seed_keys([1]), config.method_learner())
    for left, right in zip(jax.tree.leaves(alone), jax.tree.leaves(several), strict=True):
        if left.ndim:
            assert bits(left[0]) == bits(right[1])
    seeds = jax_run.arguments.index("--seeds")
    trained = train_here([*jax_run.arguments[:seeds], "--seed", "1"], tmp_path)
    rows, all_rows = rows_of(trained.path), rows_of(jax_run.path)
    print("SAME", [a["value_loss"][0] == b["value_loss"][1] for a, b in zip(rows, all_rows, strict=True)])
    left, right = load_policy(trained.path / "wide"), load_policy(jax_run.path / "wide" / "seed_1")
    for name, tensor in left.tensors().items():
        print(name, np.abs(tensor - right.tensors()[name]).max())
    assert 0
