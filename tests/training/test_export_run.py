"""A run exports its policies, and its exported code plays the real environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.envs.task import resolve_task
from prune_rl.evaluation.artefacts import artefact, calibration, step_seconds
from prune_rl.training.control import control_command, control_of

TRAIN = [
    "train",
    "CartPole-v1",
    "--preset",
    "/dev/null",
    "--hidden",
    "4",
    "--num-envs",
    "2",
    "--num-steps",
    "16",
    "--steps",
    "160",
    "--update-epochs",
    "1",
    "--prune.begin",
    "0.2",
    "--episodes",
    "3",
    "--selection-episodes",
    "1",
    "--frontier",
    "1",
    "--no-control",
    "--seeds",
    "2",
]

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler, cc: install gcc"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two seeds, exported at the end of its training."""
    path = tmp_path_factory.mktemp("export") / "run"
    assert main([*TRAIN, "--run-dir", str(path), "--export", "c"]) == 0
    return path


def test_training_exports_the_policy_of_each_seed(run: Path) -> None:
    for seed in (0, 1):
        folder = run / "export" / f"seed_{seed}"
        assert {path.name for path in folder.iterdir()} >= {"policy.h", "policy.c"}
        header = (folder / "policy.h").read_text()
        assert f" * seed: {seed}\n" in header
        assert " * run: run\n" in header
    config = json.loads((run / "config.json").read_text())
    assert "export" not in {key for key in config if key != "command"}


def test_what_is_exported_does_not_change_which_run_it_is() -> None:
    plain, _ = parse_train(TRAIN[1:])
    exported, options = parse_train([*TRAIN[1:], "--export", "onnx", "hub-folder"])
    assert options.export == ("onnx", "hub-folder")
    assert plain == exported
    assert plain.resolved().default_run_dir() == exported.resolved().default_run_dir()
    config = plain.resolved()
    command = control_command(config, "prune-rl train CartPole-v1 --export onnx hub-folder --steps 160")
    assert command == "prune-rl train CartPole-v1 --steps 160 --method dense"
    assert control_of(config).method == "dense"


@needs_compiler
def test_the_exported_code_plays_the_episodes_of_the_evaluation(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["evaluate", str(run), "--as", "onnx", "c", "int8"]) == 0
    printed = capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    for entry in evaluation["seeds"]:
        own, names = entry["policies"]["compact"], ("onnx", "c", "int8")
        for name in names:
            played = entry["policies"][name]
            assert len(played["returns"]) == 3
            assert f"seed {entry['seed']}: mean return over 3 episodes as {name}:" in printed
        # In float32 an action can differ only where two logits tie, which does not happen in three episodes.
        assert entry["policies"]["c"]["returns"] == entry["policies"]["onnx"]["returns"] == own["returns"]
        assert entry["policies"]["int8"]["bytes"] < own["bytes"]
    summary = (run / "summary.md").read_text()
    assert "ONNX Runtime" in summary
    assert "C, int8" in summary
    assert main(["evaluate", str(run), "--as", "c", "--episodes", "2"]) == 2
    assert "leave out --episodes and --seed" in capsys.readouterr().err.replace("\n", " ")


def test_a_folder_for_the_hub(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    assert (
        main(["export", str(run), "--to", "hub-folder", "--output", str(tmp_path), "--meta", "robot=a|b"])
        == 0
    )
    capsys.readouterr()
    folder = tmp_path / "seed_1" / "hub"
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    card = yaml.safe_load(head)
    (entry,) = json.loads((run / "evaluation.json").read_text())["seeds"][1:]
    returns = entry["policies"]["compact"]["returns"]
    (result,) = card["model-index"][0]["results"]
    assert result["dataset"] == {"name": "CartPole-v1", "type": "CartPole-v1"}
    assert result["metrics"][0]["type"] == "mean_reward"
    assert result["metrics"][0]["value"] == f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}"
    assert card["library_name"] == "prune_rl"
    results = json.loads((folder / "results.json").read_text())
    assert results["returns"] == returns
    assert results["mean_reward"] == pytest.approx(np.mean(returns))
    for line in body.splitlines():
        if line.startswith("| `"):
            assert (folder / line.split("`")[1]).exists(), line
    assert {"policy.c", "summary.png", "replay.mp4"} <= {path.name for path in folder.iterdir()}
    assert r"| robot | a\|b |" in body
    obs = np.zeros(4)
    assert prune_rl.load_policy(folder)(obs) == prune_rl.load_policy(run / "policy" / "seed_1")(obs)


def test_calibration_is_repeatable_and_not_that_of_the_evaluation(run: Path) -> None:
    policy, task = prune_rl.load_policy(run / "policy" / "seed_0"), resolve_task("CartPole-v1")
    first, again = (calibration(policy, task, episodes=2) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:1], calibration(policy, task, episodes=2, seed=0)[:1])
    assert first.shape[1] == 4


@needs_compiler
def test_integers_of_the_artefact_are_those_of_numpy(run: Path) -> None:
    from prune_rl.export.quantize import quantize

    policy, task = prune_rl.load_policy(run / "policy" / "seed_0"), resolve_task("CartPole-v1")
    seen = calibration(policy, task)
    np.testing.assert_array_equal(artefact(policy, "int8", task)(seen), quantize(policy, seen)(seen))


def test_the_time_of_a_step() -> None:
    assert step_seconds(resolve_task("CartPole-v1")) == 0.02
    assert step_seconds(resolve_task("Pendulum-v1")) == 0.05
