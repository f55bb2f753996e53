"""Runs that go on from the end of a shorter one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.cli import main
from prune_rl.export.policy import load_policy
from prune_rl.learners import replay_buffer
from prune_rl.learners.rollout import Rollout
from prune_rl.spaces import Box, Spec
from prune_rl.training.run_config import read_config


def contents(run: Path) -> Any:
    files = [file for file in run.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file.relative_to(run): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "steps", "new"), [("host_run", 5000, 5120), ("sac_run", 1200, 1216)])
def test_a_finished_run_is_trained_on_in_another_folder(
    reference: str, steps: int, new: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.getfixturevalue(reference)
    old = read_config(whole.path)
    run = shutil.copytree(whole.path, tmp_path / "short")
    before = contents(run)
    moved = dataclasses.replace(whole, root=tmp_path)
    output = moved.again("--steps", str(steps), "--extend", "short", "--run-dir", "long")
    said = " ".join(output.split())
    assert (
        f"this run goes on from the end of short at {old.steps:,} steps per seed, and leaves that as it is"
        in said
    )
    assert "the mask schedule" in said
    assert f"continuing from the checkpoint at {old.steps:,} steps" in said
    assert contents(run) == before
    config = read_config(tmp_path / "long")
    assert (config.steps, config.extends) == (new, (old.steps,))
    rows = [json.loads(line) for line in (tmp_path / "long" / "metrics.jsonl").read_text().splitlines()]
    old_rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[: len(old_rows)] == old_rows
    assert [row["step"] for row in rows[len(old_rows) :]][-1] == new
    for name, widths in rows[-1]["widths"].items():
        assert np.less_equal(widths, old_rows[-1]["widths"][name]).all()
    longer, shorter = (load_policy(tmp_path / name) for name in ("long", "short"))
    assert longer.metadata["steps"] == new
    assert longer.widths == shorter.widths
    assert any(
        not np.array_equal(longer.tensors()[name], tensor) for name, tensor in shorter.tensors().items()
    ), "it did not learn on"
    assert not (tmp_path / "long" / "extending").exists()
    # The same command again finds it finished.
    assert "steps to do" not in moved.again("--steps", str(steps), "--extend", "short", "--run-dir", "long")


def test_more_episodes_alone_train_nothing(host_run: Any, tmp_path: Path) -> None:
    shutil.copytree(host_run.path, tmp_path / "short")
    moved = dataclasses.replace(host_run, root=tmp_path)
    output = moved.again("--episodes", "5", "--extend", "short", "--run-dir", "more")
    assert "mean return over 5 episodes" in output
    for name in ("policy.json", "policy.safetensors"):
        assert (tmp_path / "more" / "policy" / name).read_bytes() == (
            host_run.path / "policy" / name
        ).read_bytes()


def test_what_cannot_be_extended_is_refused_before_anything_is_written(
    host_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(host_run.path, tmp_path / "short")
    for further, message in (
        (["--seeds", "3"], "short has 1 seeds and --extend adds none"),
        (["--seeds", "3"], "(--seed 1 --seeds 2)"),
        (
            ["--learning-rate", "0.1"],
            "short can be extended in steps and evaluation alone, and learner.learning_rate is",
        ),
        (["--seed", "4"], "seed is 0 there, 4 here"),
        (["--steps", "128"], "short has 4096 steps, which --extend cannot make fewer: 128 were asked for"),
        (["--extend", "nothing"], "nothing is not a run directory"),
    ):
        command = [*host_run.arguments, "--extend", "short", "--run-dir", "long", *further]
        with contextlib.chdir(tmp_path):
            assert main(command) == 2
        assert message in capsys.readouterr().err
    shutil.rmtree(run / "policy")
    with contextlib.chdir(tmp_path):
        assert main([*host_run.arguments, "--extend", "short", "--run-dir", "long", "--steps", "9000"]) == 2
    assert "short is not finished: give the command that began it again first" in capsys.readouterr().err
    assert not (tmp_path / "long").exists()


def rollout(start: int, length: int) -> Rollout:
    numbers = jnp.arange(start, start + length, dtype=jnp.float32)[:, None]
    flags = jnp.zeros((length, 1), bool)
    obs = numbers[..., None]
    return Rollout(obs, obs, numbers, flags, flags, obs, jnp.zeros((), bool))


@pytest.mark.parametrize("filled", [3, 6])
def test_a_replay_buffer_with_more_room_keeps_what_it_holds(filled: int) -> None:
    """Rewards number the transitions: a buffer of 6, with 3 or 6 of them, then of 10, then filled over its end."""
    spec = Spec(1, Box((-1.0,), (1.0,), (1,)))
    replay = replay_buffer.create(6, spec)
    for start in range(0, filled, 3):
        replay = replay_buffer.add(replay, rollout(start, 3), rollout(start, 3).action)
    replay = replay_buffer.enlarged(replay, 12)
    assert replay_buffer.capacity_of(replay) == 12

    def held() -> set[float]:
        drawn = replay_buffer.sample(replay, jax.random.key(0), 500)
        return set(np.asarray(drawn.reward).tolist())

    assert held() == set(range(filled))
    for start in range(filled, 15, 3):
        replay = replay_buffer.add(replay, rollout(start, 3), rollout(start, 3).action)
    assert held() == set(range(3, 15))
    assert replay_buffer.enlarged(replay, 12) is replay
