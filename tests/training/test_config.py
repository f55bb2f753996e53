from __future__ import annotations

import dataclasses
import json
import math
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.task import resolve_task
from prune_rl.learners import ppo, sac
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.registry import LEARNERS
from prune_rl.training.config import Config
from prune_rl.training.run_notes import without_episodes
from prune_rl.training.structuring import from_json, merged
from tests.learners.schedules import by_schedule


def with_learner(config: Any = None, **learner: Any) -> Any:
    config = config or Config()
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, **learner))


def with_prune(config: Any = None, **prune: Any) -> Any:
    config = config or Config()
    return with_learner(config, prune=dataclasses.replace(config.learner.prune, **prune))


def test_resolving_fills_in_what_follows() -> None:
    config = Config(learner=ppo.Config(num_envs=8, num_steps=64, total_timesteps=1000)).resolved()
    assert (config.steps, config.learner.total_timesteps, config.learner.num_updates) == (1024, 1024, 2)
    assert (config.backend, config.host_resets) == ("jax", None)
    acrobot = Config(env="Acrobot-v1").resolved()
    assert (acrobot.backend, acrobot.host_resets) == ("gymnasium", 20)
    assert Config(env="Acrobot-v1").resolved(resolve_task("Acrobot-v1")) == acrobot
    assert Config(seed=3, seeds=2).all_seeds == [3, 4]


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("method", ["dynamic", "dense", "small", "linear"])
def test_resolving_twice_changes_nothing(method: str, algo: str) -> None:
    config = with_learner(
        Config(algo=algo, method=method), total_timesteps=12345, critic_hidden=(64, 64)
    ).resolved()
    assert config.resolved() == config
    assert config.algo == algo


def test_each_learner_has_its_own_hyperparameters() -> None:
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
        Config(learner=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no learner 'td3'; choose one of ppo, sac"):
        Config(algo="td3")


@given(updates=st.integers(1, 100_000), algo=st.sampled_from(["ppo", "sac"]))
def test_a_log_has_at_most_2000_lines(updates: Any, algo: Any) -> None:
    config = Config(algo=algo)
    config = with_learner(config, total_timesteps=updates * config.learner.steps_per_update)
    lines = math.ceil(updates / config.log_every)
    assert min(updates, 1000) <= lines <= 2000


@given(updates=st.integers(1, 10_000), checkpoints=st.integers(1, 500))
def test_there_are_never_more_checkpoints_than_asked_for(updates: Any, checkpoints: Any) -> None:
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
def test_json_round_trip(
    hidden: Any,
    learning_rate: Any,
    energy: Any,
    clip_range_vf: Any,
    seed: Any,
    score: Any,
    normalize_obs: Any,
    algo: Any,
) -> None:
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
            prune=by_schedule(energy=energy, score=score, min_width=1),
        ),
    ).resolved()
    stored = json.loads(json.dumps(config.to_json(), allow_nan=False))
    assert from_json(stored) == config
    assert hash(from_json(stored)) == hash(config)
    assert from_json(stored).default_run_dir() == config.default_run_dir()


def test_equal_configurations_share_a_folder_and_others_do_not() -> None:
    folders = {
        config.resolved().default_run_dir()
        for config in (
            Config(),
            with_learner(total_timesteps=499_999),  # rounds up to the same
            with_learner(total_timesteps=600_000),
            Config(checkpoints=3),  # does not change the result
            Config(backend="jax"),  # what "auto" chooses
            Config(seed=1),
            Config(seeds=2),
            with_learner(hidden=(64, 64)),
            with_prune(sparsity=0.9),
            Config(method="dense"),
            with_prune(Config(method="dense"), sparsity=0.9),  # of no matter there
            Config(env="Acrobot-v1"),
            Config(env="Acrobot-v1", checkpoints=7, host_resets=20),  # the default
            Config(env="Acrobot-v1", host_resets=19),
            Config(algo="sac"),
            Config(algo="sac", learner=sac.Config(tau=0.01)),
            Config(algo="sac", method="dense"),
        )
    }
    assert len(folders) == 12
    assert {folder.parts[0] for folder in folders} == {"runs"}
    assert all(len(folder.parts) == 2 for folder in folders)


def test_a_module_in_the_environment_id_is_no_folder() -> None:
    config = Config(env="gymnasium.envs.classic_control:Acrobot-v1")
    assert config.default_run_dir().name.startswith(
        "gymnasium.envs.classic_control_Acrobot-v1-ppo-dynamic-seed0-"
    )


@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_dense_removes_nothing_whatever_was_asked(algo: str) -> None:
    config = with_prune(Config(algo=algo, method="dense"), sparsity=0.9, min_width=1000).resolved()
    assert config.learner.prune is None
    assert config.to_json()["learner"]["prune"] is None
    assert config == Config(algo=algo, method="dense").resolved()
    assert config == with_learner(Config(algo=algo, method="dense"), prune=None).resolved()
    assert Config(algo=algo).resolved().learner.prune == LEARNERS[algo].Config().prune


NAN, INFINITY = math.nan, math.inf
SAC = Config(algo="sac")
BAD = [
    (
        with_learner(SAC, total_timesteps=10_000),
        "learning_starts = 10000 leaves nothing of the 10048 environment steps",
    ),
    (with_learner(SAC, num_envs=0), "num_envs must be >= 1"),
    (with_learner(SAC, batch_size=0), "batch_size must be >= 1"),
    (with_learner(SAC, tau=0.0), "tau must lie in (0, 1]"),
    (with_learner(SAC, alpha=-1.0), "alpha must be a finite number >= 0 or absent, got -1.0"),
    (with_prune(SAC, sparsity=1.5), "prune.sparsity must lie in [0, 1], got 1.5"),
    (with_learner(SAC, prune=None), "learner.prune is null, but method 'dynamic' prunes"),
    (with_learner(total_timesteps=0), "total_timesteps (--steps) must be >= 1, got 0"),
    (with_learner(total_timesteps=-1), "total_timesteps (--steps) must be >= 1, got -1"),
    (Config(seeds=0), "seeds must be >= 1"),
    (Config(seed=-1), "seed must lie in"),
    (Config(seed=2**31 - 1), "seed must lie in"),
    (Config(evaluation_seed=-1), "evaluation_seed must lie in"),
    (Config(checkpoints=0), "checkpoints must be >= 1"),
    (Config(env="Pendulum-v1", host_resets=0), "host_resets must be >= 1"),
    (
        Config(host_resets=5),
        "host_resets = 5 is for environments on the host, and CartPole-v1 runs on backend 'jax'",
    ),
    (Config(episodes=0), "episodes must be >= 1"),
    (Config(frontier=-1), "frontier must be >= 0, got -1"),
    (Config(selection_episodes=0), "selection_episodes must be >= 1"),
    (with_prune(tolerance=-0.1), "prune.tolerance must be a finite number >= 0, got -0.1"),
    (Config(algo="sac", learner=sac.Config(overlap=True)), "overlap is for environments on the host"),
    (Config(env="Acrobot-v1", backend="jax"), "Acrobot-v1 has no backend 'jax'; choose one of gymnasium"),
    (with_learner(num_envs=0), "num_envs must be >= 1"),
    (with_learner(num_steps=-3), "num_steps must be >= 1"),
    (with_learner(update_epochs=0), "update_epochs must be >= 1"),
    (with_learner(num_minibatches=0), "num_minibatches must be >= 1"),
    (with_learner(num_minibatches=3), "num_minibatches = 3 does not divide"),
    (with_learner(hidden=()), "hidden is (), which leaves nothing to prune"),
    (with_learner(hidden=(16, 0)), "hidden needs widths >= 1"),
    (with_learner(activation="sine"), "unknown activation 'sine'; choose one of tanh"),
    (with_learner(learning_rate=NAN), "learning_rate must be a finite number > 0, got nan"),
    (with_learner(learning_rate=INFINITY), "learning_rate must be a finite number"),
    (with_learner(learning_rate=0.0), "learning_rate must be a finite number > 0"),
    (with_learner(learning_rate=1e6), "learning_rate must be <= 1, got 1000000.0"),
    (with_learner(learning_rate_end=1.5), "learning_rate_end must be <= 1, got 1.5"),
    (Config(algo="sac", learner=sac.Config(utd_ratio=1e4)), "utd_ratio must be <= 1000, got 10000.0"),
    (with_learner(width_exponent=20.0), "width_exponent must be <= 2, got 20.0"),
    (with_learner(learning_rate_end=-1e-9), "learning_rate_end must be a finite number >= 0"),
    (with_learner(gamma=1.01), "gamma must lie in [0, 1]"),
    (with_learner(gamma=NAN), "gamma must lie in [0, 1]"),
    (with_learner(gae_lambda=-0.1), "gae_lambda must lie in [0, 1]"),
    (with_learner(clip_eps=0.0), "clip_eps must be a finite number > 0"),
    (with_learner(clip_range_vf=0.0), "clip_range_vf must be a finite number > 0"),
    (with_learner(clip_obs=-1.0), "clip_obs must be a finite number > 0"),
    (with_learner(max_grad_norm=0.0), "max_grad_norm must be a finite number > 0"),
    (with_learner(ent_coef=NAN), "ent_coef must be a finite number >= 0"),
    (with_prune(sparsity=1.01), "prune.sparsity must lie in [0, 1], got 1.01"),
    (with_prune(sparsity=-0.1), "prune.sparsity must lie in [0, 1]"),
    (with_prune(sparsity=NAN), "prune.sparsity must lie in [0, 1]"),
    (with_prune(critic_sparsity=2.0), "prune.critic_sparsity must lie in [0, 1]"),
    (with_prune(energy=1.0), "prune.energy must lie in [0, 1)"),
    (with_prune(begin=0.97), "prune.begin must not exceed prune.end"),
    (with_prune(end=1.1), "prune.end must lie in [0, 1]"),
    (with_prune(gate=-0.1), "prune.gate must be >= 0"),
    (with_prune(strength=NAN), "prune.strength must be a finite number >= 0"),
    (with_prune(every=0), "prune.every must be >= 1"),
    (with_prune(min_width=0), "prune.min_width must be >= 1"),
    (with_prune(with_learner(hidden=(64, 8)), min_width=9), "wider than the narrowest hidden layer (8)"),
    (with_prune(importance_decay=1.0), "prune.importance_decay must lie in [0, 1)"),
    (with_learner(prune=None), "set its options, or choose method 'dense'"),
]


@pytest.mark.parametrize(("config", "part"), BAD, ids=[part for _, part in BAD])
def test_bad_values_are_refused_in_one_sentence(config: Any, part: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.resolved()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(UnsupportedEnvironment, match="did you mean 'CartPole-v1'"):
        Config(env="Cartpole-v1").resolved()


def test_merging_replaces_only_what_is_named() -> None:
    config = merged(Config(), {"seeds": 7, "learner": {"gamma": 1, "hidden": [8], "prune": {"energy": 0.5}}})
    expected = with_learner(Config(seeds=7), gamma=1.0, hidden=(8,), prune=Pruning(energy=0.5))
    assert config == expected
    assert type(config.learner.gamma) is float


def test_merging_another_algo_brings_its_hyperparameters() -> None:
    mine = with_learner(Config(seeds=7), gamma=0.5)
    assert merged(mine, {"algo": "sac"}) == Config(algo="sac", seeds=7)
    assert merged(mine, {"algo": "ppo"}) == mine
    found = merged(mine, {"algo": "sac", "learner": {"tau": 1, "alpha": 0.2, "prune": {"critic": True}}})
    prune = sac.Config().prune
    assert prune is not None
    expected = sac.Config(tau=1.0, alpha=0.2, prune=dataclasses.replace(prune, critic=True))
    assert found == Config(algo="sac", seeds=7, learner=expected)
    assert merged(found, {"algo": "ppo"}) == Config(seeds=7)
    for data, part in (
        ({"algo": "sac", "learner": {"update_epochs": 3}}, "unknown field 'learner.update_epochs'; known are activ"),
        ({"learner": {"tau": 0.1}}, "unknown field 'learner.tau'; known are activation, "),
        ({"algo": "td3"}, "there is no learner 'td3'; choose one of ppo, sac"),
        ({"algo": "sac", "learner": {"alpha": "much"}}, "learner.alpha must be a number, got 'much'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=part):
            merged(Config(), data)


@pytest.mark.parametrize("algo", ["td3", 3, None, ["sac"]])
def test_a_stored_configuration_of_another_learner_is_refused(algo: Any) -> None:
    with pytest.raises(ValueError, match="algo must be one of ppo, sac, got"):
        from_json({**Config().to_json(), "algo": algo})


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"stepz": 1}, "unknown field 'stepz'; known are algo, "),
        ({"learner": {"gama": 1}}, "unknown field 'learner.gama'; known are activation, "),
        ({"learner": {"prune": {"sparcity": 1}}}, "unknown field 'learner.prune.sparcity'"),
        ({"seeds": "many"}, "seeds must be a whole number, got 'many'"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"learner": {"total_timesteps": 1.5}}, "learner.total_timesteps must be a whole number, got 1.5"),
        ({"learner": 3}, "learner must be a table of fields, got 3"),
        ({"host_resets": {"a": 1}}, "host_resets must be a whole number"),
        ({"learner": {"hidden": 8}}, "learner.hidden must be a list of whole numbers, got 8"),
        ({"learner": {"hidden": [8, "x"]}}, "learner.hidden must be a whole number, got 'x'"),
        ({"learner": {"gamma": "1"}}, "learner.gamma must be a number, got '1'"),
        ({"learner": {"normalize_obs": 1}}, "learner.normalize_obs must be true or false, got 1"),
        ({"learner": {"prune": {"score": "best"}}}, "learner.prune.score must be one of taylor, "),
        ({"method": "sparse"}, "method must be one of dynamic, dense, small, linear, got 'sparse'"),
        ({"env": 1}, "env must be a text, got 1"),
    ],
)
def test_data_of_the_wrong_shape_is_refused(data: Any, part: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        merged(Config(), data)
    assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"must be|unknown field"):
        from_json(data)


def pendulum(updates: Any, **fields: Any) -> Any:
    learner = ppo.Config(num_envs=4, num_steps=64, total_timesteps=updates * 4 * 64)
    fields = {"env": "Pendulum-v1", "backend": "gymnasium", **fields}
    return Config(**{"learner": learner, **fields}).resolved()


def test_resets_leave_host_environments_time_for_whole_episodes() -> None:
    task = resolve_task("Pendulum-v1", "gymnasium")
    long = pendulum(200)
    assert (long.host_resets, long.reset_every, long.checkpoint_every) == (20, 10, 10)
    short = pendulum(20)
    # 20 updates of 64 steps hold three spans of two episodes of 200 steps.
    assert (short.host_resets, short.reset_every, short.checkpoint_every) == (3, 7, 7)
    tiny = pendulum(1, method="dense")
    assert (tiny.host_resets, tiny.checkpoint_every) == (1, 1)  # reset by nothing but the start of training
    for config in (long, short, tiny):
        assert not config.truncates_every_episode(task)
        assert config.resolved() == config
    often = pendulum(20, host_resets=10)
    assert (often.host_resets, often.reset_every) == (10, 2)
    assert often.truncates_every_episode(task)
    device = pendulum(20, env="CartPole-v1", backend="auto")
    assert (device.host_resets, device.reset_every, device.checkpoint_every) == (None, None, 1)
    assert not device.truncates_every_episode(resolve_task("CartPole-v1"))
    assert device.resolved() == device


@given(updates=st.integers(1, 1000), checkpoints=st.integers(1, 100), host_resets=st.integers(1, 100))
def test_host_environments_are_checkpointed_where_they_are_reset(
    updates: Any, checkpoints: Any, host_resets: Any
) -> None:
    learner = ppo.Config(total_timesteps=updates * 8 * 128)
    config = Config(env="Acrobot-v1", checkpoints=checkpoints, host_resets=host_resets, learner=learner)
    assert config.reset_every is not None
    assert config.checkpoint_every % config.reset_every == 0
    assert math.ceil(updates / config.checkpoint_every) <= min(checkpoints, host_resets)
    assert config.reset_every == dataclasses.replace(config, checkpoints=7).reset_every


def test_prune_is_null_in_a_dense_run_only() -> None:
    assert from_json({"method": "dense", "learner": {"prune": None}}).resolved().learner.prune is None
    with pytest.raises(
        ValueError, match=r"learner.prune is null, but method 'dynamic' prunes: set its options, or"
    ):
        from_json({"learner": {"prune": None}}).resolved()


def test_a_new_option_with_its_default_leaves_the_name_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an option of the run, of a learner, and of pruning."""

    @dataclasses.dataclass(frozen=True)
    class NewPruning(Pruning):
        added: float = 0.5

    @dataclasses.dataclass(frozen=True)
    class NewLearner(ppo.Config):
        prune: NewPruning | None = NewPruning()
        added: tuple[int, ...] = (3,)

    @dataclasses.dataclass(frozen=True)
    class NewConfig(Config):
        added: str = "as before"

    for method in ("dynamic", "dense"):
        old = Config(method=method, learner=ppo.Config(gamma=0.9)).resolved()
        with monkeypatch.context() as patch:
            patch.setitem(LEARNERS, "ppo", types.SimpleNamespace(Config=NewLearner))
            patch.setattr("prune_rl.training.config.Config", NewConfig)
            new = NewConfig(method=method, learner=NewLearner(gamma=0.9)).resolved()
            assert isinstance(new, NewConfig)
            assert new.to_json()["added"] == "as before"
            assert new.to_json()["learner"]["added"] == [3]
            assert new.default_run_dir() == old.default_run_dir()
            for other in (
                dataclasses.replace(new, added="otherwise"),
                with_learner(new, added=(4,)),
            ):
                assert other.default_run_dir() != old.default_run_dir()
            if method == "dynamic":
                assert with_prune(new, added=0.6).default_run_dir() != old.default_run_dir()


def test_that_no_episode_has_ended_is_said_once_and_only_where_it_matters() -> None:
    learner = ppo.Config(num_envs=2, num_steps=50, total_timesteps=20 * 100, num_minibatches=1)
    gated = dataclasses.replace(learner, prune=by_schedule(gate=0.1, begin=0.3))
    config = Config(env="Acrobot-v1", host_resets=10, learner=gated).resolved()
    assert config.reset_every == 2
    none, some = np.array([0, 0]), np.array([0, 1])
    told = {done: without_episodes(config, none, done, 1) for done in range(1, 21)}
    assert [done for done, sentence in told.items() if sentence] == [2, 6]
    assert "no episode of Acrobot-v1 has ended in the first 100 steps of each environment" in told[2]
    assert "--host-resets" in told[2]
    assert told[6] == "the gate has no return to look at, and stays open until an episode ends"
    assert not any(without_episodes(config, some, done, 1) for done in range(1, 21))
    assert without_episodes(config, None, 2, 1) == ""
    tolerant = dataclasses.replace(learner, prune=by_schedule(tolerance=0.02, begin=0.3))
    tolerant_config = Config(env="Acrobot-v1", host_resets=10, learner=tolerant).resolved()
    assert without_episodes(tolerant_config, none, 6, 1) == (
        "there is no return that could hold, so no neuron goes until episodes end"
    )
    # On the device, where several updates are made at a time.
    device = Config(env="CartPole-v1", learner=gated).resolved()
    assert without_episodes(device, none, 10, 5) == told[6]
    assert without_episodes(device, none, 5, 5) == ""
