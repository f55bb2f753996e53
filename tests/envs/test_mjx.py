"""MJX against Gymnasium's v4 classes, which run MuJoCo's C code in float64.

Where a foot lands, walkers amplify rounding: MuJoCo's C code alone, started twice 1e-6 apart, ends up to 0.1 apart.
So a simulation is held to a multiple of what C itself makes of differences like those that float32 brings.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from prune_rl.envs import mjx
from prune_rl.envs.autoreset import autoreset_step
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.mjx import MjxEnv, MjxState
from prune_rl.envs.task import resolve_task
from tests.compilation import optimized_jit

T, N = 120, 8
IDS = ["Hopper-v3", "Walker2d-v3"]
PERTURBATION = 1e-6  # a few roundings of a float32 of size 1
# Whole episodes: simulations in C from starts that are off by PERTURBATION; what MJX may make of that; and what it may
# add, since it rounds in every step. Observations hold velocities up to 10.
TWINS = 3
AMPLIFIED = 10.0
ATOL = {"obs": 3e-4, "reward": 3e-5}
# Single steps, with forces that are off, too: nothing is added, and the largest multiple seen in 5000 steps is 17.
STEP_TWINS = 4
STEP_AMPLIFIED = 40.0
POSITION_ATOL = 1e-5  # m, rad; what a step moves is no more than velocities make of 0.008 s


@dataclasses.dataclass
class Rig:
    """One environment on both engines; compiled once for the whole file, because that takes 20 s and more."""

    env_id: str
    env: MjxEnv
    reference: gymnasium.Env[Any, Any]
    run: Callable[..., Any]
    draw: Callable[..., Any]
    traces: list[str]


@pytest.fixture(scope="module", params=IDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Any]:
    env = mjx.make(request.param)
    assert isinstance(env, MjxEnv)
    traces = []

    @jax.jit
    def run(states: Any, actions: Any, resets: Any, reset_obs: Any) -> Any:
        """[T, N, …] steps of N environments, each with the start of the episode that may follow it."""
        traces.append("run")

        def step(states: Any, inputs: Any) -> Any:
            states, *rest = jax.vmap(autoreset_step, in_axes=(None, 0, 0, 0, 0))(env, states, *inputs)
            return states, (states, *rest)

        return jax.lax.scan(step, states, (actions, resets, reset_obs))[1]

    @optimized_jit
    def draw(seed: Any) -> Any:
        """[T, N, …] starts and their observations."""
        return jax.vmap(jax.vmap(env.reset))(jax.random.split(jax.random.key(seed), (T, N)))

    reference = resolve_task(request.param).make_gymnasium()
    yield Rig(request.param, env, reference, run, draw, traces)
    reference.close()


def states_of(qpos: Any, qvel: Any, steps: Any = 0) -> Any:
    qpos, qvel = np.asarray(qpos, np.float32), np.asarray(qvel, np.float32)
    steps = np.broadcast_to(np.int32(steps), qpos.shape[:-1])
    return MjxState(jnp.asarray(qpos), jnp.asarray(qvel), jnp.zeros(qvel.shape), jnp.asarray(steps))


def observation(states: Any) -> Any:
    return jnp.concatenate([states.qpos[..., 1:], jnp.clip(states.qvel, -10, 10)], axis=-1)


def random_actions(env: Any, rng: Any, scales: Any) -> Any:
    low, high = np.array(env.spec.action.low), np.array(env.spec.action.high)
    return (rng.uniform(low, high, (T, N, low.size)) * scales[None, :, None]).astype(np.float32)


def margin(env: Any, obs: Any) -> Any:
    """How far height and pitch of the torso are from where an episode ends."""
    edges = np.array([env.walker.z_range, env.walker.angle_range])
    return np.abs(obs[..., :2, None] - edges).min(axis=(-2, -1))


def start_reference(reference: Any, qpos: Any, qvel: Any, steps: int = 0) -> None:
    reference.reset()
    reference.unwrapped.set_state(qpos.astype(np.float64), qvel.astype(np.float64))
    reference._elapsed_steps = int(steps)


def reference_episode(reference: Any, qpos: Any, qvel: Any, steps: Any, actions: Any) -> Any:
    """Gymnasium's (obs, reward, terminated, truncated) from a start to the end of the episode or of the actions."""
    start_reference(reference, qpos, qvel, steps)
    rows = []
    for action in actions:
        rows.append(reference.step(action)[:4])
        if rows[-1][2] or rows[-1][3]:
            break
    return [np.array(column) for column in zip(*rows, strict=True)]


def spread(
    reference: Any, qpos: Any, qvel: Any, steps: Any, actions: Any, obs: Any, reward: Any, rng: Any
) -> Any:
    """How far apart C itself gets up to each step of an episode: (in obs, in reward)."""
    worst = np.zeros((2, len(reward)))
    for _ in range(TWINS):
        twin = reference_episode(
            reference,
            qpos + rng.uniform(-PERTURBATION, PERTURBATION, qpos.shape),
            qvel + rng.uniform(-PERTURBATION, PERTURBATION, qvel.shape),
            steps,
            actions,
        )
        both = min(len(reward), len(twin[1]))
        worst[0, :both] = np.maximum(worst[0, :both], np.abs(twin[0][:both] - obs[:both]).max(axis=1))
        worst[1, :both] = np.maximum(worst[1, :both], np.abs(twin[1][:both] - reward[:both]))
    return np.maximum.accumulate(worst, axis=1)


def perturbed_step(reference: Any, qpos: Any, qvel: Any, action: Any, rng: Any) -> Any:
    """Gymnasium's (obs, reward) of one step, with all that float32 rounds off by PERTURBATION of its size."""

    def noise(size: Any) -> Any:
        return rng.uniform(-PERTURBATION, PERTURBATION, size.shape) * size

    # The distance walked is not rounded before the reward is taken, see MjxEnv.step.
    position = qpos + np.append(0.0, noise(np.ones(qpos.size - 1)))
    start_reference(reference, position, qvel + noise(np.maximum(1, np.abs(qvel))))
    model, data = reference.unwrapped.model, reference.unwrapped.data
    forces = np.abs([data.qfrc_bias, data.qfrc_passive, data.qfrc_constraint]).sum(axis=0)
    forces[-action.size :] += np.abs(action) * model.actuator_gear[:, 0]
    data.qfrc_applied[:] = noise(forces)  # until the next reset
    return reference.step(action)[:2]


@pytest.mark.slow
def test_episodes_and_their_ends_follow_gymnasium(rig: Any) -> None:
    rng = np.random.default_rng(0)
    resets, reset_obs = rig.draw(1)
    starts = jax.tree.map(lambda leaf: leaf[0], rig.draw(2)[0])
    # Gentle actions first, for long episodes; two that soon reach the time limit.
    scales = np.array([0.1, 0.1, 0.3, 0.3, 0.5, 0.5, 1.0, 1.0])
    begun = np.array([995, 0, 0, 995, 0, 0, 0, 0])
    starts = starts.replace(steps=jnp.asarray(begun, jnp.int32))
    actions = random_actions(rig.env, rng, scales)

    states, obs, reward, terminated, truncated, next_obs = jax.tree.map(
        np.asarray, rig.run(starts, jnp.asarray(actions), resets, reset_obs)
    )

    assert obs.dtype == next_obs.dtype == reward.dtype == np.float32
    assert terminated.dtype == truncated.dtype == np.bool_
    ends, errors = [], []
    for n in range(N):
        t, qpos, qvel, steps = 0, np.asarray(starts.qpos[n]), np.asarray(starts.qvel[n]), begun[n]
        while t < T:
            episode = actions[t:, n]
            expected = reference_episode(rig.reference, qpos, qvel, steps, episode)
            length = len(expected[1])
            span = slice(t, t + length)
            # No end is so near a threshold that rounding decides; it would take other seeds to compare ends then.
            shifted = np.abs(next_obs[span, n, :2] - expected[0][:, :2]).max(axis=1)
            assert (margin(rig.env, expected[0]) > 2 * shifted).all(), f"environment {n}, from step {t}"
            np.testing.assert_array_equal(terminated[span, n], expected[2], f"environment {n}, from step {t}")
            np.testing.assert_array_equal(truncated[span, n], expected[3], f"environment {n}, from step {t}")
            in_c = spread(rig.reference, qpos, qvel, steps, episode, expected[0], expected[1], rng)
            off = np.abs(next_obs[span, n] - expected[0]).max(axis=1), np.abs(reward[span, n] - expected[1])
            errors.append(np.stack([*off, *in_c]))
            ends.append((bool(expected[2][-1]), bool(expected[3][-1])))
            last = t + length - 1
            np.testing.assert_array_equal(obs[t:last, n], next_obs[t:last, n])
            np.testing.assert_array_equal(states.steps[t:last, n], steps + 1 + np.arange(length - 1))
            if any(ends[-1]):
                np.testing.assert_array_equal(obs[last, n], reset_obs[last, n])
                assert states.steps[last, n] == 0
            t, steps = last + 1, 0
            qpos, qvel = np.asarray(resets.qpos[last, n]), np.asarray(resets.qvel[last, n])
    off_obs, off_reward, c_obs, c_reward = np.concatenate(errors, axis=1)
    assert (off_obs <= ATOL["obs"] + AMPLIFIED * c_obs).all()
    assert (off_reward <= ATOL["reward"] + AMPLIFIED * c_reward).all()
    assert (c_obs < 1e-3).mean() > 0.8
    assert sum(terminated for terminated, _ in ends) >= 15
    assert sum(truncated for _, truncated in ends) == 2


@pytest.mark.slow
def test_every_step_is_gymnasiums_from_the_same_state(rig: Any) -> None:
    """States on the way of random policies, each stepped on its own: the rollout starts anew in each of them, because
    the step before reached the time limit. Far from the origin, with actions beyond their bounds, and now and then with
    velocities beyond what an observation shows."""
    rng = np.random.default_rng(3)
    adapter, nq = resolve_task(rig.env_id).adapter, rig.reference.unwrapped.model.nq
    actions = random_actions(rig.env, rng, np.array([0.3, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0, 3.0]))
    native = adapter.native_actions(actions)
    qpos, qvel = np.zeros((2, T + 1, N, nq), np.float32)
    obs, obs_in_c = np.zeros((2, T, N, 2 * nq - 1))
    reward, reward_in_c, forward = np.zeros((3, T, N))
    terminated = np.zeros((T, N), bool)
    for n in range(N):
        rig.reference.reset(seed=n)
        data = rig.reference.unwrapped.data
        for t in range(T):
            qpos[t, n], qvel[t, n] = data.qpos, data.qvel
            qpos[t, n, 0] = 100.0 * n
            if n == 0 and t % 8 == 0:
                qvel[t, n] += rng.uniform(-15, 15, nq)
            twins = [
                perturbed_step(rig.reference, qpos[t, n], qvel[t, n], native[t, n], rng)
                for _ in range(STEP_TWINS)
            ]
            start_reference(rig.reference, qpos[t, n], qvel[t, n])
            obs[t, n], reward[t, n], terminated[t, n], _, info = rig.reference.step(native[t, n])
            forward[t, n] = info["x_velocity"]
            obs_in_c[t, n] = np.abs([twin[0] - obs[t, n] for twin in twins]).max(axis=0)
            reward_in_c[t, n] = np.abs([twin[1] - reward[t, n] for twin in twins]).max()
            if terminated[t, n]:
                rig.reference.reset()
    given = states_of(qpos, qvel, rig.env.time_limit - 1)
    starts, resets = (jax.tree.map(lambda leaf, s=s: leaf[s], given) for s in (0, slice(1, None)))

    _, _, got_reward, got_terminated, truncated, next_obs = jax.tree.map(
        np.asarray, rig.run(starts, jnp.asarray(actions), resets, observation(resets))
    )

    assert truncated.all()
    off_obs, off_reward = np.abs(next_obs - obs), np.abs(got_reward - reward)
    assert (off_obs.max(axis=-1) <= STEP_AMPLIFIED * obs_in_c.max(axis=-1)).all()
    assert (off_reward <= STEP_AMPLIFIED * reward_in_c).all()
    # So that a sensitive state cannot hide an error: what most of them make of it, and positions in all of them.
    assert (STEP_AMPLIFIED * obs_in_c.max(axis=-1) < 1e-2).mean() > 0.95
    assert off_obs[..., : nq - 1].max() < POSITION_ATOL

    # Ends are C's, where that tolerance of positions does not decide.
    clear = margin(rig.env, obs) > POSITION_ATOL
    assert (~clear).sum() <= 3
    np.testing.assert_array_equal(got_terminated[clear], terminated[clear])
    assert terminated[clear].sum() >= 30
    # Being alive is paid with 1, in the last step, too; the control cost is that of the clipped action.
    cost, unclipped_cost = (1e-3 * np.square(of, dtype=np.float64).sum(axis=-1) for of in (native, actions))
    alive = got_reward - forward + cost
    assert np.abs(alive - 1).max() < 1e-4
    assert (unclipped_cost - cost > 1e-3).mean() > 0.2
    # The observation shows velocities up to 10 either way.
    for bound in (-10, 10):
        assert (next_obs[obs == bound] == bound).all()
        assert (obs == bound).sum() > 10


@pytest.mark.slow
def test_the_rollout_is_compiled_once(rig: Any) -> None:
    for seed in (5, 6):
        resets, reset_obs = rig.draw(seed)
        starts = jax.tree.map(lambda leaf: leaf[-1], resets)
        rig.run(starts, jnp.zeros((T, N, len(rig.env.spec.action.low))), resets, reset_obs)
    assert rig.traces == ["run"]


def test_starts_are_gymnasiums(rig: Any) -> None:
    """Uniform and independent, in the units of ±0.005: exactly that support, and Gymnasium's own draws look alike."""
    physics = rig.reference.unwrapped
    states, obs = rig.draw(7)
    qpos, qvel = (np.asarray(leaf).reshape(T * N, -1) for leaf in (states.qpos, states.qvel))
    np.testing.assert_array_equal(states.qacc, 0)
    np.testing.assert_array_equal(states.steps, 0)
    np.testing.assert_array_equal(obs, observation(states))
    start = np.concatenate([physics.init_qpos, physics.init_qvel])
    np.testing.assert_array_equal(start, [0, 1.25, *[0] * (start.size - 2)])

    def noise_of(sample: Any) -> Any:
        return (sample.astype(np.float64) - start) / 5e-3

    noise = noise_of(np.concatenate([qpos, qvel], axis=1))
    rounding = np.spacing(np.float32(1.25)) / 5e-3  # of the height, the only one that is not around 0
    assert np.abs(noise).max() <= 1 + rounding
    assert np.delete(np.abs(noise), 1, axis=1).max() <= 1
    assert noise.min(axis=0).max() < -0.98
    assert noise.max(axis=0).min() > 0.98
    assert np.abs(np.corrcoef(noise.T) - np.eye(start.size)).max() < 0.15  # 4.6 standard errors

    theirs = []
    rig.reference.reset(seed=0)
    for _ in range(500):
        rig.reference.reset()
        theirs.append(np.concatenate([physics.data.qpos, physics.data.qvel]))
    for ours, other in zip(noise.T, noise_of(np.array(theirs)).T, strict=True):
        assert scipy.stats.kstest(ours, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-4
        assert scipy.stats.ks_2samp(ours, other).pvalue > 1e-4


def around(edge: Any) -> Any:
    """The nearest float32 on both sides of a number, and itself, where it is one."""
    nearest = np.float32(edge)
    sides = [np.nextafter(nearest, np.float32(side)) for side in (-np.inf, np.inf)]
    return [*sides, nearest] if float(nearest) == edge else sides


def test_health_and_observations_are_gymnasiums(rig: Any) -> None:
    physics, task, rng = rig.reference.unwrapped, rig.env.walker, np.random.default_rng(0)
    nq = physics.model.nq
    qpos, qvel = rng.normal(0, 1, (2, 3000, nq))
    qpos[:, 0] *= 1e3
    qpos[:, 1] = rng.uniform(0.5, 2.3, 3000)
    low, high = task.angle_range
    qpos[:, 2] = rng.uniform(low, high, 3000) * rng.choice([0.9, 1.1], 3000)
    qvel[1000:] *= 30  # many beyond 10, some beyond 100
    upright = np.array([0, 1.25, *[0] * (2 * nq - 2)])
    edges = {1: task.z_range, 2: task.angle_range, **dict.fromkeys(range(3, 2 * nq), (-100, 100))}
    rows = [
        np.where(np.arange(2 * nq) == place, value, upright)
        for place, pair in edges.items()
        for edge in pair
        if np.isfinite(edge)
        for value in around(edge)
    ]
    state = np.concatenate([np.concatenate([qpos, qvel], axis=1), rows]).astype(np.float32)

    @jax.jit
    @jax.vmap
    def see(qpos: Any, qvel: Any) -> Any:
        env_state = MjxState(qpos, qvel, jnp.zeros_like(qvel), jnp.int32(0))
        return mjx.is_healthy(task, env_state), mjx._observe(env_state)

    healthy, obs = (np.asarray(x) for x in see(state[:, :nq], state[:, nq:]))
    expected_healthy, expected_obs = [], []
    for row in state:
        physics.data.qpos[:], physics.data.qvel[:] = row[:nq], row[nq:]
        expected_healthy.append(physics.is_healthy)
        expected_obs.append(physics._get_obs())
    np.testing.assert_array_equal(healthy, expected_healthy)
    np.testing.assert_array_equal(obs, np.array(expected_obs, np.float32))
    assert 0.1 < healthy[:3000].mean() < 0.9
    assert 0 < healthy[3000:].sum() < len(rows)

    # Gymnasium never sees what is not a number, as MuJoCo in C resets a simulation that diverges.
    broken = np.tile(upright.astype(np.float32), (2 * nq - 1, 1))
    np.fill_diagonal(broken[:, 1:], np.nan)
    assert not see(broken[:, :nq], broken[:, nq:])[0].any()


def test_the_model_is_the_one_that_gymnasium_loads(rig: Any) -> None:
    ours, theirs = mjx._physics(rig.env.walker.model_file).model, rig.reference.unwrapped.model
    assert rig.reference.unwrapped.fullpath.endswith(rig.env.walker.model_file)

    def compare(ours: Any, theirs: Any) -> Any:
        """How many numbers and arrays of both are the same."""
        count = 0
        for field in dataclasses.fields(ours):
            left, right = getattr(ours, field.name), getattr(theirs, field.name, None)
            if field.name in ("iterations", "ls_iterations"):
                assert left < right  # which the module explains
            elif isinstance(right, (int, float, np.ndarray)):
                np.testing.assert_allclose(np.ravel(left), np.ravel(right), 1e-6, 0, err_msg=field.name)
                count += 1
        return count

    assert compare(ours, theirs) > 250
    assert compare(ours.opt, theirs.opt) > 10


def test_the_first_use_may_be_within_a_trace() -> None:
    """What is cached then must not belong to that trace."""
    mjx._physics.cache_clear()
    env = MjxEnv(mjx.HOPPER)
    jax.eval_shape(env.reset, jax.random.key(0))
    leaves = jax.tree.leaves(mjx._physics("hopper.xml")[:2])
    assert len(leaves) > 100
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


def test_both_spellings_are_one_task() -> None:
    assert mjx.make("Walker2D-v3") == mjx.make("Walker2d-v3") != mjx.make("Hopper-v3")


@pytest.mark.parametrize("env_id", ["Hopper-v4", "hopper-v3", "Walker2d-v5", "CartPole-v1", ""])
def test_other_ids_are_refused(env_id: str) -> None:
    with pytest.raises(UnsupportedEnvironment, match=f"^MJX runs Hopper-v3, .*cannot run {env_id!r}$"):
        mjx.make(env_id)


def test_missing_packages_are_named_with_the_install_line() -> None:
    code = (
        "import sys\n"
        "from prune_rl.envs import mjx\n"
        "for module in ('mujoco.mjx', 'mujoco'):\n"
        "    sys.modules[module] = None\n"
        "    try: mjx.make('Walker2D-v3')\n"
        "    except mjx.UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        f"Walker2D-v3 on MJX needs a package that is missing ({module}); "
        "install it with: pip install 'prune_rl[mjx]'"
        for module in ("mujoco.mjx", "mujoco")
    ]
