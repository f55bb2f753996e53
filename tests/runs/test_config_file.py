from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.runs.config_file import read_config
from prune_rl.training.config import Config
from tests.reporting.drawn_runs import STEPS, make_run


def write(run: Path, config: dict[str, Any]) -> Path:
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_a_configuration_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    config = read_config(run)
    assert config == json.loads((run / "config.json").read_text())
    assert config["seeds"] == 2
    assert config["learner"]["total_timesteps"] == STEPS


@pytest.mark.parametrize("method", ["dynamic", "dense"])
def test_what_training_writes_is_read(method: Any, tmp_path: Path) -> None:
    resolved = Config(method=method).resolved()
    config = read_config(write(tmp_path, resolved.to_json()))
    assert config["learner"]["total_timesteps"] == resolved.learner.total_timesteps > 0
    assert (config["learner"]["prune"] is None) == (method == "dense")
    assert config["method"] == method


def test_earlier_layouts_are_read(tmp_path: Path) -> None:
    options = {"enabled": True, "sparsity": 0.9}
    learner = {"hidden": [8], "total_updates": 5, "prune": options}
    earlier = {"env": "CartPole-v1", "method": "dynamic", "steps": 1000, "learner": learner}
    config = read_config(write(tmp_path, earlier))
    assert config["learner"] == {"hidden": [8], "total_timesteps": 1000, "prune": {"sparsity": 0.9}}
    assert "steps" not in config
    # A dense run held the pruning options that it did not use.
    config = read_config(write(tmp_path, {**earlier, "method": "dense"}))
    assert config["learner"] == {"hidden": [8], "total_timesteps": 1000, "prune": None}
    assert config["method"] == "dense"
    assert read_config(write(tmp_path, {"learner": {"prune": None}}))["method"] == "dense"


def test_what_is_no_run_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", 1)
    for path, reason in (
        (tmp_path / "nothing", "it does not exist"),
        (run / "config.json", "it is a file"),
        (run / "tensorboard", "it has no config.json"),
        (tmp_path / "runs", r"it contains run directories; name those, as in .*runs/\*"),
    ):
        with pytest.raises(ValueError, match=f"^{path} is not a run directory of prune-rl: {reason}$"):
            read_config(path)
    (run / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"config.json is damaged \(.*\): restore the file from .config-copy.json"
    ):
        read_config(run)
    with pytest.raises(ValueError, match=r"config.json is damaged \(learner is a list\): restore"):
        read_config(write(run, {"learner": [1]}))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"small"}))  # which has no widths by default
@pytest.mark.parametrize("algo", LEARNERS)
def test_what_a_run_writes_by_default_can_be_read(tmp_path: Path, algo: str, method: str) -> None:
    """Whatever defaults are None in it."""
    written = Config(algo=algo, method=method).resolved().to_json()
    (tmp_path / "config.json").write_text(json.dumps({**written, "command": "prune-rl train CartPole-v1"}))
    assert read_config(tmp_path)["learner"] == written["learner"]
