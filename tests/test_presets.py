from __future__ import annotations

import dataclasses

import pytest

from prune_rl.cli import parse_train
from prune_rl.learners import sac
from prune_rl.training.config import Config
from prune_rl.training.presets import find_preset, load_preset, preset_folder

PRESETS = sorted(preset_folder().glob("*.toml"))


def test_there_are_presets():
    assert {"CartPole-v1-ppo.toml", "LunarLander-v2-ppo.toml"} <= {path.name for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_resolves_and_fits_its_environment(path):
    env, _, algo = path.stem.rpartition("-")
    assert find_preset(env, algo) == path
    loaded = load_preset(path, Config())
    assert loaded != Config()
    assert loaded.algo == algo  # a preset of SAC says so itself
    config, _ = parse_train([env, "--algo", algo])
    assert config.env == env
    assert config.algo == algo
    resolved = config.resolved()
    assert resolved.learner == dataclasses.replace(loaded.learner, total_updates=resolved.learner.num_updates)
    assert resolved.steps >= loaded.steps
    assert config.spec().observation_size > 0


def test_a_learner_has_presets_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "CartPole-v1-sac.toml").write_text('algo = "sac"\nsteps = 7_000\n[learner]\ntau = 0.5\n')
    monkeypatch.setattr("prune_rl.training.presets.preset_folder", lambda: tmp_path)
    expected = Config(algo="sac", steps=7000, learner=sac.Config(tau=0.5))
    assert load_preset(tmp_path / "CartPole-v1-sac.toml", Config()) == expected
    assert parse_train(["CartPole-v1", "--algo", "sac"])[0] == expected
    assert parse_train(["CartPole-v1"])[0] == Config()
    assert parse_train(["Pendulum-v1", "--algo", "sac"])[0] == Config(env="Pendulum-v1", algo="sac")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps = ", "preset mine.toml: Invalid value"),
        ("steps = 1\nsteps = 2", "preset mine.toml: Cannot overwrite a value"),
        ("stepz = 1", "preset mine.toml: unknown field 'stepz'"),
        (
            "[learner]\nprune.sparsity = 'half'",
            "preset mine.toml: learner.prune.sparsity must be a number, got 'half'",
        ),
        ("learner = 1", "preset mine.toml: learner must be a table of fields, got 1"),
        ("[learner]\ntotal_updates = 5", "preset mine.toml: learner.num_updates follows from steps"),
        ('algo = "td3"', "preset mine.toml: there is no learner 'td3'; choose one of ppo, sac"),
        ("algo = 3", "preset mine.toml: there is no learner 3; choose one of ppo, sac"),
        (
            'algo = "sac"\nlearner.update_epochs = 3',
            "preset mine.toml: unknown field 'learner.update_epochs'; known are activation",
        ),
        (b"\xff\xfe", "preset mine.toml: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_preset_is_named_with_its_fault(text, part, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_preset(path, Config())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_preset_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no preset"):
        load_preset(tmp_path / "none.toml", Config())
    with pytest.raises(ValueError, match="preset"):
        load_preset(tmp_path, Config())


def test_no_preset_for_an_environment_without_one():
    assert find_preset("Acrobot-v1", "ppo") is None
    assert find_preset("../presets/CartPole-v1", "ppo") is None
    assert parse_train(["Acrobot-v1"])[0] == Config(env="Acrobot-v1")
