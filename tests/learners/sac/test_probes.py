"""SAC on probe environments whose soft-optimal values and policies are known, trained by the engines' own functions.

With the temperature α a one-step task with rewards r(a) has the optimal policy ∝ exp(r(a) / α), and an endless one with
reward 1 and two actions the value (1 + α log 2) / (1 − γ) (Haarnoja et al. 2018, section 3).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.autoreset import JaxEnv
from prune_rl.learners import sac
from prune_rl.learners.distributions import Categorical
from prune_rl.learners.sac import values as sac_values
from prune_rl.learners.sac.values import Architecture
from prune_rl.training import engines
from prune_rl.training.engines.rollouts import reset_envs
from tests.compilation import quick_jit
from tests.learners import probe_environments as probes

GAMMA = 0.9
ALPHA = 0.5
BONUS = ALPHA * math.log(2.0)  # of the entropy, where both actions are worth the same
DISCRETE = probes.Mixture(
    (
        probes.OneReward(),
        probes.ObservedReward(),
        probes.DelayedReward(),
        probes.ChosenReward(),
        probes.MatchedReward(),
        probes.TimeLimited(2),
    )
)
ONE, OBSERVED, DELAYED, CHOSEN, MATCHED, LIMITED = range(6)
CONFIG = sac.Config(
    hidden=(64,),
    activation="tanh",
    num_envs=32,
    num_steps=16,
    utd_ratio=100 / 512,
    batch_size=128,
    learning_starts=1024,
    learning_rate=5e-3,
    learning_rate_end=5e-4,
    gamma=GAMMA,
    tau=0.05,
    alpha=ALPHA,
    total_timesteps=18 * 32 * 16,
    prune=None,
)
# The target entropy is −1 by default, in units of half the width of the bounds. The optimal policy is normal, with the
# variance α / 2 where the reward is −(a − target)², so that its entropy in these units is ½ log(2πe · α / 2 / 2.5²).
OPTIMAL_ALPHA = 2.0 * 2.5**2 * math.exp(-2.0) / (2.0 * math.pi * math.e)
BOX = probes.ContinuousTarget(low=-2.0, high=3.0)
BOX_CONFIG = sac.Config(
    hidden=(32,),
    activation="tanh",
    num_envs=32,
    num_steps=16,
    utd_ratio=100 / 512,
    batch_size=128,
    learning_starts=1024,
    learning_rate=1e-2,
    learning_rate_end=1e-3,
    total_timesteps=30 * 32 * 16,
    prune=None,
)
TANH = {kind: Architecture("tanh", kind) for kind in (False, True)}
policy = quick_jit(sac_values.policy, static_argnames="arch")
q_values = quick_jit(sac_values.q_values, static_argnames="arch")
act = quick_jit(sac.act, static_argnames="config")


def train(env: JaxEnv[Any], config: sac.Config) -> tuple[sac.State, Any]:
    """The state of one seed after all updates, and the metrics of the last one."""
    env_state, obs = quick_jit(reset_envs, static_argnums=(0, 2))(env, jax.random.key(0), config.num_envs)
    state = quick_jit(sac.init, static_argnums=(1, 2))(jax.random.key(1), config, env.spec)
    runner = engines.Runner(state, env_state, obs, jax.random.key(2))
    iterate = quick_jit(lambda runner: engines.iterate(env, runner, config), donate_argnums=0)
    for _ in range(config.num_updates):
        runner, metrics = iterate(runner)
    return runner.state, metrics


@pytest.fixture(scope="module")
def discrete() -> sac.State:
    return train(DISCRETE, CONFIG)[0]


def values(state: sac.State, which: int, observed: float) -> np.ndarray:
    """Q of both actions, by both critics: [critic, action]."""
    obs = jnp.broadcast_to(DISCRETE.observation(which, observed), (2, 7))
    return np.asarray(q_values(state.params["critic"], obs, jnp.arange(2), arch=TANH[True]))


def probability_of_one(state: sac.State, which: int, observed: float) -> float:
    chosen = policy(state.params["actor"], DISCRETE.observation(which, observed), arch=TANH[True])
    assert isinstance(chosen, Categorical)
    return float(jax.nn.softmax(chosen.logits)[1])


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_a_certain_reward_before_a_termination_is_the_value(discrete: sac.State, observed: float) -> None:
    np.testing.assert_allclose(values(discrete, ONE, observed), 1.0, atol=0.02)
    assert probability_of_one(discrete, ONE, observed) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_value_follows_the_observation(discrete: sac.State, observed: float) -> None:
    np.testing.assert_allclose(values(discrete, OBSERVED, observed), observed, atol=0.02)


@pytest.mark.parametrize(("observed", "expected"), [(0.0, GAMMA * (1.0 + BONUS)), (1.0, 1.0)])
def test_a_later_reward_and_its_entropy_bonus_are_discounted_once_per_step(
    discrete: sac.State, observed: float, expected: float
) -> None:
    np.testing.assert_allclose(values(discrete, DELAYED, observed), expected, atol=0.02)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_better_action_is_chosen_as_often_as_the_temperature_says(
    discrete: sac.State, observed: float
) -> None:
    np.testing.assert_allclose(values(discrete, CHOSEN, observed), [[-1.0, 1.0]] * 2, atol=0.02)
    expected = 1.0 / (1.0 + math.exp(-2.0 / ALPHA))
    assert probability_of_one(discrete, CHOSEN, observed) == pytest.approx(expected, abs=0.008)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_the_action_depends_on_the_observation(discrete: sac.State, observed: float) -> None:
    np.testing.assert_allclose(values(discrete, MATCHED, observed), [[-observed, observed]] * 2, atol=0.02)
    expected = 1.0 / (1.0 + math.exp(-2.0 * observed / ALPHA))
    assert probability_of_one(discrete, MATCHED, observed) == pytest.approx(expected, abs=0.008)


def test_a_time_limit_is_not_the_end_of_the_rewards(discrete: sac.State) -> None:
    expected = 1.0 + GAMMA * (1.0 + BONUS) / (1.0 - GAMMA)
    as_termination = 1.0 + GAMMA * (1.0 + BONUS)
    assert as_termination < 0.2 * expected
    np.testing.assert_allclose(values(discrete, LIMITED, 1.0), expected, rtol=0.01)


@pytest.fixture(scope="module")
def box() -> tuple[sac.State, Any]:
    return train(BOX, BOX_CONFIG)


def test_the_critics_learn_the_reward_of_every_box_action(box: tuple[sac.State, Any]) -> None:
    action = np.linspace(-1.5, 2.5, 9)
    unit = (action - 0.5) / 2.5
    for observed in (-1.0, 1.0):
        obs = jnp.full((9, 1), observed)
        q = q_values(box[0].params["critic"], obs, jnp.asarray(unit, jnp.float32)[:, None], TANH[False])
        np.testing.assert_allclose(q, [-((action - BOX.scale * observed) ** 2)] * 2, atol=0.3)


@pytest.mark.parametrize("observed", [-1.0, 1.0])
def test_box_actions_find_their_target_between_lopsided_bounds_and_spread_as_the_temperature_says(
    box: tuple[sac.State, Any], observed: float
) -> None:
    noise = sac.action_noise(jax.random.key(0), (2000,), BOX.spec)
    actions = np.asarray(act(box[0], jnp.full((2000, 1), observed), noise, BOX_CONFIG))
    assert np.mean(actions) == pytest.approx(BOX.scale * observed, abs=0.1)
    assert np.std(actions) == pytest.approx(math.sqrt(OPTIMAL_ALPHA / 2.0), abs=0.05)


def test_the_learned_temperature_brings_the_entropy_to_its_target(box: tuple[sac.State, Any]) -> None:
    _, metrics = box
    assert float(metrics["entropy"]) == pytest.approx(-1.0, abs=0.1)
    assert float(metrics["alpha"]) == pytest.approx(OPTIMAL_ALPHA, rel=0.3)
