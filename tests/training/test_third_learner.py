"""A learner that the package does not know takes its own file (`reinforce.py`) and one line in the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.cli.train import parse_train
from prune_rl.learners.registry import LEARNERS, learner_of
from prune_rl.training.config import Config
from prune_rl.training.control import control_of
from prune_rl.training.policy_export import policy_paths
from prune_rl.training.run_config import read_config
from tests.learners.schedules import by_schedule

from . import reinforce

TINY = [
    "train",
    "CartPole-v1",
    "--algo",
    "reinforce",
    "--num-envs",
    "4",
    "--num-steps",
    "32",
    "--episodes",
    "5",
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(LEARNERS, "reinforce", reinforce)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "widths"),
    [
        (["--hidden", "8", "6", "--seeds", "2"], (4, 3)),
        (["--hidden", "8", "6", "--backend", "gymnasium"], (4, 3)),
        (["--hidden"], ()),  # a linear policy has no neurons
    ],
    ids=["device", "host", "linear"],
)
def test_it_trains_prunes_and_is_compared_with_its_control(
    flags: Any, widths: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, *flags, "--steps", "4000"]
    assert main(arguments) == 0
    output, error = capsys.readouterr()
    assert error == ""
    config = parse_train(arguments[1:])[0].resolved()
    run, dense = config.default_run_dir(), control_of(config).default_run_dir()
    assert run.name.startswith("CartPole-v1-reinforce-dynamic-seed")
    assert read_config(run) == config
    assert (read_config(dense).method, read_config(dense).learner.prune) == ("dense", None)
    assert (run / "summary.md").read_text() in output
    hidden = config.learner.hidden
    evaluation = json.loads((run / "evaluation.json").read_text())
    for entry in evaluation["seeds"]:
        seed = entry["seed"]
        compact, wide = (
            prune_rl.load_policy(policy_paths(run, config, kind)[seed]) for kind in ("policy", "wide")
        )
        assert (compact.widths, wide.widths) == (widths, hidden)
        assert (compact.metadata["algo"], compact.metadata["steps"]) == ("reinforce", 4096)
        obs = np.random.default_rng(seed).normal(size=(100, 4)).astype(np.float32)
        np.testing.assert_allclose(compact.outputs(obs), wide.outputs(obs), atol=1e-5)
        assert set(entry["policies"]) == {"masked", "compact", "dense"}
        assert len(entry["policies"]["compact"]["returns"]) == 5
    assert main(arguments) == 0
    assert "steps to do" not in capsys.readouterr().out


def mean_return(rows: list[Any]) -> float:
    """Of the updates in which an episode ended."""
    return float(np.mean([row["return"][0] for row in rows if row["return"][0] is not None]))


def test_it_learns() -> None:
    """It balances for about 20 steps before; the returns of the last updates are those of a better policy."""
    assert main([*TINY, "--steps", "60000", "--method", "dense", "--learning-rate", "0.05"]) == 0
    (run,) = Path("runs").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (mean_return(part) for part in (rows[:20], rows[-50:]))
    assert first < 40 < 80 < last


def test_its_hyperparameters_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*TINY, "--help"])
    output = " ".join(capsys.readouterr().out.split())
    for part in (
        "--baseline, --no-baseline",
        "--algo {ppo,sac,reinforce}",
        "--steps INT",
        "(default: 20000)",
    ):
        assert part in output
    assert "--gae-lambda" not in output
    config, _ = parse_train([*TINY[1:], "--no-baseline", "--prune.sparsity", "0.25", "--steps", "77"])
    prune = by_schedule(sparsity=0.25)
    expected = reinforce.Config(num_envs=4, num_steps=32, baseline=False, total_timesteps=77, prune=prune)
    assert config == Config(algo="reinforce", episodes=5, learner=expected)
    assert learner_of(config.learner) is reinforce


def test_the_policy_acts_as_the_learner_without_noise() -> None:
    assert main([*TINY, "--hidden", "8", "--steps", "512", "--prune.every", "1", "--no-control"]) == 0
    (run,) = Path("runs").iterdir()
    policy = prune_rl.load_policy(run)
    layers = {"layer_0": policy.layers[0], "head": policy.layers[1]}
    actor = {name: {"kernel": jnp.asarray(w), "bias": jnp.asarray(b)} for name, (w, b) in layers.items()}
    state = reinforce.State({"actor": actor}, {}, None, jnp.int32(0))
    obs = jax.random.normal(jax.random.key(0), (50, 4))
    learner = read_config(run).learner
    assert isinstance(learner, reinforce.Config)
    acted = reinforce.act(state, obs, jnp.zeros((50, 2)), learner)
    np.testing.assert_array_equal(policy(np.asarray(obs)), acted)
