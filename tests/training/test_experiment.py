from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.export.policy import load_policy
from prune_rl.runs.logging import read_metrics
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.runs.versions import PACKAGES
from prune_rl.training.control import control_of
from prune_rl.training.run_config import read_config

SEEDS = (0, 1, 2)


def run_main(*arguments: Any) -> Any:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main([str(argument) for argument in arguments])
    return status, output.getvalue()


def test_the_configuration_is_complete_and_loads_back(jax_run: Any) -> None:
    stored = json.loads((jax_run.path / "config.json").read_text())
    assert stored.pop("command") == "prune-rl " + " ".join(jax_run.arguments)
    config = parse_train(jax_run.arguments[1:])[0].resolved()
    assert stored == config.to_json()
    assert read_config(jax_run.path) == config
    assert (config.backend, config.steps, config.learner.num_updates) == ("jax", 4096, 32)
    assert "steps" not in stored  # learner.total_timesteps is the one place that says it
    assert stored["learner"]["total_timesteps"] == 4096
    assert jax_run.path == jax_run.root / config.default_run_dir()


def test_versions_name_what_made_the_run(jax_run: Any) -> None:
    versions = json.loads((jax_run.path / "versions.json").read_text())
    assert set(PACKAGES) < set(versions)
    assert all(
        versions[name] for name in PACKAGES if name not in ("mujoco", "mujoco-mjx", "envpool")
    )  # extras
    assert versions["device"]["platform"] == "cpu"
    assert "continued_with" not in versions


def test_every_mask_update_is_logged(jax_run: Any) -> None:
    rows = read_metrics(jax_run.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [128 * i for i in range(1, 33)]
    history = MaskHistory(jax_run.path / "masks")
    layers = {f"{network}/layer_{i}" for network in ("actor", "critic") for i in (0, 1)}
    shrinking = 0
    for before, row in itertools.pairwise(rows):
        for key in ("widths", "threshold", "removed_importance", "nan_scores"):
            assert set(row[key]) == layers
            assert all(len(values) == len(SEEDS) for values in row[key].values())
        assert len(row["running_return"]) == len(row["return"]) == len(SEEDS)
        assert np.isfinite(row["running_return"]).all()
        for name, widths in row["widths"].items():
            for old, new, threshold, removed in zip(
                before["widths"][name], widths, row["threshold"][name], row["removed_importance"][name],
                strict=True,
            ):  # fmt: skip
                assert new <= old
                shrinking += new < old
                assert (threshold > 0) == (new < old)
                assert 0.0 <= removed < 1.0
                assert (removed > 0) == (new < old)
    assert shrinking > 20
    for row in rows:
        # Masks are stored after each chunk of updates; where they are, they are those that were logged.
        if row["step"] in history.steps():
            widths = {name: mask.sum(axis=1).tolist() for name, mask in history.read(row["step"]).items()}
            assert widths == row["widths"]
    assert {name: widths[0] for name, widths in rows[-1]["widths"].items()} == {
        "actor/layer_0": 4, "actor/layer_1": 4, "critic/layer_0": 8, "critic/layer_1": 8
    }  # fmt: skip


def test_tensorboard_reads_the_events(jax_run: Any) -> None:
    (events,) = (jax_run.path / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")
    content = events.read_bytes()
    for tag in (b"running_return/mean", b"running_return/seed_2", b"widths/actor/layer_0/mean"):
        assert tag in content


def test_two_checkpoints_are_kept(jax_run: Any) -> None:
    kept = sorted(folder.name for folder in (jax_run.path / "checkpoints").iterdir())
    assert kept == ["step_000000000030", "step_000000000032"]


def test_the_evaluation_holds_every_episode(jax_run: Any) -> None:
    evaluation = json.loads((jax_run.path / "evaluation.json").read_text())
    assert (evaluation["env_id"], evaluation["episodes"]) == ("CartPole-v1", 3)
    assert [entry["seed"] for entry in evaluation["seeds"]] == list(SEEDS)
    for entry in evaluation["seeds"]:
        assert set(entry["policies"]) == {"masked", "compact"}
        masked, compact = entry["policies"]["masked"], entry["policies"]["compact"]
        assert len(compact["returns"]) == len(compact["lengths"]) == 3
        assert compact["returns"] == masked["returns"]
        assert (compact["widths"], masked["widths"]) == ([4, 4], [16, 16])
        assert compact["neurons"] == {"kept": 8, "total": 32}
        assert compact["weights"] == {"kept": 4 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2, "total": 386}
        assert compact["bytes"] < masked["bytes"]
        assert compact["macs"] == 40
        assert compact["latency_us"] > 0


def test_every_seed_has_a_policy_and_is_reported(jax_run: Any) -> None:
    for seed in SEEDS:
        policy = load_policy(jax_run.path / "policy" / f"seed_{seed}")
        assert policy.widths == (4, 4)
        assert policy.metadata["seed"] == seed
        assert f"seed {seed}: mean return over 3 episodes: masked " in jax_run.output
    assert "## Each seed" in jax_run.output
    assert any("return" in line and "3 seeds" in line for line in jax_run.output.splitlines())


def test_the_summary_has_its_picture(jax_run: Any) -> None:
    summary = (jax_run.path / "summary.md").read_text()
    assert summary in jax_run.output
    assert "(summary.png)" in summary
    assert (jax_run.path / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert "prune-rl train CartPole-v1" in summary


def test_one_seed_loads_from_the_run_directory(host_run: Any) -> None:
    policy = prune_rl.load_policy(host_run.path)
    assert policy.widths == (4, 4)
    assert policy.metadata == {
        "env": "CartPole-v1", "algo": "ppo", "method": "dynamic", "seed": 0, "steps": 4096
    }  # fmt: skip
    assert policy(np.zeros(4, np.float32)) in (0, 1)


def test_no_path_or_name_of_the_machine_is_written(jax_run: Any, host_run: Any) -> None:
    words = [str(jax_run.root), str(host_run.root), str(Path(prune_rl.__file__).parents[1]), str(Path.home())]
    words += [socket.gethostname()] if len(socket.gethostname()) > 4 else []
    for run in (jax_run.path, host_run.path):
        for file in [
            *run.glob("*.json"),
            *run.glob("*.jsonl"),
            *run.glob("*.md"),
            *run.glob("*/**/policy.json"),
        ]:
            text = file.read_text()
            assert not [word for word in words if word != "/" and word in text], file


def test_resets_that_truncate_every_episode_are_told(jax_run: Any, host_run: Any) -> None:
    told = "CartPole-v1 is reset 16 times in this run, so that no episode reaches its time limit"
    assert told in " ".join(host_run.output.split())
    assert "is reset" not in jax_run.output


def test_a_moved_run_can_be_evaluated(host_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(host_run.path, moved)
    before = json.loads((moved / "evaluation.json").read_text())
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, output = run_main("evaluate", "moved", "--episodes", 5)
    assert status == 0
    assert "seed 0: mean return over 5 episodes: masked" in output
    assert json.loads((moved / "evaluation.json").read_text()) == before
    assert run_main("evaluate", "moved", "--write")[0] == 0
    after = json.loads((moved / "evaluation.json").read_text())
    for name, policy in after["seeds"][0]["policies"].items():
        assert policy["returns"] == before["seeds"][0]["policies"][name]["returns"]
    assert run_main("evaluate", "moved", "--episodes", 4, "--seed", 7, "--write")[0] == 0
    fresh = json.loads((moved / "evaluation.json").read_text())["seeds"][0]["policies"]["compact"]
    assert len(fresh["returns"]) == 4
    assert fresh["returns"][:3] != after["seeds"][0]["policies"]["compact"]["returns"]


def test_a_moved_run_can_be_continued_and_reported(host_run: Any, tmp_path: Path) -> None:
    shutil.copytree(host_run.path, tmp_path / "moved")
    moved = dataclasses.replace(host_run, root=tmp_path)
    assert "steps to do" not in moved.again("--run-dir", "moved")
    status, output = run_main("report", tmp_path / "moved", "--output", tmp_path / "report.md")
    assert status == 0
    assert "CartPole-v1 ppo dynamic" in output
    assert (tmp_path / "report.md").read_text() in output


@pytest.mark.slow
def test_hopper_trains_on_mjx(train: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("mujoco") is None or importlib.util.find_spec("mujoco.mjx") is None:
        pytest.skip("MJX is not installed (pip install 'prune_rl[mjx]')")
    # One step of the environment in the program, which takes long enough to compile.
    arguments = shlex.split(
        "train Hopper-v3 --backend jax --hidden 8 8 --num-envs 8 --num-steps 1 --steps 32 --checkpoints 2"
        " --update-epochs 1 --num-minibatches 1 --prune.tolerance None --prune.begin 0.1 --prune.every 1"
        " --prune.sparsity 0.5 --episodes 1 --no-control"
    )
    run = train(arguments, tmp_path)
    assert "note: on a CPU, MJX is an order of magnitude slower than MuJoCo" in " ".join(run.output.split())
    assert "is reset" not in run.output  # as host environments are
    rows = read_metrics(run.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [8, 16, 24, 32]
    assert all(
        np.isfinite(row[name]).all() for row in rows for name in ("policy_loss", "value_loss", "entropy")
    )
    assert rows[-1]["widths"] == {"actor/layer_0": [4], "actor/layer_1": [4]}
    policy = load_policy(run.path)
    assert policy.metadata["env"] == "Hopper-v3"
    # It saw observations of a hopper that stands, not zeros: the torso starts 1.25 m high.
    assert policy.obs_mean is not None
    assert 0.7 < policy.obs_mean[0] < 1.5
    (seed,) = json.loads((run.path / "evaluation.json").read_text())["seeds"]
    assert seed["policies"]["compact"]["lengths"] == seed["policies"]["masked"]["lengths"]


@pytest.mark.slow
def test_the_dense_control_is_trained_once(host_run: Any, start: Any, tmp_path: Path) -> None:
    shutil.copytree(host_run.path, tmp_path / "runs" / host_run.path.name)
    arguments = [argument for argument in host_run.arguments if argument != "--no-control"]
    assert start(arguments, tmp_path).wait(240) == 0, (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    dense = tmp_path / control_of(read_config(host_run.path)).default_run_dir()
    assert "CartPole-v1 ppo dense, seed 0: 4,096 steps to do" in output
    assert "CartPole-v1 ppo dynamic, seed 0: " not in output
    assert read_config(dense).method == "dense"
    assert load_policy(dense).widths == (16, 16)
    rows = read_metrics(dense / "metrics.jsonl")
    assert len(rows) == 32
    assert "widths" not in rows[0]
    run = tmp_path / "runs" / host_run.path.name
    both = json.loads((run / "evaluation.json").read_text())["seeds"][0]["policies"]
    own = json.loads((dense / "evaluation.json").read_text())["seeds"][0]["policies"]
    assert set(both) == {"masked", "compact", "dense"}
    assert both["dense"]["returns"] == own["dense"]["returns"]
    assert "dense control" in (run / "summary.md").read_text()
    # Nothing of the pruning matters to it: another way to prune, and `--method dense` itself, find the same run.
    for further in (["--prune.sparsity", "0.5"], ["--method", "dense"], ["--prune.no-critic"]):
        config = parse_train([*arguments[1:], *further])[0].resolved()
        assert tmp_path / control_of(config).default_run_dir() == dense
    # Moved away from its control, the run keeps what the control returned, as long as the episodes are the same ones.
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "moved")
    assert run_main("evaluate", moved, "--write")[0] == 0
    kept = json.loads((moved / "evaluation.json").read_text())["seeds"][0]["policies"]
    assert kept["dense"]["returns"] == own["dense"]["returns"]
    assert run_main("evaluate", moved, "--write", "--seed", 7)[0] == 0
    assert "dense" not in json.loads((moved / "evaluation.json").read_text())["seeds"][0]["policies"]
    before = os.stat(dense / "metrics.jsonl").st_mtime_ns
    again = dataclasses.replace(host_run, root=tmp_path).again("--method", "dense")
    assert "steps to do" not in again
    assert os.stat(dense / "metrics.jsonl").st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted([run.name, dense.name])


HOLD = """
import sys, time
from prune_rl.runs.directory import RunDirectory
run = RunDirectory.open(sys.argv[1], {"x": 1})
print("open", flush=True)
time.sleep(120)
"""


def test_a_control_in_use_is_waited_for_and_one_that_cannot_be_is_done_without(
    host_run: Any, tmp_path: Path
) -> None:
    """Another process trains in the control's folder, and leaves there what is no control."""
    run = shutil.copytree(host_run.path, tmp_path / "runs" / host_run.path.name)
    (run / "summary.md").unlink()
    dense = tmp_path / control_of(read_config(run)).default_run_dir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(dense)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(prune_rl.__file__).parents[1])},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        threading.Timer(1.0, holder.kill).start()
        arguments = [argument for argument in host_run.arguments if argument != "--no-control"]
        output = " ".join(dataclasses.replace(host_run, root=tmp_path, arguments=arguments).again().split())
    finally:
        holder.kill()
        holder.communicate()
    place = dense.relative_to(tmp_path)
    waiting = f"note: the run directory {place} is in use by another training process (pid {holder.pid}); waiting for"
    assert waiting in output
    assert (
        f"note: there is no dense control to compare with: the run directory {place} belongs to another"
        in output
    )
    assert output.index("; waiting for it to end") < output.index("there is no dense control to compare with")
    assert (run / "summary.md").exists()
