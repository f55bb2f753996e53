from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prune_rl.cli.train import parse_train
from prune_rl.envs.task import resolve_task
from prune_rl.learners import sac
from prune_rl.training.config import Config
from prune_rl.training.presets import find_preset, load_preset, preset_folder

PRESETS = sorted(preset_folder().glob("*.toml"))


def test_there_are_presets() -> None:
    assert {"CartPole-v1-ppo.toml", "LunarLander-v2-ppo.toml"} <= {path.name for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_resolves_and_fits_its_environment(path: Any) -> None:
    env, _, algo = path.stem.rpartition("-")
    assert find_preset(env, algo) == path
    loaded = load_preset(path, Config())
    assert loaded != Config()
    assert loaded.algo == algo  # a preset of SAC says so itself
    config, _ = parse_train([env, "--algo", algo])
    assert config.env == env
    assert config.algo == algo
    task = resolve_task(env)
    resolved = config.resolved(task)
    assert resolved.learner == dataclasses.replace(loaded.learner, total_timesteps=resolved.steps)
    assert 0 <= resolved.steps - loaded.learner.total_timesteps < loaded.learner.steps_per_update
    assert task.spec.observation_size > 0


def test_a_learner_has_presets_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CartPole-v1-sac.toml").write_text(
        'algo = "sac"\n[learner]\ntotal_timesteps = 7_000\ntau = 0.5\n'
    )
    monkeypatch.setattr("prune_rl.training.presets.preset_folder", lambda: tmp_path)
    expected = Config(algo="sac", learner=sac.Config(tau=0.5, total_timesteps=7000))
    assert load_preset(tmp_path / "CartPole-v1-sac.toml", Config()) == expected
    assert parse_train(["CartPole-v1", "--algo", "sac"])[0] == expected
    assert parse_train(["CartPole-v1"])[0] == Config()
    assert parse_train(["Pendulum-v1", "--algo", "sac"])[0] == Config(env="Pendulum-v1", algo="sac")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seeds = ", "preset mine.toml: Invalid value"),
        ("seeds = 1\nseeds = 2", "preset mine.toml: Cannot overwrite a value"),
        ("steps = 1", "preset mine.toml: unknown field 'steps'; known are algo"),
        ("stepz = 1", "preset mine.toml: unknown field 'stepz'"),
        (
            "[learner]\nprune.sparsity = 'half'",
            "preset mine.toml: learner.prune.sparsity must be a number, got 'half'",
        ),
        ("learner = 1", "preset mine.toml: learner must be a table of fields, got 1"),
        ("[learner]\nnum_updates = 5", "preset mine.toml: unknown field 'learner.num_updates'"),
        ('algo = "td3"', "preset mine.toml: there is no learner 'td3'; choose one of ppo, sac"),
        ("algo = 3", "preset mine.toml: there is no learner 3; choose one of ppo, sac"),
        (
            'algo = "sac"\nlearner.update_epochs = 3',
            "preset mine.toml: unknown field 'learner.update_epochs'; known are activation",
        ),
        (b"\xff\xfe", "preset mine.toml: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_preset_is_named_with_its_fault(text: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_preset(path, Config())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no preset"):
        load_preset(tmp_path / "none.toml", Config())
    with pytest.raises(ValueError, match="preset"):
        load_preset(tmp_path, Config())


def test_no_preset_for_an_environment_without_one() -> None:
    assert find_preset("Acrobot-v1", "ppo") is None
    assert find_preset("../presets/CartPole-v1", "ppo") is None
    assert parse_train(["Acrobot-v1"])[0] == Config(env="Acrobot-v1")
