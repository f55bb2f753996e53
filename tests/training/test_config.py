from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.learners import ppo, sac
from prune_rl.learners.pruning_config import Pruning
from prune_rl.training.config import Config, from_json, merged


def with_learner(config=None, **learner):
    config = config or Config()
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, **learner))


def with_prune(config=None, **prune):
    config = config or Config()
    return with_learner(config, prune=dataclasses.replace(config.learner.prune, **prune))


def test_resolving_fills_in_what_follows():
    config = Config(steps=1000, learner=ppo.Config(num_envs=8, num_steps=64)).resolved()
    assert config.steps_per_update == 512
    assert (config.steps, config.learner.num_updates, config.backend) == (1024, 2, "jax")
    assert Config(env="Pendulum-v1").resolved().backend == "gymnasium"
    assert Config(seed=3, seeds=2).all_seeds == [3, 4]


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("method", ["dynamic", "dense"])
def test_resolving_twice_changes_nothing(method, algo):
    config = Config(algo=algo, method=method, steps=12345).resolved()
    assert config.resolved() == config
    assert config.algo == algo


def test_each_learner_has_its_own_hyperparameters():
    assert Config().learner == Config(algo="ppo").learner == ppo.Config()
    assert Config(algo="sac").learner == sac.Config()
    mine = sac.Config(hidden=(8,), num_envs=2)
    assert Config(algo="sac", learner=mine).learner is mine
    for algo, learner, other in (("ppo", mine, "sac"), ("sac", ppo.Config(), "ppo")):
        message = (
            f"algo is '{algo}', but the learner's hyperparameters are those of {other}: give {algo}.Config"
        )
        with pytest.raises(ValueError, match=message):
            Config(algo=algo, learner=learner)
    with pytest.raises(ValueError, match=r"algo is 'ppo', but .* those of 3: give ppo.Config"):
        Config(learner=3)
    with pytest.raises(ValueError, match="there is no learner 'td3'; choose one of ppo, sac"):
        Config(algo="td3")


@given(updates=st.integers(1, 100_000), seed=st.integers(0, 9))
def test_the_log_of_sac_has_at_most_2000_lines(updates, seed):
    config = Config(algo="sac", seed=seed, learner=sac.Config(total_timesteps=updates * 4 * 16))
    lines = math.ceil(updates / config.log_every)
    assert min(updates, 1000) <= lines <= 2000
    assert Config(learner=ppo.Config(total_timesteps=updates * 8 * 128)).log_every == 1


@given(updates=st.integers(1, 10_000), checkpoints=st.integers(1, 500))
def test_there_are_never_more_checkpoints_than_asked_for(updates, checkpoints):
    config = Config(checkpoints=checkpoints, learner=ppo.Config(total_timesteps=updates * 8 * 128))
    made = math.ceil(updates / config.checkpoint_every)
    assert 1 <= made <= checkpoints
    # Rounding the interval up costs at most the half of them.
    assert 2 * made >= min(updates, checkpoints)


@given(
    hidden=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    learning_rate=st.floats(1e-6, 1.0),
    energy=st.none() | st.floats(0.0, 0.99),
    clip_range_vf=st.none() | st.floats(0.01, 1.0),
    seed=st.integers(0, 2**31 - 2),
    score=st.sampled_from(["taylor", "surgeon", "random"]),
    normalize_obs=st.booleans(),
    algo=st.sampled_from(["ppo", "sac"]),
)
def test_json_round_trip(hidden, learning_rate, energy, clip_range_vf, seed, score, normalize_obs, algo):
    # Each has a field of its own that may be absent.
    learner = ppo.Config(clip_range_vf=clip_range_vf) if algo == "ppo" else sac.Config(alpha=clip_range_vf)
    config = Config(
        algo=algo,
        seed=seed,
        learner=dataclasses.replace(
            learner,
            hidden=tuple(hidden),
            learning_rate=learning_rate,
            normalize_obs=normalize_obs,
            prune=Pruning(energy=energy, score=score, min_width=1),
        ),
    ).resolved()
    stored = json.loads(json.dumps(config.to_json(), allow_nan=False))
    assert from_json(stored) == config
    assert hash(from_json(stored)) == hash(config)
    assert from_json(stored).default_run_dir() == config.default_run_dir()


def test_equal_configurations_share_a_folder_and_others_do_not():
    folders = {
        config.resolved().default_run_dir()
        for config in (
            Config(),
            Config(steps=499_999),  # rounds up to the same
            Config(steps=600_000),
            Config(seed=1),
            Config(seeds=2),
            with_learner(hidden=(64, 64)),
            with_prune(sparsity=0.9),
            Config(method="dense"),
            with_prune(Config(method="dense"), sparsity=0.9),  # of no matter there
            Config(env="Pendulum-v1"),
            Config(algo="sac"),
            Config(algo="sac", learner=sac.Config(tau=0.01)),
            Config(algo="sac", method="dense"),
        )
    }
    assert len(folders) == 11
    assert {folder.parts[0] for folder in folders} == {"runs"}
    assert all(len(folder.parts) == 2 for folder in folders)


def test_a_module_in_the_environment_id_is_no_folder():
    config = Config(env="gymnasium.envs.classic_control:Acrobot-v1")
    assert config.default_run_dir().name.startswith(
        "gymnasium.envs.classic_control_Acrobot-v1-ppo-dynamic-seed0-"
    )


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_dense_removes_nothing_whatever_was_asked(algo):
    config = with_prune(Config(algo=algo, method="dense"), sparsity=0.9, min_width=1000).resolved()
    assert not config.method_learner().prune.enabled
    assert config == Config(algo=algo, method="dense").resolved()
    assert Config(algo=algo).method_learner().prune.enabled


NAN, INFINITY = math.nan, math.inf
SAC = Config(algo="sac")
BAD = [
    (
        dataclasses.replace(SAC, steps=10_000),
        "learning_starts = 10000 leaves nothing of the 10048 environment steps",
    ),
    (with_learner(SAC, num_envs=0), "num_envs must be >= 1"),
    (with_learner(SAC, batch_size=0), "batch_size must be >= 1"),
    (with_learner(SAC, tau=0.0), "tau must lie in (0, 1]"),
    (with_learner(SAC, alpha=-1.0), "alpha must be a finite number >= 0 or absent, got -1.0"),
    (with_prune(SAC, sparsity=1.5), "prune.sparsity must lie in [0, 1), got 1.5"),
    (with_prune(SAC, enabled=False), "use method 'dense'"),
    (Config(steps=0), "steps must be >= 1, got 0"),
    (Config(steps=-1), "steps must be >= 1"),
    (Config(seeds=0), "seeds must be >= 1"),
    (Config(seed=-1), "seed must lie in"),
    (Config(seed=2**31 - 1), "seed must lie in"),
    (Config(evaluation_seed=-1), "evaluation_seed must lie in"),
    (Config(checkpoints=0), "checkpoints must be >= 1"),
    (Config(episodes=0), "episodes must be >= 1"),
    (Config(env="Pendulum-v1", backend="jax"), "Pendulum-v1 has no backend 'jax'; choose one of gymnasium"),
    (with_learner(num_envs=0), "num_envs must be >= 1"),
    (with_learner(num_steps=-3), "num_steps must be >= 1"),
    (with_learner(update_epochs=0), "update_epochs must be >= 1"),
    (with_learner(num_minibatches=0), "num_minibatches must be >= 1"),
    (with_learner(num_minibatches=3), "num_minibatches = 3 does not divide"),
    (with_learner(hidden=()), "hidden needs at least one width"),
    (with_learner(hidden=(16, 0)), "hidden needs at least one width, each >= 1"),
    (with_learner(activation="sine"), "unknown activation 'sine'; choose one of tanh"),
    (with_learner(learning_rate=NAN), "learning_rate must be a finite number > 0, got nan"),
    (with_learner(learning_rate=INFINITY), "learning_rate must be a finite number"),
    (with_learner(learning_rate=0.0), "learning_rate must be a finite number > 0"),
    (with_learner(learning_rate_end=-1e-9), "learning_rate_end must be a finite number >= 0"),
    (with_learner(gamma=1.01), "gamma must lie in [0, 1]"),
    (with_learner(gamma=NAN), "gamma must lie in [0, 1]"),
    (with_learner(gae_lambda=-0.1), "gae_lambda must lie in [0, 1]"),
    (with_learner(clip_eps=0.0), "clip_eps must be a finite number > 0"),
    (with_learner(clip_range_vf=0.0), "clip_range_vf must be a finite number > 0"),
    (with_learner(clip_obs=-1.0), "clip_obs must be a finite number > 0"),
    (with_learner(max_grad_norm=0.0), "max_grad_norm must be a finite number > 0"),
    (with_learner(ent_coef=NAN), "ent_coef must be a finite number >= 0"),
    (with_prune(sparsity=1.0), "prune.sparsity must lie in [0, 1), got 1.0"),
    (with_prune(sparsity=-0.1), "prune.sparsity must lie in [0, 1)"),
    (with_prune(sparsity=NAN), "prune.sparsity must lie in [0, 1)"),
    (with_prune(critic_sparsity=1.0), "prune.critic_sparsity must lie in [0, 1)"),
    (with_prune(energy=1.0), "prune.energy must lie in [0, 1)"),
    (with_prune(begin=0.7), "prune.begin must not exceed prune.end"),
    (with_prune(end=1.1), "prune.end must lie in [0, 1]"),
    (with_prune(gate=-0.1), "prune.gate must be >= 0"),
    (with_prune(strength=NAN), "prune.strength must be a finite number >= 0"),
    (with_prune(every=0), "prune.every must be >= 1"),
    (with_prune(min_width=0), "prune.min_width must be >= 1"),
    (with_prune(with_learner(hidden=(64, 8)), min_width=9), "wider than the narrowest hidden layer (8)"),
    (with_prune(importance_decay=1.0), "prune.importance_decay must lie in [0, 1)"),
    (with_prune(enabled=False), "use method 'dense'"),
]


@pytest.mark.parametrize(("config", "part"), BAD, ids=[part for _, part in BAD])
def test_bad_values_are_refused_in_one_sentence(config, part):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.resolved()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_environment_is_refused():
    with pytest.raises(UnsupportedEnvironment, match="did you mean 'CartPole-v1'"):
        Config(env="Cartpole-v1").resolved()


def test_merging_replaces_only_what_is_named():
    config = merged(Config(), {"steps": 7, "learner": {"gamma": 1, "hidden": [8], "prune": {"energy": 0.5}}})
    expected = with_learner(Config(steps=7), gamma=1.0, hidden=(8,), prune=Pruning(energy=0.5))
    assert config == expected
    assert type(config.learner.gamma) is float


def test_merging_another_algo_brings_its_hyperparameters():
    mine = with_learner(Config(steps=7), gamma=0.5)
    assert merged(mine, {"algo": "sac"}) == Config(algo="sac", steps=7)
    assert merged(mine, {"algo": "ppo"}) == mine
    found = merged(mine, {"algo": "sac", "learner": {"tau": 1, "alpha": 0.2, "prune": {"critic": True}}})
    assert found == Config(
        algo="sac", steps=7, learner=sac.Config(tau=1.0, alpha=0.2, prune=Pruning(critic=True))
    )
    assert merged(found, {"algo": "ppo"}) == Config(steps=7)
    for data, part in (
        ({"algo": "sac", "learner": {"update_epochs": 3}}, "unknown field 'learner.update_epochs'; known are activ"),
        ({"learner": {"tau": 0.1}}, "unknown field 'learner.tau'; known are activation, "),
        ({"algo": "td3"}, "there is no learner 'td3'; choose one of ppo, sac"),
        ({"algo": "sac", "learner": {"alpha": "much"}}, "learner.alpha must be a number, got 'much'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=part):
            merged(Config(), data)


@pytest.mark.parametrize("algo", ["td3", 3, None, ["sac"]])
def test_a_stored_configuration_of_another_learner_is_refused(algo):
    with pytest.raises(ValueError, match="algo must be one of ppo, sac, got"):
        from_json({**Config().to_json(), "algo": algo})


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"stepz": 1}, "unknown field 'stepz'; known are algo, "),
        ({"learner": {"gama": 1}}, "unknown field 'learner.gama'; known are activation, "),
        ({"learner": {"prune": {"sparcity": 1}}}, "unknown field 'learner.prune.sparcity'"),
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"learner": 3}, "learner must be a table of fields, got 3"),
        ({"steps": {"a": 1}}, "steps must be a whole number"),
        ({"learner": {"hidden": 8}}, "learner.hidden must be a list of whole numbers, got 8"),
        ({"learner": {"hidden": [8, "x"]}}, "learner.hidden must be a whole number, got 'x'"),
        ({"learner": {"gamma": "1"}}, "learner.gamma must be a number, got '1'"),
        ({"learner": {"normalize_obs": 1}}, "learner.normalize_obs must be true or false, got 1"),
        ({"learner": {"prune": {"score": "best"}}}, "learner.prune.score must be one of taylor, "),
        ({"method": "sparse"}, "method must be one of dynamic, dense, got 'sparse'"),
        ({"env": 1}, "env must be a text, got 1"),
    ],
)
def test_data_of_the_wrong_shape_is_refused(data, part):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        merged(Config(), data)
    assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"must be|unknown field"):
        from_json(data)


def test_checkpoints_leave_host_environments_time_for_whole_episodes():
    learner = ppo.Config(num_envs=4, num_steps=64)
    long = Config(env="Pendulum-v1", steps=4 * 64 * 200, learner=learner).resolved()
    assert (long.checkpoints, long.checkpoint_every) == (20, 10)
    short = Config(env="Pendulum-v1", steps=4 * 64 * 20, learner=learner).resolved()
    # 20 updates of 64 steps hold three spans of two episodes of 200 steps.
    assert (short.checkpoints, short.checkpoint_every) == (3, 7)
    assert not short.cuts_short
    tiny = Config(env="Pendulum-v1", steps=4 * 64, learner=dataclasses.replace(learner, prune=None))
    tiny = dataclasses.replace(tiny, method="dense").resolved()
    assert tiny.checkpoints == 1
    assert not tiny.cuts_short, "no checkpoint does it, but the end of training"
    device = Config(env="CartPole-v1", steps=4 * 64 * 20, learner=learner).resolved()
    assert device.checkpoints == 20
    assert not device.cuts_short
    for config in (long, short, tiny, device):
        assert config.resolved() == config


def test_more_checkpoints_are_granted_but_known_to_cut_every_episode():
    learner = ppo.Config(num_envs=4, num_steps=64)
    config = Config(env="Pendulum-v1", steps=4 * 64 * 20, checkpoints=10, learner=learner).resolved()
    assert (config.checkpoints, config.checkpoint_every) == (10, 2)
    assert config.cuts_short
