from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main, parse_train
from prune_rl.export.policy import Policy, save_policy
from prune_rl.learners import ppo
from prune_rl.spaces import Discrete
from prune_rl.training.config import Config
from prune_rl.training.run_directory import RunDirectory

IMAGES = "PruneRlImages-v0"


class Images(gymnasium.Env):
    """An environment that shows pictures."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path, monkeypatch):
    """An empty one, wide enough for the longest message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def image_env():
    gymnasium.register(IMAGES, entry_point=Images)
    yield IMAGES
    del gymnasium.registry[IMAGES]


def refused(capsys, *arguments):
    """What is said to a command that cannot work: one sentence, and nothing else happens."""
    before = sorted(Path.cwd().rglob("*"))
    assert main([str(argument) for argument in arguments]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    return error


def run_process(*arguments, code=None):
    start = ["-m", "prune_rl.cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_of_the_program():
    done = run_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("train ENV", "evaluate RUN", "report RUN"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "train",
            [
                "ENV",
                "--seeds",
                "--steps",
                "--method {dynamic,dense}",
                "--hidden",
                "--prune.sparsity",
                "--run-dir",
            ],
        ),
        ("evaluate", ["RUN", "--episodes", "--write"]),
        ("report", ["RUN", "--output"]),
    ],
)
def test_help_of_a_command(command, options, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert f"prune-rl {command}" in output
    for option in options:
        assert option in output
    assert "total-updates" not in output  # follows from the steps


@pytest.mark.parametrize(
    "arguments", [["LunarLander-v2", "--help"], ["--seeds", "2", "-h", "LunarLander-v2"]]
)
def test_help_shows_the_defaults_of_the_preset(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["train", *arguments])
    output = " ".join(capsys.readouterr().out.split())
    preset = parse_train(["LunarLander-v2"])[0]
    assert f"(default: {preset.steps})" in output
    assert f"(default: {preset.learner.minibatches})" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["LunarLander-v2", "--gamma", "0.5", "--prune.critic"],
        ["--gamma", "0.5", "--prune.critic", "LunarLander-v2"],
        ["--gamma=0.5", "LunarLander-v2", "--prune.critic"],
        ["--run-dir", "CartPole-v1", "--gamma", "0.5", "LunarLander-v2", "--prune.critic"],
    ],
)
def test_flags_override_the_preset_wherever_the_environment_is(arguments):
    preset, _ = parse_train(["LunarLander-v2"])
    assert preset.learner != ppo.Config()
    config, _ = parse_train(arguments)
    prune = dataclasses.replace(preset.learner.prune, critic=True)
    assert config == dataclasses.replace(
        preset, learner=dataclasses.replace(preset.learner, gamma=0.5, prune=prune)
    )
    assert type(config.learner) is ppo.Config


def test_a_preset_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seeds = 4\n[learner]\nhidden = [32]\nprune.energy = 0.1\n")
    config, options = parse_train(["CartPole-v1", "--preset", str(path), "--seeds", "2"])
    assert (config.seeds, config.learner.hidden, config.learner.prune.energy) == (2, (32,), 0.1)
    assert config.steps == Config().steps  # not the preset of CartPole-v1
    assert options.preset == path


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "{train,evaluate,report}"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "ENV"),
        (["train", "--steps", "5"], "ENV"),
        (["train", "CartPole-v1", "--stps", "5"], "--stps"),
        (["train", "CartPole-v1", "--stps", "5"], "--steps"),
        (["train", "CartPole-v1", "Acrobot-v1"], "Acrobot-v1"),
        (["train", "CartPole-v1", "--steps", "many"], "--steps"),
        (["train", "CartPole-v1", "--steps"], "--steps"),
        (["train", "CartPole-v1", "--algo"], "--algo"),
        (["train", "CartPole-v1", "--method", "sparse"], "dynamic"),
        (["train", "CartPole-v1", "--total-updates", "5"], "--total-updates"),
        (["evaluate"], "RUN"),
        (["evaluate", "a", "b"], "b"),
    ],
)
def test_a_command_line_that_does_not_parse(arguments, part, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert part in error
    assert "Traceback" not in error
    assert error.count("For full helptext") <= 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["Cartpole-v1"], "unknown environment 'Cartpole-v1'; did you mean 'CartPole-v1'"),
        (["LunarLander-v1"], "'LunarLander-v2'"),
        (["../x"], "unknown environment '../x'"),
        (["/etc/passwd"], "unknown environment '/etc/passwd'"),
        (["a\nb"], "unknown environment"),
        (["[red]x"], "unknown environment '[red]x'"),
        (["CarRacing-v3"], "image observations"),
        (["Blackjack-v1"], "Tuple"),
        (["CartPole-v1", "--algo", "sac"], "there is no learner 'sac' yet; choose one of ppo"),
        (["CartPole-v1", "--algo=sac"], "there is no learner 'sac' yet"),
        (["Pendulum-v1", "--backend", "jax"], "Pendulum-v1 has no backend 'jax'"),
        (["CartPole-v1", "--steps", "0"], "steps must be >= 1, got 0"),
        (["CartPole-v1", "--steps", "-100"], "steps must be >= 1, got -100"),
        (["CartPole-v1", "--episodes", "0"], "episodes must be >= 1, got 0"),
        (["CartPole-v1", "--seeds", "0"], "seeds must be >= 1, got 0"),
        (["CartPole-v1", "--seed", "-1"], "seed must lie in"),
        (["CartPole-v1", "--checkpoints", "0"], "checkpoints must be >= 1, got 0"),
        (["CartPole-v1", "--num-envs", "0"], "num_envs must be >= 1, got 0"),
        (["CartPole-v1", "--num-steps", "-1"], "num_steps must be >= 1, got -1"),
        (["CartPole-v1", "--epochs", "0"], "epochs must be >= 1, got 0"),
        (["CartPole-v1", "--minibatches", "0"], "minibatches must be >= 1, got 0"),
        (["CartPole-v1", "--minibatches", "7"], "minibatches = 7 does not divide"),
        (["CartPole-v1", "--hidden", "0"], "hidden needs at least one width, each >= 1"),
        (["CartPole-v1", "--hidden"], "hidden needs at least one width"),
        (["CartPole-v1", "--hidden", "64", "-1"], "hidden needs at least one width, each >= 1"),
        (["CartPole-v1", "--prune.every", "0"], "prune.every must be >= 1, got 0"),
        (["CartPole-v1", "--prune.min-width", "0"], "prune.min_width must be >= 1, got 0"),
        (["CartPole-v1", "--prune.min-width", "17", "--hidden", "16"], "wider than the narrowest hidden layer (16)"),
        (["CartPole-v1", "--prune.sparsity", "1"], "prune.sparsity must lie in [0, 1), got 1.0"),
        (["CartPole-v1", "--prune.sparsity", "-0.1"], "prune.sparsity must lie in [0, 1)"),
        (["CartPole-v1", "--prune.no-enabled"], "use method 'dense'"),
        (["CartPole-v1", "--learning-rate", "nan"], "learning_rate must be a finite number > 0, got nan"),
        (["CartPole-v1", "--gamma", "inf"], "gamma must lie in [0, 1], got inf"),
        (["CartPole-v1", "--preset", "none.toml"], "there is no preset 'none.toml'"),
        (["CartPole-v1", "--run-dir", "/proc/version"], "/proc/version"),
        (["CartPole-v1", "--run-dir", "/proc/nothing/here"], "/proc/nothing/here"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(arguments, part, capsys):
    assert part in refused(capsys, "train", *arguments)


def test_images_are_refused(image_env, capsys):
    error = refused(capsys, "train", image_env)
    assert "image observations (uint8, shape (8, 8, 3))" in error


@pytest.mark.parametrize(
    "text",
    ["steps = ", "stepz = 1", "steps = 'many'", "[learner]\nhidden = 8", "[learner]\nprune.sparsity = 1.5"],
)
def test_a_bad_preset_is_refused(text, capsys):
    Path("mine.toml").write_text(text)
    error = refused(capsys, "train", "CartPole-v1", "--preset", "mine.toml")
    assert "mine.toml" in error or "prune.sparsity" in error


def test_a_missing_extra_is_named_with_the_install_line(tmp_path):
    code = (
        "import sys; sys.modules['Box2D'] = None\nfrom prune_rl.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = run_process("train", "LunarLander-v2", code=code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: LunarLander-v2 needs a package that is missing; install it with: pip install 'prune_rl[box2d]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def make_run(folder, config):
    with RunDirectory.open(folder, {**config.to_json(), "command": "prune-rl train"}) as run:
        return run.path


def test_the_run_directory_of_another_configuration_is_refused(capsys):
    run = make_run("mine", dataclasses.replace(parse_train(["CartPole-v1"])[0], steps=4096).resolved())
    before = {file: file.read_bytes() for file in run.iterdir()}
    error = refused(capsys, "train", "CartPole-v1", "--steps", "9000", "--run-dir", "mine")
    assert "the run directory mine belongs to another configuration" in error
    assert "steps = 4096 there, 9216 here" in error
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_directory_in_use_is_refused(capsys):
    config = parse_train(["CartPole-v1"])[0].resolved()
    with RunDirectory.open("mine", {**config.to_json(), "command": ""}):
        error = refused(capsys, "train", "CartPole-v1", "--run-dir", "mine")
    assert f"the run directory mine is in use by another training process (pid {os.getpid()})" in error


def test_a_folder_that_holds_something_else_is_refused(capsys):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert main(["train", "CartPole-v1", "--run-dir", "mine"]) == 2
    assert "mine is not a run directory, it holds 'letter.txt'" in capsys.readouterr().err
    assert Path("mine/letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "is not a run directory of prune-rl"),
        ("", "is not a run directory of prune-rl"),
        ("[1, 2]", "is not a run directory of prune-rl"),
        ('{"env": "CartPole-v1", "command": "", "colour": "red"}', "unknown field 'colour'"),
        ('{"env": "CartPole-v1", "command": "", "seeds": "three"}', "seeds must be a whole number"),
        ('{"env": "CartPole-v1", "command": "", "seeds": -3}', "seeds must be >= 1"),
        ('{"env": "Cartpole-v1", "command": ""}', "did you mean 'CartPole-v1'"),
    ],
)
def test_evaluating_what_is_no_run_is_refused(content, part, capsys):
    Path("folder").mkdir()
    if content is not None:
        Path("folder/config.json").write_text(content)
    assert part in refused(capsys, "evaluate", "folder")
    assert "nowhere" in refused(capsys, "evaluate", "nowhere")


@pytest.fixture
def run_with_policy():
    """A run directory as training leaves it, with a policy nobody trained."""
    run = make_run("mine", dataclasses.replace(parse_train(["CartPole-v1"])[0], steps=4096).resolved())
    policy = Policy(
        layers=((np.eye(4), np.zeros(4)), (np.eye(4)[:, :2], np.zeros(2))),
        activation="tanh",
        action=Discrete(2),
    )
    for kind in ("policy", "wide"):
        save_policy(run / kind, policy)
    return run


def test_evaluate_measures_and_leaves_the_run_as_it_was(run_with_policy, capsys):
    before = sorted(run_with_policy.rglob("*"))
    assert main(["evaluate", "mine", "--episodes", "5"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert "seed 0: mean return over 5 episodes: masked" in output
    assert sorted(run_with_policy.rglob("*")) == before
    assert main(["evaluate", "mine", "--episodes", "5", "--seed", "3", "--write"]) == 0
    evaluation = json.loads((run_with_policy / "evaluation.json").read_text())
    assert len(evaluation["seeds"][0]["policies"]["compact"]["returns"]) == 5


def test_evaluate_refuses_bad_numbers_and_unfinished_runs(run_with_policy, capsys):
    assert "episodes must be >= 1, got 0" in refused(capsys, "evaluate", "mine", "--episodes", "0")
    assert "seed must lie in" in refused(capsys, "evaluate", "mine", "--seed", "-1")
    for file in (run_with_policy / "policy").iterdir():
        file.unlink()
    (run_with_policy / "policy").rmdir()
    error = refused(capsys, "evaluate", "mine")
    assert "mine has no policy yet: finish its training with the command that began it" in error


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b'{"format": 1}'])
def test_evaluate_refuses_a_damaged_policy(name, damage, run_with_policy, capsys):
    (run_with_policy / "policy" / name).write_bytes(damage)
    assert "cannot load the policy file" in refused(capsys, "evaluate", "mine")


def test_report_refuses_what_is_no_evaluated_run(run_with_policy, capsys):
    assert "nothing to report" in refused(capsys, "report")
    assert "nowhere" in refused(capsys, "report", "nowhere")
    assert "evaluat" in refused(capsys, "report", "mine")
