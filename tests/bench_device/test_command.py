"""The command as it runs on a device, tried on the CPU with networks of a few neurons."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from prune_rl.bench_device import process, rollouts, trainings
from prune_rl.bench_device.__main__ import main
from prune_rl.bench_device.options import Options
from prune_rl.bench_device.sections import Case, Process, sections_of
from prune_rl.exit_status import NO_ACCELERATOR, NOT_ALL_MEASURED, USAGE_ERROR
from prune_rl.learners.registry import LEARNERS
from prune_rl.training.presets import find_preset

TINY = Options(
    hidden=(4,), num_envs=2, num_steps=4, rollout_steps=4, repeats=2, repeat_seconds=0.01, buffer_size=512
)
FLAGS = "--hidden 4 --num-envs 2 --num-steps 4 --repeats 2 --repeat-seconds 0.01 --updates 4"


def test_a_machine_without_an_accelerator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "out")]) == NO_ACCELERATOR
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no accelerator" in error
    assert "--allow-cpu" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*FLAGS.split(), "--allow-cpu", "--only", "ppo", "--ppo-seeds", *"121"]
    assert main([*arguments, "--output", str(tmp_path), "--matmul-precision", "highest"]) == 0
    report = json.loads((tmp_path / "bench-device.json").read_text())
    assert report["device"] == {"count": 2, "kind": "cpu", "platform": "cpu"}
    assert report["matmul_precision"] == "highest"
    assert report["versions"]["jax"]
    (section,) = report["sections"]
    one, two, again = section["rows"]
    assert {row["status"] for row in section["rows"]} == {"measured"}
    assert one["sha256"] == again["sha256"] != two["sha256"]
    assert 0 < one["lowest"] <= one["seconds"] <= one["highest"]
    assert one["steps_per_update"] == 2 * 4
    ratio = section["findings"][0]
    assert ratio["value"] == pytest.approx(two["seconds"] / 2 / one["seconds"])
    page = (tmp_path / "bench-device.md").read_text()
    assert "figures say nothing about an accelerator" in page
    assert str(tmp_path) not in page + json.dumps(report)
    assert "1 seed: " in capsys.readouterr().out


def test_what_is_wrong_is_named_and_the_next_case_is_measured() -> None:
    bad = Case("bad", "training", 1, "CartPole-v1", "none")
    seen: list[dict[str, Any]] = []
    rows = process.run(Process((bad, Case("device", "device"))), TINY, 60.0, seen.append)
    assert rows == seen
    assert rows[0]["status"] == "failed"
    assert rows[0]["error"] == "ValueError: CartPole-v1 has no preset for none"
    assert rows[1]["status"] == "measured"


def test_a_process_that_dies_leaves_a_row() -> None:
    crash = Process((Case("device", "device"), Case("next", "device")), "--xla_no_such_flag=1")
    rows = process.run(crash, TINY, 60.0, lambda row: None)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert rows[0]["error"].startswith("the process ended with status ")
    assert "xla_no_such_flag" in rows[0]["error"]


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_what_lacks_time_is_said(seconds: float) -> None:
    cases = (Case("device", "device"), Case("next", "device"))
    rows = process.run(Process(cases), TINY, seconds, lambda row: None)
    assert [(row["case"], row["status"]) for row in rows] == [
        ("device", "no time left"),
        ("next", "no time left"),
    ]


def test_a_device_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    assert main(["--output", str(tmp_path)]) == NOT_ALL_MEASURED
    assert "no_such_platform" in capsys.readouterr().err


@pytest.mark.parametrize(("env", "algo"), [("CartPole-v1", "ppo"), ("Hopper-v3", "sac")])
def test_a_training_is_pruned_in_arrays_of_full_width(env: str, algo: str) -> None:
    config = trainings.configuration(Case("t", "training", 3, env, algo), TINY)
    assert (config.backend, config.seeds, config.learner.hidden) == ("jax", 3, (4,))
    assert getattr(config.learner, "buffer_size", 512) == 512
    prune = config.learner.prune
    assert prune is not None
    assert (prune.begin, prune.shrink, prune.tolerance) == (0.0, "never", 0.02)
    # As in a run of the preset: a 120th of the updates between begin and end.
    path, defaults = find_preset(env, algo), LEARNERS[algo].Config().prune
    assert path is not None
    preset = tomllib.loads(path.read_text())["learner"]
    updates = preset["total_timesteps"] / (preset["num_envs"] * preset["num_steps"])
    assert prune.every == max(1, round((defaults.end - defaults.begin) * updates / 120))


@pytest.mark.parametrize(
    ("measure", "backend"), [(rollouts.on_the_device, "jax"), (rollouts.on_the_host, "gymnasium")]
)
def test_rollouts_are_timed_per_step(measure: Any, backend: str) -> None:
    found = measure(Case("r", "device rollouts", 2, "CartPole-v1"), TINY)
    assert found["backend"] == backend
    assert found["num_envs"] == 2
    assert found["seconds"] > 0


def test_options_that_cannot_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--only", "ppo,gpu"], "no section 'gpu'; choose of ppo"),
        (["--ppo-seeds", "0"], "ppo_seeds must be positive, got 0"),
        (["--time-limit", "-1"], "time_limit must be positive"),
        (["--ppo-seeds"], "at least one"),
    ):
        assert main([*flags, "--output", str(tmp_path)]) == USAGE_ERROR
        assert message in capsys.readouterr().err


def test_a_section_has_the_processes_that_it_needs() -> None:
    sections = sections_of(Options(only="deterministic, ppo"))
    assert [section.key for section in sections] == ["deterministic", "ppo"]
    flags = [each.xla_flags.partition("=")[2] for each in sections[0].processes]
    assert flags == ["true", "false", "true", "false"]
    assert [case.seeds for case in sections[1].processes[0].cases] == [1, 64, 300]
