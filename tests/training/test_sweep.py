"""Sweeps: values in one program, each the run of its own; folders, interruption, reports, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.exit_status import SEED_WITHOUT_POLICY, USAGE_ERROR
from prune_rl.export.policy import load_policy
from prune_rl.runs.json_text import read_object
from prune_rl.training.run_config import read_config
from prune_rl.training.sweep_values import by_program, flags_of, read_axes, swept_runs
from tests.training.conftest import TIMEOUT
from tests.training.test_loop import files_of, kill_when, newest, rows_of

# Arrays of 16 neurons get smaller while neurons go.
TINY = shlex.split(
    "train CartPole-v1 --hidden 16 16 --num-envs 4 --num-steps 32 --steps 4000 --checkpoints 16 --episodes 3"
    " --frontier 6 --selection-episodes 2 --no-skip --prune.tolerance None --prune.sparsity 0.8 --prune.begin 0.1"
    " --prune.end 0.6 --prune.shrink always --seeds 2 --no-control"
)
SWEEP = ["--sweep", "learning_rate=1e-3,3e-3", "--sweep", "prune.strength=1e-4,1e-3"]
NAMES = [
    f"learning_rate={rate},prune.strength={strength}"
    for rate in (0.001, 0.003)
    for strength in (0.0001, 0.001)
]


@pytest.fixture(scope="module")
def swept(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four runs of two seeds each, never interrupted."""
    return train([*TINY, *SWEEP], tmp_path_factory.mktemp("sweep"))


def test_every_value_has_a_run_directory_and_all_share_a_program(swept: Any) -> None:
    folders = sorted(file.parent.name for file in swept.path.glob("*/config.json"))
    assert folders == sorted(NAMES)
    assert [folder.name for folder in (swept.path / "programs").iterdir()] == ["0"]
    timing = read_object(swept.path / "programs" / "0" / "timing.json")
    assert timing["total"] > 0
    for name, rate in zip(NAMES, (0.001, 0.001, 0.003, 0.003), strict=True):
        run = swept.path / name
        assert read_config(run).learner.learning_rate == rate
        assert len(rows_of(run)[-1]["value_loss"]) == 2
        for file in ("summary.md", "evaluation.json", "policy/seed_1/policy.json", "frontier.json"):
            assert (run / file).exists(), file
    assert swept.output.count("steps to do") == 1, "one display"


@pytest.mark.slow
def test_a_member_is_the_run_of_its_own(swept: Any, train: Any, tmp_path: Path) -> None:
    """Up to rounding; the command that its folder names trains it."""
    run = swept.path / NAMES[3]
    command = shlex.split(read_object(run / "config.json")["command"])
    assert command[:2] == ["prune-rl", "train"]
    assert "--sweep" not in command
    alone = train(command[1:], tmp_path)
    ours, theirs = (read_object(each / "config.json") for each in (run, alone.path))
    assert ours == theirs
    last = [rows_of(each)[-1] for each in (run, alone.path)]
    assert last[0]["widths"] == last[1]["widths"]
    for name in ("value_loss", "running_return", "entropy"):
        np.testing.assert_allclose(last[0][name], last[1][name], rtol=2e-2, atol=1e-3)
    for seed in range(2):
        policies = [load_policy(each / "wide" / f"seed_{seed}") for each in (run, alone.path)]
        for mine, other in zip(*(policy.layers for policy in policies), strict=True):
            for x, y in zip(mine, other, strict=True):
                np.testing.assert_allclose(x, y, rtol=2e-2, atol=2e-3)


def test_members_differ_by_their_values_alone(swept: Any) -> None:
    first = {name: rows_of(swept.path / name)[0] for name in NAMES}
    returns = [first[name]["return"] for name in NAMES]
    assert all(each == returns[0] for each in returns), "the first rollout is that of the seed"
    kernels = [load_policy(swept.path / name / "wide" / "seed_0").layers[-1][0] for name in NAMES]
    assert not any(np.array_equal(kernels[0], other) for other in kernels[1:])


def test_the_table_and_the_picture(swept: Any) -> None:
    text = (swept.path / "sweep.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert text.count(name) == 2, "a line of the runs, and one of their seeds"
    assert (swept.path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    results = read_object(swept.path / "sweep.json")["runs"]
    assert [result["name"] for result in results] == NAMES
    for result in results:
        evaluation = read_object(swept.path / result["name"] / "evaluation.json")
        means = [np.mean(entry["policies"]["compact"]["returns"]) for entry in evaluation["seeds"]]
        assert [each["return"] for each in result["seeds"].values()] == pytest.approx(means)
        assert result["mean"] == pytest.approx(np.mean(means))
    assert text.strip() in swept.output.replace("\r", "")


@pytest.mark.slow
def test_a_killed_sweep_ends_bit_identical(swept: Any, start: Any, tmp_path: Path) -> None:
    home = tmp_path / "runs" / swept.path.name
    program = home / "programs" / "0"
    for checkpoints, delay in ((2, 0.05), (3, 0.1)):
        process, begun = start(swept.arguments, tmp_path), newest(program)

        def ready(target: int = begun + 2 * checkpoints) -> bool:
            return newest(program) >= target

        assert kill_when(process, ready, delay), "it was not killed"
    assert not (home / NAMES[0] / "policy").exists()
    process = start(swept.arguments, tmp_path)
    status, output = process.wait(TIMEOUT), (tmp_path / "output").read_text()
    assert status == 0, output
    assert "continuing from the checkpoint" in output
    for name in NAMES:
        assert rows_of(home / name) == rows_of(swept.path / name)
        assert files_of(home / name) == files_of(swept.path / name)
    assert read_object(home / "sweep.json") == read_object(swept.path / "sweep.json")


def test_a_finished_sweep_trains_nothing_again(swept: Any) -> None:
    output = swept.again()
    assert "steps to do" not in output
    assert "playing" not in output
    assert "sweep.md" in output


def test_a_sweep_is_no_run(swept: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(swept.path)]) == USAGE_ERROR
    assert "is a sweep, not a run: give one of the run directories in it" in capsys.readouterr().err
    assert main(["evaluate", str(swept.path / NAMES[0])]) == 0


def test_a_value_that_diverges_leaves_the_others_alone(
    swept: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    home = tmp_path / "sweep"
    status = main([*TINY, "--sweep", "vf_coef=0.5,3e38", "--run-dir", str(home)])
    assert status == SEED_WITHOUT_POLICY
    output = capsys.readouterr().out
    assert "note: with vf_coef=3e+38, the training of seed 0 diverged at step" in output
    assert "vf_coef=3e+38 has no policy to evaluate" in output
    assert not (home / "vf_coef=0.5" / "faults.json").exists()
    faults = json.loads((home / "vf_coef=3e+38" / "faults.json").read_text())
    assert [fault["seed"] for fault in faults] == [0, 1]
    assert "| 0 of 2 |" in (home / "sweep.md").read_text()
    # Given again, it trains nothing, and the status is the same.
    assert main([*TINY, "--sweep", "vf_coef=0.5,3e38", "--run-dir", str(home)]) == SEED_WITHOUT_POLICY
    assert "steps to do" not in capsys.readouterr().out


def test_without_a_field_seeds_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also on host environments, with the dense control."""
    words = [word for word in TINY if word != "--no-control"]
    assert main([*words, "--backend", "gymnasium", "--sweep", "--run-dir", str(tmp_path / "sweep")]) == 0
    text = (tmp_path / "sweep" / "sweep.md").read_text()
    assert "| seeds | 2 of 2 |" in text
    assert "dense control" in text
    dense = next(each.parent for each in (tmp_path / "sweep").glob("CartPole-v1-ppo-dense-*/config.json"))
    assert read_config(dense).learner.prune is None
    assert "steps to do" in capsys.readouterr().out


def runs_of(*words: str, flags: str = "") -> Any:
    config, _ = parse_train(["CartPole-v1", *shlex.split(flags)])
    runs = swept_runs(config, read_axes(words, config))
    return [type(run)(run.values, run.config.resolved()) for run in runs]


def test_programs_are_shared_where_only_numbers_differ() -> None:
    runs = runs_of("num_envs=4,8", "gamma=0.9,0.99")
    assert [run.name for run in runs] == [
        f"num_envs={n},gamma={gamma}" for n in (4, 8) for gamma in (0.9, 0.99)
    ]
    assert [[run.name for run in group] for group in by_program(runs)] == [
        ["num_envs=4,gamma=0.9", "num_envs=4,gamma=0.99"],
        ["num_envs=8,gamma=0.9", "num_envs=8,gamma=0.99"],
    ]
    # A strength of 0 leaves the proximal step out, and a tolerance of None goes by a schedule: other programs.
    assert [len(group) for group in by_program(runs_of("prune.strength=0,1e-4,1e-3"))] == [1, 2]
    assert [len(group) for group in by_program(runs_of("prune.tolerance=None,0.01,0.02"))] == [1, 2]
    assert [len(group) for group in by_program(runs_of("hidden=64x64,32", "critic-hidden=64"))] == [1, 1]
    assert [run.config.learner.hidden for run in runs_of("hidden=64x64,32")] == [(64, 64), (32,)]
    assert [run.config.learner.skip for run in runs_of("skip=true,false")] == [True, False]
    assert [run.config.steps for run in runs_of("steps=1e5,2e5")] == [100352, 200704]


@pytest.mark.parametrize(
    "words", [("hidden=64x32",), ("steps=1000",), ("skip=false",), ("prune.tolerance=None",)]
)
def test_the_flags_of_a_run_give_its_values(words: tuple[str, ...]) -> None:
    (run,) = swept_runs(config := parse_train(["CartPole-v1"])[0], read_axes(words, config))
    again, _ = parse_train(["CartPole-v1", *flags_of(run.values)])
    assert again == run.config


def test_fields_of_several_flags_count_wherever_the_environment_stands() -> None:
    """As `make sweep` gives them: what follows in ARGS counts last."""
    words = shlex.split(
        "--sweep gamma=0.9,0.99 CartPole-v1 --no-control --sweep=ent_coef=1 --control --sweep"
    )
    config, options = parse_train(words)
    assert config.env == "CartPole-v1"
    assert options.sweep == ("gamma=0.9,0.99", "ent_coef=1")
    assert options.control
    assert parse_train(["CartPole-v1", "--sweep", "--seeds", "3"])[1].sweep == ()
    assert parse_train(["CartPole-v1"])[1].sweep is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--sweep learning_rat=1e-4", "unknown field 'learning_rat'; known are"),
        ("--sweep prune.strenght=1", "unknown field 'prune.strenght'; known are"),
        (
            "--sweep learning_rate=fast,1e-4",
            "--sweep learning_rate=fast: learning_rate must be a number, got 'fast'",
        ),
        ("--sweep num_envs=2.5", "num_envs must be a whole number, got 2.5"),
        ("--sweep learning_rate=", "--sweep takes FIELD=VALUE,VALUE,…"),
        ("--sweep gamma=0.9,2.0", "gamma must lie in [0, 1], got 2.0"),
        ("--sweep gamma=0.9 --sweep gamma=0.99", "--sweep names gamma twice: give all its values at once"),
        ("--sweep gamma=0.9,0.9", "has the value 0.9 twice"),
        ("--sweep seed=1,2", "'seed' is none"),
        ("--sweep gamma=0.9,0.99 --gamma 0.5", "gamma has the values of --sweep and one of --gamma"),
        ("--sweep gamma=0.9 --extend x", "--extend is for a single run, and --sweep makes several"),
        ("--sweep gamma=0.9 --shard-envs", "--shard-envs is for a single run, and --sweep makes several"),
        ("--method dense --sweep prune.strength=0.1,1", "would change nothing with method 'dense'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(
    words: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "CartPole-v1", *shlex.split(words)]) == USAGE_ERROR
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []
