from __future__ import annotations

from pathlib import Path

import pytest

from prune_rl.cli import main
from prune_rl.launch.jobs import flags, in_order
from tests.launch.grid_files import BOTH, OPTIONS, job, write_spec


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


def test_controls_come_first_and_runs_that_share_one_are_apart() -> None:
    dense, other = job(), job("Pendulum-v1")
    first, second = (job(method=method, control=dense.name) for method in ("dynamic", "linear"))
    leader, follower = (job("B", method, control="B-control") for method in ("dynamic", "linear"))
    assert in_order([first, second, leader, follower, other, dense]) == [
        dense,
        leader,
        first,
        second,
        follower,
        other,
    ]


def test_options_as_words_of_a_command_line() -> None:
    assert flags({"steps": 10, "lr": -1e-4, "like": "a run", "hidden": [], "x.refit": True}) == [
        "--steps=10",
        "--lr=-0.0001",
        "--like=a run",
        "--hidden",
        "--x.refit",
    ]
    with pytest.raises(ValueError, match="option steps must be a number"):
        flags({"steps": [[1]]})


def test_the_commands_of_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(BOTH.replace("[options]", "seed = [0, 4]\nseeds = 2\n[options]\ncontrol = true"))
    assert main(["launch", str(spec), "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert [word.split("--seed ")[1][0] for word in commands] == ["0", "4", "0", "4"]
    assert ["--method dense" in command for command in commands] == [True, True, False, False]
    for command in commands:
        assert command.startswith("prune-rl train CartPole-v1 --algo ppo --method ")
        assert " --seeds 2 --steps=8192 --hidden 8 8 " in command or " --seeds 2 --control " in command
        assert "--run-dir runs/grid/runs/CartPole-v1-ppo-" in command
    assert [path.name for path in Path().iterdir()] == [spec.name]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('[grid]\nenv = "Absent-v0"\n', ["the job Absent-v0 ppo dynamic cannot run", "Absent"]),
        ('[grid]\nenv = "CartPole-v1"\nmethod = ["dense", "tiny"]\n', ["CartPole-v1 ppo tiny", "--method"]),
        ('[grid]\nenv = "CartPole-v1"\nalgo = "dqn"\n', ["CartPole-v1 dqn dynamic", "dqn"]),
        (BOTH + "colour = 3\n", ["CartPole-v1 ppo dynamic", "Unrecognized options: --colour"]),
        (BOTH + "clip_eps = 'wide'\n", ["--clip-eps", "wide"]),
        (BOTH + "backend = 'envpool'\nhost_resets = 0\n", ["host_resets must be >= 1, got 0"]),
        (
            BOTH + "like = 'absent'\n",
            ["the job CartPole-v1 ppo dynamic cannot run: --like is for method 'small'"],
        ),
        (
            '[grid]\nenv = "CartPole-v1"\nmethod = "small"\n' + OPTIONS,
            ["'small' needs the widths of its actor"],
        ),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_any_starts(
    text: str, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", str(write_spec(text))]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: the job ")
    assert error.count("\n") == 1
    for sentence in sentences:
        assert sentence in error
    assert [path.name for path in Path().iterdir()] == ["grid.toml"]
