"""PPO on probe environments with known values, trained by the engines' own functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.autoreset import JaxEnv
from prune_rl.export.policy import load_policy, save_policy
from prune_rl.learners import ppo
from prune_rl.learners.distributions import Gaussian
from prune_rl.training import engines
from prune_rl.training.config import Config
from prune_rl.training.policy_export import compact_policy
from tests.learners import probe_environments as probes

GAMMA = 0.9
DISCRETE = probes.Mixture(
    (
        probes.OneReward(),
        probes.ObservedReward(),
        probes.DelayedReward(),
        probes.ChosenReward(),
        probes.MatchedReward(),
        probes.TimeLimited(4),
    )
)
ONE, OBSERVED, DELAYED, CHOSEN, MATCHED, LIMITED = range(6)
CONFIG = ppo.Config(
    hidden=(64,),
    num_envs=32,
    num_steps=16,
    update_epochs=4,
    num_minibatches=4,
    learning_rate=5e-3,
    gamma=GAMMA,
    max_grad_norm=10.0,
    normalize_obs=False,
    normalize_reward=False,
    total_timesteps=250 * 32 * 16,
    prune=None,
)


def train(env: JaxEnv[Any], config: ppo.Config) -> ppo.State:
    """The state of one seed after all updates, without the seed axis."""
    runner = engines.init_runner(env, engines.seed_keys([0]), config)
    runner, _ = engines.make_chunk(env, config, config.num_updates)(runner, jnp.int32(config.num_updates))
    state: ppo.State = jax.tree.map(lambda x: x[0] if x.ndim else x, runner.state)
    return state


@pytest.fixture(scope="module")
def trained() -> ppo.State:
    return train(DISCRETE, CONFIG)


def value(state: ppo.State, which: int, observed: float) -> float:
    return float(ppo.values(state.params, DISCRETE.observation(which, observed), CONFIG))


def probability_of_one(state: ppo.State, which: int, observed: float) -> float:
    logits = ppo.actor_distribution(state.params, DISCRETE.observation(which, observed), CONFIG, True)
    return float(jnp.exp(logits.log_prob(jnp.int32(1))))


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_a_certain_reward_is_the_value(trained: ppo.State, observed: float) -> None:
    assert value(trained, ONE, observed) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_value_follows_the_observation(trained: ppo.State, observed: float) -> None:
    assert value(trained, OBSERVED, observed) == pytest.approx(observed, abs=0.1)


@pytest.mark.parametrize(("observed", "expected"), [(0.0, GAMMA), (1.0, 1.0)])
def test_a_later_reward_is_discounted_once_per_step(
    trained: ppo.State, observed: float, expected: float
) -> None:
    # 0.04 tells γ = 0.9 from 1, and from γ² = 0.81.
    assert value(trained, DELAYED, observed) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_better_action_is_chosen(trained: ppo.State, observed: float) -> None:
    assert probability_of_one(trained, CHOSEN, observed) > 0.95
    assert value(trained, CHOSEN, observed) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_action_depends_on_the_observation(trained: ppo.State, observed: float) -> None:
    right = probability_of_one(trained, MATCHED, observed)
    assert (right if observed > 0 else 1.0 - right) > 0.95
    assert value(trained, MATCHED, observed) == pytest.approx(1.0, abs=0.15)


def test_a_time_limit_is_not_the_end_of_the_rewards(trained: ppo.State) -> None:
    as_termination = sum(GAMMA**i for i in range(4))
    endless = 1.0 / (1.0 - GAMMA)
    assert as_termination < 0.4 * endless
    assert value(trained, LIMITED, 1.0) == pytest.approx(endless, rel=0.05)


def test_the_mean_of_a_continuous_action_finds_its_target() -> None:
    env = probes.ContinuousTarget()
    config = ppo.Config(
        hidden=(16,),
        num_envs=32,
        num_steps=8,
        update_epochs=4,
        num_minibatches=2,
        learning_rate=1e-2,
        learning_rate_end=1e-3,
        max_grad_norm=10.0,
        normalize_obs=False,
        normalize_reward=False,
        total_timesteps=250 * 32 * 8,
        prune=None,
    )
    state = train(env, config)
    policy = ppo.actor_distribution(state.params, jnp.array([[-1.0], [1.0]]), config, False)
    assert isinstance(policy, Gaussian)
    np.testing.assert_allclose(policy.mean, [[-env.scale], [env.scale]], atol=0.1)
    # Any spread costs reward, so it shrinks from e⁰.
    assert float(state.params["actor"]["log_std"][0]) < -0.7


def test_an_action_far_from_zero_is_found_in_training_and_in_the_policy_file(tmp_path: Path) -> None:
    env = probes.FarTarget()
    learner = dataclasses.replace(CONFIG, hidden=(8,), total_timesteps=40 * 32 * 16)
    state = train(env, learner)
    mean = ppo.actor_distribution(state.params, jnp.ones((1, 1)), learner, False)
    assert isinstance(mean, Gaussian)
    action = ppo.environment_actions(mean.mean, env.spec)
    np.testing.assert_allclose(action, [[80.0]], atol=2.0)
    config = Config(
        env="Pendulum-v1", method="dense", learner=learner
    )  # of the environment only the name is used
    save_policy(tmp_path, compact_policy(state, config, env.spec, seed=0))
    np.testing.assert_allclose(load_policy(tmp_path)(np.ones(1)), action[0], rtol=1e-5)
