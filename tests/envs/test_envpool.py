from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prune_rl.envs import envpool as module
from prune_rl.envs.cartpole import CartPole, CartPoleState
from prune_rl.envs.envpool import EnvPoolEnv
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_vector import HostEnv, stream_seed
from prune_rl.envs.task import resolve_task
from prune_rl.spaces import Discrete

from .reference_tasks import ENVPOOL_PLATFORM, LANDER_FUEL, NO_ENVPOOL, lander_pilot, lander_shaping

if not ENVPOOL_PLATFORM:
    pytest.skip(NO_ENVPOOL, allow_module_level=True)
import envpool

IDS = ["CartPole-v1", "LunarLander-v2", "Hopper-v3", "Walker2D-v3"]
MUJOCO_IDS = ["Hopper-v3", "Walker2D-v3"]


def random_actions(spec: Any, num_steps: Any, num_envs: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if isinstance(spec.action, Discrete):
        return rng.integers(0, spec.action.n, (num_steps, num_envs))
    return rng.uniform(-1.3, 1.3, (num_steps, num_envs, spec.action.size)).astype(np.float32)


def play(env: Any, seed: Any, actions: Any) -> Any:
    """The first observations, and obs, reward, terminated, truncated, next_obs of all steps, stacked."""
    first = env.reset(seed)
    columns = zip(*(env.step(row) for row in actions), strict=True)
    return [first, *(np.stack(column) for column in columns)]


def with_time_limit(env_id: Any, limit: Any) -> Any:
    return dataclasses.replace(resolve_task(env_id), time_limit=limit)


def raw_pool(env_id: Any, seed: Any, num_envs: Any) -> Any:
    """EnvPool as it is, seeded as ``EnvPoolEnv`` seeds it."""
    seeds = [module._int32(stream_seed(seed, i)) for i in range(num_envs)]
    return envpool.make_gymnasium(
        module.IDS.get(env_id, env_id), num_envs=num_envs, num_threads=1, seed=seeds
    )


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32:UserWarning")
@pytest.mark.parametrize("env_id", IDS)
def test_same_step_resets_lose_and_double_nothing(env_id: Any) -> None:
    """EnvPool's own order, which spends a step of its own on every reset, gives the same transitions, bit for bit."""
    num_envs, num_steps, seed = 5, 300, 3
    env = EnvPoolEnv(resolve_task(env_id), num_envs, num_threads=3)
    actions = random_actions(env.spec, num_steps, num_envs)
    first, obs, reward, terminated, truncated, next_obs = play(env, seed, actions)
    env.close()
    assert (obs.dtype, reward.dtype, next_obs.dtype) == (np.float32,) * 3
    assert (terminated.dtype, truncated.dtype) == (np.bool_,) * 2
    done = terminated | truncated
    assert done.sum() >= 5

    # Observations of environment i as EnvPool gives them: the first one, then one per step, resets included.
    pool = raw_pool(env_id, seed, num_envs)
    pool_obs = pool.reset()[0].astype(np.float32)
    np.testing.assert_array_equal(first, pool_obs)
    acted = np.zeros(num_envs, int)
    ended = np.zeros(num_envs, bool)
    while acted.min() < num_steps:
        t = np.minimum(acted, num_steps - 1)
        action = actions[t, np.arange(num_envs)]
        if env_id in MUJOCO_IDS:
            action = action.clip(-1, 1)
        pool_obs, pool_reward, pool_terminated, pool_truncated, info = pool.step(action)
        np.testing.assert_array_equal(info["elapsed_step"] == 0, ended)
        for i in np.flatnonzero(ended & (acted <= num_steps)):
            np.testing.assert_array_equal(obs[acted[i] - 1, i], pool_obs[i].astype(np.float32))
        for i in np.flatnonzero(~ended & (acted < num_steps)):
            np.testing.assert_array_equal(next_obs[acted[i], i], pool_obs[i].astype(np.float32))
            assert reward[acted[i], i] == pool_reward[i]
            assert terminated[acted[i], i] == pool_terminated[i]
            assert truncated[acted[i], i] == pool_truncated[i]
        acted += ~ended
        ended = pool_terminated | pool_truncated
    np.testing.assert_array_equal(obs[~done], next_obs[~done])
    assert (obs[done] != next_obs[done]).any(axis=1).all()


@pytest.mark.parametrize("env_id", IDS)
def test_a_used_environment_replays_bit_for_bit(env_id: Any) -> None:
    """What resuming a run relies on, whatever the number of threads."""
    used, fresh = (
        EnvPoolEnv(resolve_task(env_id), 6, num_threads=1),
        EnvPoolEnv(resolve_task(env_id), 6, num_threads=4),
    )
    actions = random_actions(used.spec, 200, 6)
    play(used, 5, actions[:77, ::-1])
    for left, right in zip(play(used, 9, actions), play(fresh, 9, actions), strict=True):
        np.testing.assert_array_equal(left, right)
    used.close()
    fresh.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Hopper-v3"])
def test_different_seed_and_index_never_share_a_stream(env_id: str) -> None:
    seeds, num_envs = 12, 8
    env = EnvPoolEnv(resolve_task(env_id), num_envs)
    starts = np.concatenate([env.reset(seed) for seed in range(seeds)])
    assert len(np.unique(starts, axis=0)) == seeds * num_envs
    env.close()


def test_seeds_fit_what_envpool_takes() -> None:
    streams = [module._int32(stream_seed(seed, index)) for seed in range(40) for index in range(64)]
    assert len(set(streams)) == len(streams)
    assert -(2**31) <= min(streams) < -(2**30)
    assert 2**30 < max(streams) < 2**31
    assert [module._int32(x) for x in (0, 2**31 - 1, 2**31, 2**32 - 1, 2**62 + 5)] == [
        0,
        2**31 - 1,
        -(2**31),
        -1,
        5,
    ]


def test_an_episode_that_survives_is_truncated_at_the_time_limit() -> None:
    env = EnvPoolEnv(resolve_task("CartPole-v1"), 4)
    obs = env.reset(0)
    for t in range(1, 1001):
        obs, reward, terminated, truncated, next_obs = env.step((obs @ [0.02, 0.05, 1, 0.25] > 0).astype(int))
        assert not terminated.any()
        assert truncated.tolist() == [t % 500 == 0] * 4
        assert (reward == 1).all()
        if t % 500 == 0:
            assert (np.abs(obs) <= 0.05).all()
            assert (obs != next_obs).any(axis=1).all()
    env.close()


def test_time_limit_of_a_walker() -> None:
    env = EnvPoolEnv(with_time_limit("Hopper-v3", 4), 3)
    _, obs, _, terminated, truncated, next_obs = play(env, 0, np.zeros((12, 3, 3)))
    assert not terminated.any()
    np.testing.assert_array_equal(truncated, np.arange(1, 13)[:, None] % 4 == np.zeros((1, 3)))
    # Starts are near rest; four steps later the hopper is falling.
    assert (np.abs(obs[truncated][:, 5:]) <= 0.005).all()
    assert (np.abs(next_obs[truncated][:, 5:]) > 0.005).any(axis=1).all()
    env.close()


def test_terminated_and_truncated_in_the_same_step() -> None:
    """As with Gymnasium, both are said. EnvPool itself would say truncated only."""
    push_right = np.ones((30, 1), int)
    env = EnvPoolEnv(resolve_task("CartPole-v1"), 1)
    *_, terminated, truncated, _ = play(env, 0, push_right)
    env.close()
    length = int(terminated[:, 0].argmax()) + 1
    assert not truncated.any()
    for limit, expected in [(length - 1, (False, True)), (length, (True, True)), (length + 1, (True, False))]:
        env = EnvPoolEnv(with_time_limit("CartPole-v1", limit), 1)
        *_, terminated, truncated, _ = play(env, 0, push_right[:length])
        end = min(limit, length) - 1
        assert (terminated[end, 0], truncated[end, 0]) == expected
        assert not (terminated[:end] | truncated[:end]).any()
        env.close()


def test_cartpole_has_our_physics() -> None:
    """Its observation is its state, so each transition can be repeated in JAX."""
    num_envs, num_steps = 16, 300
    env = EnvPoolEnv(resolve_task("CartPole-v1"), num_envs)
    actions = random_actions(env.spec, num_steps, num_envs)
    first, obs, reward, terminated, truncated, next_obs = play(env, 1, actions)
    env.close()
    before = np.concatenate([first[None], obs[:-1]])
    step = jax.jit(jax.vmap(jax.vmap(CartPole().step)))
    states = CartPoleState(jnp.asarray(before), jnp.zeros((num_steps, num_envs), jnp.int32))
    _, expected, expected_reward, expected_terminated, _ = step(states, jnp.asarray(actions))
    np.testing.assert_allclose(next_obs, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(reward, expected_reward)
    np.testing.assert_array_equal(terminated, expected_terminated)
    assert not truncated.any()
    assert terminated.sum() > 100
    assert (np.abs(obs[terminated]) <= 0.05).all()


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32:UserWarning")
@pytest.mark.parametrize("env_id", MUJOCO_IDS)
def test_walkers_follow_gymnasium(env_id: Any) -> None:
    """Whole episodes from the same start, in EnvPool's own float64; only the distance walked is not observed."""
    reference = resolve_task(env_id).make_gymnasium()
    physics: Any = reference.unwrapped
    pool = raw_pool(env_id, 4, 1)
    spec = resolve_task(env_id).spec
    obs, _ = pool.reset()
    ended, episodes, positions = True, 0, physics.model.nq - 1
    for t, row in enumerate(random_actions(spec, 2000, 1)):
        # Strong and weak actions alternate, for episodes that end early and late.
        action = row.clip(-1, 1) * (1.0 if episodes % 2 else 0.2)
        if ended:
            reference.reset(seed=t)
            physics.set_state(np.concatenate([[0.0], obs[0, :positions]]), obs[0, positions:])
        obs, reward, terminated, truncated, _ = pool.step(action)
        expected, expected_reward, *expected_ends, _ = reference.step(action[0])
        # Most steps agree to 1e-13; in some contacts the solvers of two versions of MuJoCo stop elsewhere, within their
        # tolerance, and an episode accumulates that.
        np.testing.assert_allclose(obs[0], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(reward[0], float(expected_reward), rtol=0, atol=1e-6)
        ended = bool(terminated[0] or truncated[0])
        assert [terminated[0], truncated[0]] == expected_ends
        if ended:
            episodes += 1
            obs, _ = pool.reset(np.array([0], np.int32))
    assert episodes > 10
    reference.close()


def lander_thrust(before: Any, after: Any) -> Any:
    """What an engine changes in one step: velocity to the lander's side and upwards (m/s), and spin.

    In the lander's own frame, because its angle is nearly the same throughout an episode; so the steps of an
    episode are nearly independent of each other.
    """
    change = (after - before).astype(np.float64)
    # 50 steps per second; gravity, 10 m/s², is taken out.
    x, y = change[:, 2] * 50 / 10, change[:, 3] * 50 / (20 / 3) + 10 / 50
    sin, cos = np.sin(before[:, 4]), np.cos(before[:, 4])
    return np.stack([cos * x + sin * y, cos * y - sin * x, change[:, 5]], axis=1)


def test_lunar_lander_has_gymnasiums_rewards_and_distribution() -> None:
    num_envs = 96
    fuel = np.array(LANDER_FUEL)
    results = []
    for backend in (EnvPoolEnv, HostEnv):
        env = backend(resolve_task("LunarLander-v2"), num_envs)
        obs = env.reset(3)
        rng = np.random.default_rng(0)
        returns, lengths, alive = np.zeros(num_envs), np.zeros(num_envs), np.ones(num_envs, bool)
        thrusts: list[list[np.ndarray]] = [[] for _ in fuel]
        for _ in range(150):  # nearly all first episodes end within them; a rare one lasts 1000
            action = rng.integers(0, 4, num_envs)
            before, (obs, reward, terminated, truncated, next_obs) = obs, env.step(action)
            expected = lander_shaping(next_obs) - lander_shaping(before) - fuel[action]
            np.testing.assert_allclose(reward[~terminated], expected[~terminated], rtol=0, atol=1e-3)
            assert np.isin(reward[terminated], [-100, 100]).all()
            assert terminated[np.abs(next_obs[:, 0]) >= 1].all()
            flying = (before[:, 1] > 0.3) & alive  # too high to touch anything
            for engine, found in enumerate(thrusts):
                chosen = flying & (action == engine)
                found.append(lander_thrust(before[chosen], next_obs[chosen]))
            returns += alive * reward
            lengths += alive
            alive &= ~(terminated | truncated)
        env.close()
        results.append([returns[:, None], lengths[:, None], *map(np.concatenate, thrusts)])
    for ours, theirs in zip(*results, strict=True):
        error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    # Engines scatter; gravity, which is all that moves a lander without them, does not.
    for ours, theirs in zip(*(result[3:] for result in results), strict=True):
        np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.1)


def test_lunar_lander_lands_as_gymnasiums_does() -> None:
    """With a pilot, for what random actions never reach: legs on the ground, and +100 for coming to rest."""
    num_envs = 64
    results = []
    for backend in (EnvPoolEnv, HostEnv):
        env = backend(resolve_task("LunarLander-v2"), num_envs)
        obs = env.reset(8)
        returns, lengths, last, legs = np.zeros((4, num_envs))
        alive = np.ones(num_envs, bool)
        for _ in range(400):  # some take longer, and count with what they have got by then
            action = np.array([lander_pilot(row) for row in obs])
            obs, reward, terminated, truncated, next_obs = env.step(action)
            assert not truncated.any()
            last = np.where(alive, reward, last)
            legs = np.where(alive, np.maximum(legs, next_obs[:, 6:].sum(axis=1)), legs)
            returns += alive * reward
            lengths += alive
            alive &= ~terminated
        env.close()
        assert np.isin(last[~alive], [-100, 100]).all()
        assert (last == 100).mean() > 0.75
        assert (legs == 2).mean() > 0.75
        results.append((returns, lengths, legs))
    for ours, theirs in zip(*results, strict=True):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("env_id", IDS)
def test_starts_are_distributed_as_gymnasiums(env_id: Any) -> None:
    num_envs, seeds = 100, 4
    ours, theirs = EnvPoolEnv(resolve_task(env_id), num_envs), HostEnv(resolve_task(env_id), num_envs)
    samples = [np.concatenate([env.reset(seed) for seed in range(seeds)]) for env in (ours, theirs)]
    ours.close()
    theirs.close()
    for left, right in zip(*(sample.T for sample in samples), strict=True):
        assert scipy.stats.ks_2samp(left, right).pvalue > 1e-4
    if env_id == "LunarLander-v2":
        return  # its starts follow from random forces, without bounds of their own
    rest = np.zeros(samples[0].shape[1])
    rest[0] = 1.25 if env_id in MUJOCO_IDS else 0.0  # the walkers' height
    reach = 5e-3 if env_id in MUJOCO_IDS else 5e-2
    noise = np.abs(samples[0] - rest).max(axis=0) / reach
    assert noise.max() <= 1 + 1e-4  # the height is rounded
    assert noise.min() > 0.97


@pytest.mark.parametrize("env_id", [*IDS, "Walker2d-v3"])
def test_spec_is_that_of_the_other_backends(env_id: Any) -> None:
    env = EnvPoolEnv(resolve_task(env_id), 2)
    assert env.spec == resolve_task(env_id).spec
    assert env.reset(0).shape == (2, env.spec.observation_size)
    env.close()


def test_box_actions_are_clipped() -> None:
    env = EnvPoolEnv(resolve_task("Hopper-v3"), 2)
    row = np.array([[5.0, -7.0, 0.25], [np.inf, 1.0, -1.5]])
    wide, clipped = play(env, 0, [row] * 5), play(env, 0, [row.clip(-1, 1)] * 5)
    for left, right in zip(wide, clipped, strict=True):
        np.testing.assert_array_equal(left, right)
    env.close()


def test_jax_arrays_are_taken_and_results_are_not_overwritten() -> None:
    env = EnvPoolEnv(resolve_task("CartPole-v1"), 2)
    start = env.reset(0)
    results = env.step(jnp.array([0, 1], jnp.int32))
    kept = [start.copy(), *(x.copy() for x in results)]
    results[0][:] += 0  # writable
    for _ in range(50):
        env.step(np.array([1, 0]))
    for before, after in zip(kept, [start, *results], strict=True):
        np.testing.assert_array_equal(before, after)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "action", "message"),
    [
        ("CartPole-v1", np.array([0, 2]), "must be in 0 … 1, got [0, 2]"),
        ("CartPole-v1", np.array([0.0, 1.0]), "must be integers, got float64"),
        ("CartPole-v1", np.array([0, 1, 0]), "2 environments need actions of shape (2,), got (3,)"),
        ("Hopper-v3", np.zeros((2, 4)), "need 3 components on the last axis, got shape (2, 4)"),
        ("Hopper-v3", np.zeros((1, 3)), "2 environments need actions of shape (2, 3), got (1, 3)"),
        ("Hopper-v3", np.full((2, 3), np.nan), "NaN"),
    ],
)
def test_bad_actions(env_id: str, action: Any, message: str) -> None:
    env = EnvPoolEnv(resolve_task(env_id), 2)
    env.reset(0)
    with pytest.raises(ValueError, match=re.escape(message)):
        env.step(action)
    env.close()


def test_bad_arguments_and_order_of_calls() -> None:
    with pytest.raises(ValueError, match="number of environments must be at least 1, got 0"):
        EnvPoolEnv(resolve_task("CartPole-v1"), 0)
    with pytest.raises(ValueError, match="number of threads must be at least 1, got 0"):
        EnvPoolEnv(resolve_task("CartPole-v1"), 1, num_threads=0)
    with pytest.raises(UnsupportedEnvironment, match=r"EnvPool cannot run 'Acrobot-v1'; .*: gymnasium"):
        EnvPoolEnv(resolve_task("Acrobot-v1"), 1)
    env = EnvPoolEnv(resolve_task("CartPole-v1"), 1)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        env.reset(-1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape("call reset(seed)")):
            env.step(np.array([0]))
        env.reset(0)
        env.step(np.array([0]))
        env.close()
        env.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads where Linux lists them")
def test_threads_end_with_the_pool() -> None:
    env = EnvPoolEnv(resolve_task("CartPole-v1"), 8, num_threads=3)
    threads = len(os.listdir("/proc/self/task"))
    for seed in range(10):
        env.reset(seed)
        env.step(np.zeros(8, int))
    assert len(os.listdir("/proc/self/task")) - threads <= 5
    env.close()
    assert len(os.listdir("/proc/self/task")) == threads
    assert EnvPoolEnv(resolve_task("CartPole-v1"), 2, num_threads=64).num_threads == 2
