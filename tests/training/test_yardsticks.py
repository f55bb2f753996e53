"""The controls with few neurons from the start: a small actor as wide as a pruned one, and a linear policy."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.export.policy import load_policy
from prune_rl.learners import sac
from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.training.config import Config
from prune_rl.training.control import control_command, control_of
from prune_rl.training.run_config import read_config
from prune_rl.training.small_network import as_wide_as

SHORT = shlex.split("train CartPole-v1 --num-envs 4 --num-steps 32 --steps 256 --episodes 2")


def run_main(*arguments: Any, folder: Path) -> str:
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert main([str(argument) for argument in arguments]) == 0, output.getvalue()
    return output.getvalue()


def policies_of(run: Path) -> dict[str, Any]:
    (seed,) = json.loads((run / "evaluation.json").read_text())["seeds"]
    policies: dict[str, Any] = seed["policies"]
    return policies


def test_a_small_actor_is_as_wide_as_the_pruned_one_and_its_critic_as_wide_as_at_the_start(
    jax_run: Any, tmp_path: Path
) -> None:
    arguments = [*SHORT, "--method", "small", "--like", str(jax_run.path)]
    run_main(*arguments, folder=tmp_path)
    (run,) = (tmp_path / "runs").glob("*-small-*")
    (dense,) = (tmp_path / "runs").glob("*-dense-*")
    learner = read_config(run).learner
    assert (learner.hidden, learner.critic_hidden, learner.prune) == ((4, 4), (16, 16), None)
    # The control is the dense run of the pruned one, in its folder.
    wide = parse_train([*SHORT[1:], "--hidden", "16", "16", "--method", "dense"])[0].resolved()
    assert read_config(dense) == wide
    assert dense == tmp_path / wide.default_run_dir()
    policies = policies_of(run)
    assert {name: policy["widths"] for name, policy in policies.items()} == {
        "compact": [4, 4], "dense": [16, 16]
    }  # fmt: skip
    assert policies["compact"]["weights"]["kept"] == 5 * 4 + 5 * 4 + 5 * 2 + 4 * 2  # with a linear path
    summary = (run / "summary.md").read_text()
    assert "small actor from scratch" in summary
    assert "trained from scratch at its size, has **8 hidden neurons** and **58 weights**" in summary
    assert "Su et al." not in summary
    table = run_main("report", run, dense, folder=tmp_path)
    assert "return minus dense" in table
    assert "CartPole-v1 ppo small" in table
    # The recorded command of the control makes the same configuration.
    command = json.loads((dense / "config.json").read_text())["command"]
    assert parse_train(shlex.split(command)[2:])[0].resolved() == wide


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_a_linear_policy_has_no_hidden_neuron(algo: str, tmp_path: Path) -> None:
    more = ["--learning-starts", "64", "--utd-ratio", "0.1", "--batch-size", "16"] if algo == "sac" else []
    run_main(
        *SHORT,
        "--hidden",
        "16",
        "16",
        "--method",
        "linear",
        "--algo",
        algo,
        *more,
        "--no-control",
        folder=tmp_path,
    )
    (run,) = (tmp_path / "runs").iterdir()
    learner = read_config(run).learner
    assert (learner.hidden, learner.critic_hidden) == ((), (16, 16))
    policy = load_policy(run)
    assert (policy.widths, policy.num_weights) == ((), 5 * 2)
    # One product: what it puts out changes linearly with what it sees.
    a, b = (policy.outputs(np.full(4, value, np.float32)) for value in (0.1, 0.2))
    np.testing.assert_allclose(
        policy.outputs(np.full(4, 0.15, np.float32)), (a + b) / 2, rtol=1e-4, atol=1e-6
    )
    assert set(policies_of(run)) == {"compact"}
    assert "**0 hidden neurons**" in (run / "summary.md").read_text()


@pytest.mark.parametrize("algo", LEARNERS)
@pytest.mark.parametrize("method", METHODS)
def test_the_control_of_every_method_is_one_dense_run(method: str, algo: str) -> None:
    kind: Any = LEARNERS[algo].Config
    narrow = {"hidden": (3, 5), "critic_hidden": (24, 16)} if method == "small" else {"hidden": (24, 16)}
    config = Config(algo=algo, method=method, learner=kind(**narrow)).resolved()
    dense = Config(algo=algo, method="dense", learner=kind(hidden=(24, 16))).resolved()
    assert control_of(config) == dense
    assert METHODS[method].learner_config(config.learner) == config.learner
    assert config.learner.critic_widths == (24, 16)


def test_the_command_of_the_control_keeps_what_is_not_the_methods() -> None:
    config = Config(
        method="small", learner=LEARNERS["ppo"].Config(hidden=(3,), critic_hidden=(24, 16))
    ).resolved()
    command = (
        "prune-rl train --like runs/x CartPole-v1 --hidden 3 --critic-hidden 24 16 --method=small --seeds 2 "
        "--run-dir=a --no-control"
    )
    assert control_command(config, command) == (
        "prune-rl train CartPole-v1 --seeds 2 --hidden 24 16 --method dense"
    )
    pruned = Config(method="dynamic").resolved()
    assert control_command(pruned, "prune-rl train --hidden 64 64 CartPole-v1 --method dynamic") == (
        "prune-rl train --hidden 64 64 CartPole-v1 --method dense"
    )


def test_a_run_that_the_widths_cannot_come_from_is_refused(jax_run: Any, tmp_path: Path) -> None:
    small = Config(method="small")
    for config, words in (
        (Config(method="dense"), "--like is for method 'small', got method 'dense'"),
        (Config(method="small", env="Acrobot-v1"), "is a run of env 'CartPole-v1', not 'Acrobot-v1'"),
        (Config(method="small", algo="sac", learner=sac.Config()), "is a run of algo 'ppo', not 'sac'"),
    ):
        with pytest.raises(ValueError, match=words):
            as_wide_as(config, jax_run.path)
    with pytest.raises(ValueError, match="is not a run directory"):
        as_wide_as(small, tmp_path)
    stored = json.loads((jax_run.path / "config.json").read_text())
    stored["learner"]["prune"], stored["method"] = None, "dense"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match=r"removed nothing \(its method is 'dense'\): give a run that was pruned"
    ):
        as_wide_as(small, tmp_path)
