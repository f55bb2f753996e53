from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.envs.task import resolve_task
from prune_rl.evaluation.evaluate import evaluate_policy
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.learners import ppo, sac
from prune_rl.runs.directory import RunDirectory
from prune_rl.training.config import Config
from prune_rl.training.control import control_of
from prune_rl.training.policy_export import policy_paths
from tests.evaluation.clips import frames_of

IMAGES, UNBOUNDED = "PruneRlImages-v0", "PruneRlUnbounded-v0"


class Images(gymnasium.Env):
    """An environment that shows pictures."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)


class Unbounded(gymnasium.Env):
    """An environment of short episodes whose actions have no bounds, and which draws nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(4, np.float32), 1.0, True, False, {}


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, wide enough for the longest message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def image_env() -> Iterator[Any]:
    gymnasium.register(IMAGES, entry_point=cast(Any, Images))
    yield IMAGES
    del gymnasium.registry[IMAGES]


@pytest.fixture
def unbounded_env() -> Iterator[Any]:
    gymnasium.register(UNBOUNDED, entry_point=cast(Any, Unbounded))
    yield UNBOUNDED
    del gymnasium.registry[UNBOUNDED]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    """What is said to a command that cannot work: one sentence, and nothing else happens."""
    before = sorted(Path.cwd().rglob("*"))
    assert main([str(argument) for argument in arguments]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    return error


def run_process(*arguments: Any, code: Any = None) -> Any:
    start = ["-m", "prune_rl.cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_of_the_program() -> None:
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
                "--method {dynamic,dense,small,linear}",
                "--hidden",
                "--prune.sparsity",
                "--run-dir",
            ],
        ),
        ("evaluate", ["RUN", "--episodes", "--write", "--video", "--video-path"]),
        ("report", ["RUN", "--output"]),
    ],
)
def test_help_of_a_command(command: str, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert f"prune-rl {command}" in output
    for option in options:
        assert option in output
    assert "total-timesteps" not in output  # it is --steps here


@pytest.mark.parametrize(
    ("algo", "own", "of_the_other"),
    [
        ("ppo", ["--update-epochs", "--gae-lambda"], ["--tau"]),
        ("sac", ["--tau", "--utd-ratio"], ["--update-epochs"]),
    ],
)
def test_help_shows_the_hyperparameters_of_the_learner(
    algo: str, own: Any, of_the_other: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--algo", algo, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for option in (*own, "--algo {ppo,sac}", "--hidden", "--prune.sparsity", "--seeds"):
        assert option in output
    for option in (*of_the_other, "--total-timesteps", "--learner", "prune:"):
        assert option not in output
    assert f"(default: {algo})" in output


@pytest.mark.parametrize(
    "arguments", [["LunarLander-v2", "--help"], ["--seeds", "2", "-h", "LunarLander-v2"]]
)
def test_help_shows_the_defaults_of_the_preset(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", *arguments])
    output = " ".join(capsys.readouterr().out.split())
    preset = parse_train(["LunarLander-v2"])[0].learner
    assert isinstance(preset, ppo.Config)
    assert f"(default: {preset.total_timesteps})" in output
    assert f"(default: {preset.num_minibatches})" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["LunarLander-v2", "--gamma", "0.5", "--prune.critic"],
        ["--gamma", "0.5", "--prune.critic", "LunarLander-v2"],
        ["--gamma=0.5", "LunarLander-v2", "--prune.critic"],
        ["--run-dir", "CartPole-v1", "--gamma", "0.5", "LunarLander-v2", "--prune.critic"],
    ],
)
def test_flags_override_the_preset_wherever_the_environment_is(arguments: Any) -> None:
    preset, _ = parse_train(["LunarLander-v2"])
    assert preset.learner != ppo.Config()
    config, _ = parse_train(arguments)
    assert preset.learner.prune is not None
    prune = dataclasses.replace(preset.learner.prune, critic=True)
    assert config == dataclasses.replace(
        preset, learner=dataclasses.replace(preset.learner, gamma=0.5, prune=prune)
    )
    assert type(config.learner) is ppo.Config


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seeds = 4\n[learner]\nhidden = [32]\nprune.energy = 0.1\n")
    config, options = parse_train(["CartPole-v1", "--preset", str(path), "--seeds", "2"])
    assert config.learner.prune is not None
    assert (config.seeds, config.learner.hidden, config.learner.prune.energy) == (2, (32,), 0.1)
    assert config.learner.total_timesteps == ppo.Config().total_timesteps  # not the preset of CartPole-v1
    assert options.preset == path


@pytest.mark.parametrize("algo", [["--algo", "sac"], ["--algo=sac"]])
def test_sac_is_configured_by_its_own_flags(algo: Any) -> None:
    flags = ["--tau", "0.01", "--alpha", "0.2", "--prune.critic", "--seeds", "3", "--hidden", "64", "32"]
    config, _ = parse_train(["Pendulum-v1", *flags, *algo])
    prune = sac.Config().prune
    assert prune is not None
    prune = dataclasses.replace(prune, critic=True)
    expected = sac.Config(tau=0.01, alpha=0.2, hidden=(64, 32), prune=prune)
    assert config == Config(env="Pendulum-v1", algo="sac", seeds=3, learner=expected)
    assert type(config.learner) is sac.Config
    assert control_of(config.resolved()).algo == "sac"


def test_a_preset_of_sac(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('algo = "sac"\n[learner]\ntau = 0.5\n')
    config, _ = parse_train(["CartPole-v1", "--algo", "sac", "--preset", str(path), "--gamma", "0.5"])
    assert config == Config(algo="sac", learner=sac.Config(tau=0.5, gamma=0.5))


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ('algo = "sac"', [], "preset mine.toml is one for --algo sac, not for ppo"),
        ('algo = "ppo"', ["--algo", "sac"], "preset mine.toml is one for --algo ppo, not for sac"),
        (
            "learner.update_epochs = 3",
            ["--algo", "sac"],
            "preset mine.toml: unknown field 'learner.update_epochs'",
        ),
        ("learner.tau = 0.1", [], "preset mine.toml: unknown field 'learner.tau'"),
        ('algo = "td3"', [], "preset mine.toml: there is no learner 'td3'; choose one of ppo, sac"),
    ],
)
def test_a_preset_of_another_learner_is_refused(
    text: str, flags: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text(text)
    assert message in refused(capsys, "train", "CartPole-v1", "--preset", "mine.toml", *flags)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "{train,evaluate,choose,report,export,launch,status}"),
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
        (["train", "CartPole-v1", "--total-timesteps", "5"], "--total-timesteps"),
        (["train", "CartPole-v1", "--num-updates", "5"], "--num-updates"),
        (["train", "CartPole-v1", "--host-resets", "many"], "--host-resets"),
        (["train", "CartPole-v1", "--prune.no-enabled"], "--prune.no-enabled"),
        (["train", "CartPole-v1", "--tau", "0.1"], "--tau"),
        (["train", "CartPole-v1", "--algo", "sac", "--update-epochs", "3"], "--update-epochs"),
        (["train", "CartPole-v1", "--backend", "mjx"], "envpool"),
        (["evaluate"], "RUN"),
        (["evaluate", "a", "b"], "b"),
        (["evaluate", "a", "--video", "b"], "b"),
        (["evaluate", "a", "--video-path"], "--video-path"),
    ],
)
def test_a_command_line_that_does_not_parse(
    arguments: Any, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["FrozenLake-v1"], "Discrete"),
        (["CartPole-v1", "--algo", "td3"], "there is no learner 'td3'; choose one of ppo, sac"),
        (["CartPole-v1", "--algo=td3"], "there is no learner 'td3'"),
        (["CartPole-v1", "--algo", "sac", "--steps", "99"], "environment steps to learn in; lower it or train longer"),
        (["CartPole-v1", "--algo", "sac", "--tau", "0"], "tau must lie in (0, 1], got 0.0"),
        (["Acrobot-v1", "--backend", "jax"], "Acrobot-v1 has no backend 'jax'"),
        (["CartPole-v1", "--method", "small"], "method 'small' needs the widths of its actor: give --like RUN"),
        (["CartPole-v1", "--method", "linear", "--like", "x"], "--like is for method 'small', got method 'linear'"),
        (["CartPole-v1", "--critic-hidden", "8", "0"], "critic_hidden needs widths >= 1, got (8, 0)"),
        (["CartPole-v1", "--steps", "0"], "total_timesteps (--steps) must be >= 1, got 0"),
        (["CartPole-v1", "--steps", "-100"], "total_timesteps (--steps) must be >= 1, got -100"),
        (["Pendulum-v1", "--host-resets", "0"], "host_resets must be >= 1, got 0"),
        (["CartPole-v1", "--host-resets", "4"], "host_resets = 4 is for environments on the host"),
        (["CartPole-v1", "--episodes", "0"], "episodes must be >= 1, got 0"),
        (["CartPole-v1", "--seeds", "0"], "seeds must be >= 1, got 0"),
        (["CartPole-v1", "--seed", "-1"], "seed must lie in"),
        (["CartPole-v1", "--checkpoints", "0"], "checkpoints must be >= 1, got 0"),
        (["CartPole-v1", "--num-envs", "0"], "num_envs must be >= 1, got 0"),
        (["CartPole-v1", "--num-steps", "-1"], "num_steps must be >= 1, got -1"),
        (["CartPole-v1", "--update-epochs", "0"], "update_epochs must be >= 1, got 0"),
        (["CartPole-v1", "--num-minibatches", "0"], "num_minibatches must be >= 1, got 0"),
        (["CartPole-v1", "--num-minibatches", "7"], "num_minibatches = 7 does not divide"),
        (["CartPole-v1", "--hidden", "0"], "hidden needs widths >= 1"),
        (["CartPole-v1", "--hidden"], "hidden is (), which leaves nothing to prune"),
        (["CartPole-v1", "--hidden", "64", "-1"], "hidden needs widths >= 1"),
        (["CartPole-v1", "--hidden", "4096", "4096"], "takes 67239976 bytes, more than the 67108864 that a policy"),
        (["CartPole-v1", "--prune.every", "0"], "prune.every must be >= 1, got 0"),
        (["CartPole-v1", "--no-skip", "--prune.min-width", "0"], "prune.min_width must be >= 1 without --skip, got 0"),
        (["CartPole-v1", "--prune.min-width", "17", "--hidden", "16"], "wider than the narrowest hidden layer (16)"),
        (["CartPole-v1", "--prune.sparsity", "1.1"], "prune.sparsity must lie in [0, 1], got 1.1"),
        (["CartPole-v1", "--prune.sparsity", "-0.1"], "prune.sparsity must lie in [0, 1]"),
        (["CartPole-v1", "--learning-rate", "nan"], "learning_rate must be a finite number > 0, got nan"),
        (["CartPole-v1", "--gamma", "inf"], "gamma must lie in [0, 1], got inf"),
        (["CartPole-v1", "--preset", "none.toml"], "there is no preset 'none.toml'"),
        (["CartPole-v1", "--run-dir", "/proc/version"], "/proc/version"),
        (["CartPole-v1", "--run-dir", "/proc/nothing/here"], "/proc/nothing/here"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(
    arguments: Any, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in refused(capsys, "train", *arguments)


def test_sac_refuses_actions_without_bounds(unbounded_env: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "train", unbounded_env, "--algo", "sac")
    assert "SAC squashes its actions into their bounds, which must be finite" in error


def test_images_are_refused(image_env: Any, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "train", image_env)
    assert "image observations (uint8, shape (8, 8, 3))" in error


@pytest.mark.parametrize(
    "text",
    [
        "steps = ",
        "steps = 1",
        "stepz = 1",
        "seeds = 'many'",
        "[learner]\nhidden = 8",
        "[learner]\nprune.sparsity = 1.5",
        "[learner]\ngamma = 1" + "0" * 400,
        "seeds = " + "[" * 50_000,
    ],
)
def test_a_bad_preset_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text(text)
    error = refused(capsys, "train", "CartPole-v1", "--preset", "mine.toml")
    assert "mine.toml" in error or "prune.sparsity" in error


def test_a_missing_extra_is_named_with_the_install_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['Box2D'] = None\nfrom prune_rl.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = run_process("train", "LunarLander-v2", code=code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: LunarLander-v2 needs a package that is missing; install it with: pip install 'prune_rl[box2d]'\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("backend", "package", "line"),
    [("envpool", "envpool", "Hopper-v3 on EnvPool needs"), ("jax", "mujoco.mjx", "Hopper-v3 on MJX needs")],
)
def test_a_missing_backend_is_named_with_the_install_line(
    backend: str, package: str, line: str, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\nfrom prune_rl.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = run_process("train", "Hopper-v3", "--backend", backend, code=code)
    assert (done.returncode, done.stdout) == (2, "")
    extra = "mjx" if backend == "jax" else backend
    assert done.stderr.startswith(f"error: {line} a package that is missing (")
    assert done.stderr.endswith(f"install it with: pip install 'prune_rl[{extra}]'\n")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        (["CartPole-v1"], []),
        (["Hopper-v3", "--backend", "gymnasium"], ["Hopper-v3 runs Gymnasium's v4 class"]),
        (
            ["Walker2D-v3", "--algo", "sac", "--backend", "gymnasium"],
            ["Walker2D-v3 is Walker2d-v3 and runs Gymnasium's v4 class"],
        ),
        (
            ["Hopper-v3", "--backend", "jax"],
            ["Hopper-v3 runs Gymnasium's v4 class", "note: on a CPU, MJX is an order of magnitude slower"],
        ),
        (
            ["LunarLander-v2", "--backend", "envpool"],
            ["LunarLander-v2 runs Gymnasium's v3 class", "note: EnvPool runs its own version of the task"],
        ),
    ],
)
def test_what_may_surprise_is_said_before_training(
    arguments: Any, notes: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prune_rl.training.experiment.train", interrupted)
    # Neither is used before training.
    monkeypatch.setitem(sys.modules, "envpool", types.ModuleType("envpool"))
    if "jax" in arguments:
        capsys.readouterr()  # MJX prints which parts of it are missing
    assert main(["train", *arguments]) == 130
    lines = capsys.readouterr().out.split("\n")
    assert lines[len(notes) :] == ["", "interrupted; the same command continues from the last checkpoint", ""]
    for line, note in zip(lines, notes, strict=False):
        assert line.startswith(note)


INTERRUPTED = "interrupted; the same command continues from the last checkpoint"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_that_a_compiled_module_turns_into_an_import_error_is_one_line(
    number: int, status: int
) -> None:
    code = (
        "import os, sys\n"
        "import prune_rl.__main__ as program\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'tensorstore':\n"
        "            try:\n"
        f"                os.kill(os.getpid(), {int(number)})\n"
        "            except BaseException as error:\n"
        "                raise ImportError('initialization failed') from error\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.exit(program.main())"
    )
    done = run_process("train", "CartPole-v1", "--steps", "1000000", "--no-control", code=code)
    assert done.returncode == status, done.stderr
    assert (done.stdout.strip(), done.stderr) == (INTERRUPTED, "")


@pytest.mark.parametrize(("status", "said"), [(130, False), (143, False), (2, True)])
def test_threads_that_an_interrupt_left_at_work_print_nothing(status: int, said: bool) -> None:
    code = (
        "import logging, sys, threading\n"
        "import prune_rl.__main__ as program\n"
        "from prune_rl import cli\n"
        "def left():\n"
        "    threading.main_thread().join()\n"
        "    logging.getLogger('absl').error('cannot schedule new futures')\n"
        "    raise RuntimeError('cannot schedule new futures')\n"
        "def main():\n"
        "    threading.Thread(target=left).start()\n"
        f"    return {status}\n"
        "cli.main = main\n"
        "sys.exit(program.main())"
    )
    done = run_process(code=code)
    assert done.returncode == status
    assert (done.stderr.count("cannot schedule new futures") > 1) == said, done.stderr
    assert bool(done.stderr) == said


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("delay", [0.1, 0.4, 1.0])
def test_a_signal_while_the_program_starts_is_one_line(number: int, status: int, delay: float) -> None:
    """During its imports, and (the last delay, as a rule) while it makes the environment."""
    code = (
        "import os, sys, threading\n"
        "import prune_rl.__main__ as program\n"
        f"threading.Timer({delay}, os.kill, (os.getpid(), {int(number)})).start()\n"
        "sys.exit(program.main())"
    )
    done = run_process("train", "LunarLander-v2", "--steps", "1000000", "--no-control", code=code)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith(f"\n{INTERRUPTED}\n")
    assert "Traceback" not in done.stderr


def _swallowing(number: int, lines: str) -> str:
    """A program in which ``lines``, with ``send()``, are the command `report`."""
    return (
        "import gc, os, sys, time\n"
        "import prune_rl.cli as cli, prune_rl.cli.report as report, prune_rl.interrupts as interrupts\n"
        f"def send(*_): os.kill(os.getpid(), {int(number)})\n"
        "def swallowing(arguments, console):\n"
        f"{textwrap.indent(textwrap.dedent(lines), '    ')}\n"
        "    time.sleep(60)\n"
        "report.run = swallowing\n"
        "sys.exit(cli.main(['report', 'x']))"
    )


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_that_a_library_swallows_is_raised_again(number: int, status: int) -> None:
    lines = """
        interrupts.AGAIN = 0.5
        for first in (True, False):
            try:
                send() if first else None
                time.sleep(60)
            except BaseException:
                pass
    """
    done = run_process(code=_swallowing(number, lines))
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith(f"\n{INTERRUPTED}\n")
    assert "Traceback" not in done.stderr


IN_CALLBACKS = {
    "collector": """
        def collected(phase, info):
            gc.callbacks.clear()
            send()
        gc.callbacks.append(collected)
        gc.collect()
    """,
    "finalizer": """
        type("Finalized", (), {"__del__": send})()
    """,
}


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("where", IN_CALLBACKS)
def test_a_signal_inside_a_callback_of_the_interpreter_is_raised_after_it(
    number: int, status: int, where: str
) -> None:
    # Were the report of the interpreter not used, the program would sleep for its 60 seconds.
    done = run_process(
        code=_swallowing(number, f"interrupts.AGAIN = 1e6\n{textwrap.dedent(IN_CALLBACKS[where])}")
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith(f"\n{INTERRUPTED}\n")
    assert not done.stderr


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_what_a_signal_left_half_made_is_not_reported(number: int, status: int) -> None:
    lines = """
        class HalfMade:
            def __init__(self):
                send()
                time.sleep(60)
                self.parts = []
            def __del__(self):
                self.parts.clear()
        HalfMade()
    """
    done = run_process(code=_swallowing(number, lines))
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith(f"\n{INTERRUPTED}\n")
    assert not done.stderr


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    lines = """
        try:
            send()
            time.sleep(60)
        except BaseException:
            send()
    """
    done = run_process(code=_swallowing(signal.SIGTERM, lines))
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_sigterm_ends_training_as_ctrl_c_does(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "prune_rl", "train", "CartPole-v1", "--hidden", "8", "--num-envs", "2",
         "--num-steps", "32", "--num-minibatches", "2", "--no-control"],
        env=os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1]), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    while "steps to do" not in line:
        line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 143
    assert rest.endswith(f"\n{INTERRUPTED}\n")
    assert "Traceback" not in rest
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / ".lock-owner").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "CartPole-v1", "--help"], ["report", "mine"]])
def test_an_output_without_unicode_gets_ascii(arguments: Any) -> None:
    run_of("CartPole-v1")
    assert main(["evaluate", "mine", "--episodes", "2", "--write"]) == 0
    environment = os.environ | {
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(prune_rl.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "prune_rl", *arguments], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    if arguments[0] == "report":
        assert b"+-" in done.stdout  # of mean and standard deviation


def test_a_full_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mine/checkpoints")

    monkeypatch.setattr("prune_rl.training.experiment.train", full)
    error = refused(capsys, "train", "CartPole-v1")
    assert error == (
        "error: no space is left on the disk for mine/checkpoints: free some, then give the same command again, which "
        "continues from the last checkpoint\n"
    )


def make_run(folder: Any, config: Any) -> Any:
    with RunDirectory.open(folder, {**config.to_json(), "command": "prune-rl train"}) as run:
        return run.path


def test_the_run_directory_of_another_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("mine", parse_train(["CartPole-v1", "--steps", "4096"])[0].resolved())
    before = {file: file.read_bytes() for file in run.iterdir()}
    error = refused(capsys, "train", "CartPole-v1", "--steps", "9000", "--run-dir", "mine")
    assert "the run directory mine belongs to another configuration" in error
    assert "learner.total_timesteps = 4096 there, 9216 here" in error
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_directory_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_train(["CartPole-v1"])[0].resolved()
    with RunDirectory.open("mine", {**config.to_json(), "command": ""}):
        error = refused(capsys, "train", "CartPole-v1", "--run-dir", "mine")
    assert f"the run directory mine is in use by another training process (pid {os.getpid()})" in error


def test_a_folder_that_holds_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_evaluating_what_is_no_run_is_refused(
    content: Any, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    if content is not None:
        Path("folder/config.json").write_text(content)
    assert part in refused(capsys, "evaluate", "folder")
    assert "nowhere" in refused(capsys, "evaluate", "nowhere")


def run_of(env: Any, **fields: Any) -> Any:
    """A run directory as training leaves it, with policies nobody trained."""
    config = dataclasses.replace(parse_train([env, "--steps", "4096"])[0], **fields).resolved()
    run, action = make_run("mine", config), resolve_task(env).spec.action
    for seed in config.all_seeds:
        eye = np.eye(4, dtype=np.float32)
        layers = ((eye, np.full(4, 0.1 * seed, np.float32)), (eye[:, :2], np.zeros(2, np.float32)))
        for kind in ("policy", "wide"):
            (run / kind).mkdir(exist_ok=True)
            save_policy(policy_paths(run, config, kind)[seed], Policy(layers, "tanh", action))
    return run


@pytest.fixture
def run_with_policy() -> Any:
    return run_of("CartPole-v1")


def test_evaluate_measures_and_leaves_the_run_as_it_was(
    run_with_policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run_with_policy.rglob("*"))
    assert main(["evaluate", "mine", "--episodes", "5"]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert "seed 0: mean return over 5 episodes: masked" in output
    assert sorted(run_with_policy.rglob("*")) == before
    assert main(["evaluate", "mine", "--episodes", "5", "--seed", "3", "--write"]) == 0
    evaluation = json.loads((run_with_policy / "evaluation.json").read_text())
    assert len(evaluation["seeds"][0]["policies"]["compact"]["returns"]) == 5


def test_the_module_of_a_strangers_environment_is_not_imported_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "prune_rl_stranger.py").write_text(
        "import pathlib, gymnasium\n"
        "pathlib.Path('imported').touch()\n"
        "spec = gymnasium.spec('CartPole-v1')\n"
        "gymnasium.register('Stranger-v0', spec.entry_point, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    env = "prune_rl_stranger:Stranger-v0"
    run = run_of("CartPole-v1")
    for name in ("config.json", ".config-copy.json"):
        config = json.loads((run / name).read_text()) | {"env": env, "backend": "gymnasium", "host_resets": 1}
        (run / name).write_text(json.dumps(config))
    for command in (["evaluate", "mine"], ["choose", "mine", "--neurons", "3"]):
        error = refused(capsys, *command)
        assert (
            f"mine names the environment '{env}', for which the Python module 'prune_rl_stranger' would be"
            in error
        )
        assert f"give --trust if you trust the run, or --env {env}" in error
        error = refused(capsys, *command, "--env", "CartPole-v1")
        assert f"mine was trained in '{env}', not in 'CartPole-v1'" in error
    assert "nothing to report" not in refused(capsys, "report", "mine")
    assert not Path("imported").exists()
    for given in (["--trust"], ["--env", env]):
        assert main(["evaluate", "mine", "--episodes", "2", *given]) == 0
    assert Path("imported").exists()
    del gymnasium.registry["Stranger-v0"]


def test_evaluate_refuses_bad_numbers_and_unfinished_runs(
    run_with_policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "episodes must be >= 1, got 0" in refused(capsys, "evaluate", "mine", "--episodes", "0")
    assert "seed must lie in" in refused(capsys, "evaluate", "mine", "--seed", "-1")
    for file in (run_with_policy / "policy").iterdir():
        file.unlink()
    (run_with_policy / "policy").rmdir()
    error = refused(capsys, "evaluate", "mine")
    assert "mine has no policy yet: finish its training with the command that began it" in error


def filmed(output: Any) -> Any:
    """Seed, return and file of each clip that was printed."""
    return re.findall(r"^seed (\d+): return (\S+) in the first episode, filmed in (\S+)$", output, re.M)


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (["--video"], "mine/video.mp4"),
        (["--video-path", "clips/clip.gif"], "clips/clip.gif"),
        (["--video", "--video-path", "clip.mp4"], "clip.mp4"),
    ],
)
def test_evaluate_films_the_first_episode(
    flags: Any, file: str, run_with_policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run_with_policy.rglob("*") if path.is_file()}
    assert main(["evaluate", "mine", "--episodes", "4", "--seed", "3", *flags]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert "seed 0: mean return over 4 episodes: masked" in output
    played = evaluate_policy(load_policy(run_with_policy), "CartPole-v1", episodes=4, seed=3)
    assert filmed(output) == [("0", f"{played.returns[0]:.1f}", file)]
    assert len(frames_of(file)[0]) == played.lengths[0] + 1
    assert {path: path.read_bytes() for path in before} == before
    new = {path for path in Path.cwd().rglob("*") if path.is_file()} - {path.absolute() for path in before}
    assert new == {Path(file).absolute()}
    # A clip in the run directory is in nobody's way there.
    assert main(["evaluate", "mine", "--episodes", "2", "--write"]) == 0


def test_evaluate_films_every_seed(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("CartPole-v1", seeds=2, seed=4)
    assert main(["evaluate", "mine", "--episodes", "2", "--video"]) == 0
    clips = filmed(capsys.readouterr().out)
    assert [clip[::2] for clip in clips] == [(str(k), f"mine/video/seed_{k}.mp4") for k in (4, 5)]
    for seed, shown, path in clips:
        played = evaluate_policy(
            load_policy(run / "policy" / f"seed_{seed}"), "CartPole-v1", episodes=1, seed=1_000_000
        )
        assert shown == f"{played.returns[0]:.1f}"
        assert len(frames_of(path)[0]) == played.lengths[0] + 1


def test_evaluate_refuses_a_video_that_cannot_be_made_before_it_plays(
    run_with_policy: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune_rl.training.run_evaluation.evaluate", None)
    error = refused(capsys, "evaluate", "mine", "--video-path", "clip.avi")
    assert "give it the suffix .mp4 or .gif" in error
    (run_with_policy / "video.mp4").mkdir()
    assert "mine/video.mp4, which is a folder; name a file" in refused(capsys, "evaluate", "mine", "--video")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        error = refused(capsys, "evaluate", "mine", "--video-path", "clip.mp4")
        assert "install it with: pip install 'prune_rl[video]'" in error
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pygame", None)
        error = refused(capsys, "evaluate", "mine", "--video-path", "clip.mp4")
        assert "install it with: pip install 'prune_rl[video]'" in error
    Path("file").write_text("")
    assert "file" in refused(capsys, "evaluate", "mine", "--video-path", "file/clip.mp4")


def test_evaluate_refuses_to_film_what_draws_nothing(
    unbounded_env: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(unbounded_env)
    error = refused(capsys, "evaluate", "mine", "--video")
    assert f"{unbounded_env} draws no images: it would need the render mode 'rgb_array'" in error
    assert main(["evaluate", "mine", "--episodes", "2"]) == 0


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b'{"format": 1}'])
def test_evaluate_refuses_a_damaged_policy(
    name: str, damage: Any, run_with_policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_with_policy / "policy" / name).write_bytes(damage)
    assert "cannot load the policy file" in refused(capsys, "evaluate", "mine")


def test_report_refuses_what_is_no_evaluated_run(
    run_with_policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing to report" in refused(capsys, "report")
    assert "nowhere" in refused(capsys, "report", "nowhere")
    assert "evaluat" in refused(capsys, "report", "mine")


@pytest.mark.parametrize(
    ("word", "steps"), [("1e6", 1_000_000), ("2.5e3", 2500), ("1_000", 1000), ("4096", 4096)]
)
def test_whole_numbers_may_be_written_with_an_exponent(word: str, steps: int) -> None:
    learner = parse_train(["CartPole-v1", "--algo", "sac", "--steps", word, "--buffer-size", word])[0].learner
    assert isinstance(learner, sac.Config)
    assert (learner.total_timesteps, learner.buffer_size) == (steps, steps)
    assert type(learner.total_timesteps) is int


@pytest.mark.parametrize("word", ["1.5", "1e-3", "1.25e1", "1e999", "many", "nan"])
def test_what_is_no_whole_number_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["CartPole-v1", "--steps", word])
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


def test_a_module_in_the_working_directory_is_found_and_its_arguments_are_part_of_the_run(
    tmp_path: Path,
) -> None:
    """By the installed command as by `python -m`."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=50)\n"
    )
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[1])]\n"
        "from prune_rl.cli.train import parse_train\n"
        "for words in ([], ['--env-kwargs', 'sutton_barto_reward=true', 'max_episode_steps=7']):\n"
        "    config = parse_train(['mine:Mine-v0', '--steps', '1e3', *words])[0].resolved()\n"
        "    print(config.env_kwargs, config.default_run_dir().name)\n"
    )
    done = run_process(str(tmp_path), code=code)
    assert (done.returncode, done.stderr) == (0, "")
    (kwargs, name), (other_kwargs, other) = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert kwargs == "()"
    assert other_kwargs == "('sutton_barto_reward=true', 'max_episode_steps=7')"
    assert name != other
    assert name.startswith("mine_Mine-v0-ppo-dynamic-seed0-")


def test_a_run_needs_nothing_that_windows_lacks_and_computes_no_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys; sys.modules['fcntl'] = None; vars(os).pop('sched_getaffinity', None)\n"
        "from prune_rl.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "policy = __import__('prune_rl').load_policy('run')\n"
        "print('acts', int(policy([0.0, 0.0, 0.0, 0.0])))\n"
        "sys.exit(status)\n"
    )
    monkeypatch.setenv("JAX_DEBUG_NANS", "true")
    command = (
        "train CartPole-v1 --preset /dev/null --hidden 4 --num-envs 2 --num-steps 16 --steps 160 --update-epochs 1"
        " --prune.begin 0.2 --episodes 1 --selection-episodes 1 --frontier 1"
        " --no-control --run-dir run"
    )
    done = run_process(*command.split(), code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("acts 0", "acts 1")
