"""What a policy file says of actions and observations: best and sampled actions lie in the environment's space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from prune_rl.envs.gymnasium_adapter import Adapter, check_action_space
from prune_rl.export import files
from prune_rl.export.actions import Spread
from prune_rl.export.activations import ACTIVATIONS
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.spaces import Box, Discrete

SPACES: dict[str, Any] = {
    "started": spaces.Discrete(3, start=10),
    "negative": spaces.Discrete(2, start=-1),
    "integers": spaces.Box(-3, 200, (2, 2), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "large": spaces.Box(2**53 + 1, 2**62 + 3, (2,), np.int64),
    "unsigned": spaces.Box(0, 2**64 - 1, (2,), np.uint64),
    "doubles": spaces.Box(-0.1, 0.1, (2,), np.float64),
    "halves": spaces.Box(-0.1, 0.1, (2,), np.float16),
    "endless": spaces.Box(-np.inf, np.inf, (2,), np.float16),
    "half-open": spaces.Box(np.array([0.3, -np.inf]), np.array([np.inf, 0.7]), dtype=np.float64),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
}


def constant(space: Any, outputs: Any, **kwargs: Any) -> Policy:
    """A policy of one-dimensional observations that always puts out the same."""
    action = check_action_space(space, "it")
    bias = np.resize(np.asarray(outputs, np.float32), action.num_outputs)
    return Policy(((np.zeros((1, action.num_outputs), np.float32), bias),), "tanh", action, **kwargs)


@pytest.mark.parametrize("name", SPACES)
@given(outputs=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_every_action_is_in_the_space(name: str, outputs: Any) -> None:
    space = SPACES[name]
    spread = None if isinstance(space, spaces.Discrete) else Spread(np.full(space.shape, 3.0).ravel())
    policy = constant(space, outputs, spread=spread)
    for action in (policy([0.0]), policy.sample([0.0], np.random.default_rng(0))):
        # Gymnasium counts scalars of NumPy as arrays only if they are arrays.
        assert space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)
    assert space.contains(np.asarray(policy([[0.0]])[0]))


def test_integers_are_rounded_to_the_nearest() -> None:
    policy = constant(SPACES["integers"], [1.6, -2.4, -7.0, 300.0])
    np.testing.assert_array_equal(policy([0.0]), [[2, -2], [-3, 200]])


@pytest.mark.parametrize("name", SPACES)
def test_the_file_holds_the_action_space(tmp_path: Path, name: str) -> None:
    policy = constant(SPACES[name], [0.4, 3.0, -1.0], observation_shape=(1, 1))
    save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    assert loaded.action == policy.action
    assert loaded.observation_shape == (1, 1)
    np.testing.assert_array_equal(loaded([0.0]), policy([0.0]), strict=True)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (3, 3), ()])
def test_an_observation_of_the_environment_s_shape_is_one_observation(shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    kernel: Any = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    policy = Policy(
        ((kernel, np.zeros(2, np.float32)),),
        "tanh",
        Box((-9.0,) * 2, (9.0,) * 2, (2,)),
        observation_shape=shape,
    )
    obs = np.random.default_rng(1).normal(size=(4, 5, *shape)).astype(np.float32)
    one = policy(obs[0, 0])
    assert one.shape == (2,)
    np.testing.assert_array_equal(policy(obs[0, 0].ravel()) if shape else one, one)
    np.testing.assert_array_equal(policy(obs)[0, 0], one)
    np.testing.assert_array_equal(policy(obs[:1]), policy(obs)[:1])
    np.testing.assert_allclose(jax.jit(policy.as_jax())(obs), policy(obs), rtol=1e-5, atol=1e-6)
    if shape:  # else [4, 5, 1] is a batch of another shape
        np.testing.assert_array_equal(policy(obs.reshape(4, 5, size)), policy(obs))
        with pytest.raises(ValueError, match="observations of"):
            policy(np.zeros((size + 1,)))


def test_a_wrong_observation_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"observation_shape is \(2, 2\), but an observation has 1 elements"):
        constant(SPACES["scalar"], [0.0], observation_shape=(2, 2))


class Recorder(gymnasium.Env[Any, Any]):
    """Two steps, and a note of each action; refuses actions outside of its space, as it got them."""

    def __init__(self, action_space: Any) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1, 3))
        self.action_space = action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1.0, 1.0, (1, 3)).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        obs = self.np_random.uniform(-1.0, 1.0, (1, 3)).astype(np.float32)
        return obs, float(np.sum(action)), self.steps == 2, False, {}


def recorded(name: str) -> Any:
    env_id = f"PruneRlRecorder{name.title().replace('-', '')}-v0"
    if env_id not in gymnasium.registry:
        space = SPACES[name]
        gymnasium.register(env_id, entry_point=lambda **_: Recorder(space))
    return env_id


@pytest.mark.parametrize("algo", ["ppo", "sac"])
@pytest.mark.parametrize("name", ["started", "integers", "doubles", "scalar"])
def test_evaluation_plays_exactly_the_file(name: str, algo: str, tmp_path: Path) -> None:
    """The exported policy of a learner, loaded and stepped by hand as a user would, returns what was evaluated."""
    from prune_rl.envs.task import resolve_task
    from prune_rl.evaluation.evaluate import episode_seed, evaluate_policy
    from prune_rl.learners.registry import LEARNERS
    from prune_rl.training.config import Config
    from prune_rl.training.policy_export import compact_policy

    env_id = recorded(name)
    task = resolve_task(env_id)
    kind = LEARNERS[algo].Config
    config = Config(env=env_id, algo=algo, learner=kind(hidden=(8,), num_envs=1, prune=None), method="dense")
    state = LEARNERS[algo].init(jax.random.key(0), config.learner, task.spec)
    params = state.params
    params["actor"]["head"]["kernel"] *= 300.0
    save_policy(tmp_path, compact_policy(state, config, task.spec, 0))
    policy = load_policy(tmp_path)
    evaluation = evaluate_policy(policy, task, episodes=3, seed=0, num_envs=2)
    for episode, expected in enumerate(evaluation.returns):
        env = Recorder(SPACES[name])
        obs, _ = env.reset(seed=episode_seed(0, episode))
        total, over = 0.0, False
        while not over:
            action = policy(obs)
            obs, reward, over, _, _ = env.step(action)
            total += reward
        assert total == expected
        assert env.action_space.contains(policy.sample(obs, np.random.default_rng(0)))
    if name != "started":
        assert len(set(evaluation.returns)) > 1, "the policy does not act by its observations"


def test_a_file_of_another_action_space_is_not_played(tmp_path: Path) -> None:
    from prune_rl.evaluation.evaluate import evaluate_policy

    layer = np.zeros((3, 3), np.float32), np.zeros(3, np.float32)
    foreign = Policy((layer,), "tanh", Discrete(3), observation_shape=(1, 3))
    with pytest.raises(
        ValueError, match=r"the policy's actions are not those of PruneRlRecorderStarted-v0: 0 is"
    ):
        evaluate_policy(foreign, recorded("started"), episodes=1, seed=0)


# --- files of version 1


def test_files_of_version_1_load_and_act_as_they_did(tmp_path: Path) -> None:
    box = Box((-1.0, -2.0), (1.0, 2.0), (2,))
    policy = Policy(((np.eye(2, dtype=np.float32), np.array([0.5, 9.0], np.float32)),), "tanh", box)
    save_policy(tmp_path, policy)
    path = tmp_path / "policy.json"
    document = json.loads(path.read_text()) | {"version": 1}
    for key in ("observation_shape", "temperature", "spread"):
        del document[key]
    del document["action"]["dtype"]
    document["sha256"] = files._checksum(document)
    path.write_text(json.dumps(document))
    loaded = load_policy(tmp_path)
    np.testing.assert_array_equal(loaded([0.25, 0.0]), np.array([0.75, 2.0], np.float32), strict=True)
    assert loaded(np.zeros((1, 2))).shape == (1, 2)
    with pytest.raises(
        ValueError, match="no spread to sample actions with: its file was written by an earlier"
    ):
        loaded.sample([0.0, 0.0])


def test_an_old_file_of_a_counted_space_is_played_as_it_was_meant() -> None:
    """It acts 0 … n − 1, whatever the environment's start is."""
    from prune_rl.evaluation.evaluate import native_actions

    layer = np.zeros((3, 3), np.float32), np.array([0.0, 1.0, 0.0], np.float32)
    old, space = Policy((layer,), "tanh", Discrete(3)), SPACES["started"]
    env = Recorder(space)
    adapter = Adapter.of(env, "it")
    np.testing.assert_array_equal(native_actions(old, np.zeros((2, 3), np.float32), adapter, "it"), [11, 11])


# --- samples


def random_policy(action: Any, squash: bool = False, spread: Any = None, **kwargs: Any) -> Policy:
    rng = np.random.default_rng(3)
    n = action.num_outputs
    layers = tuple(
        (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in ((4, 6), (6, n))
    )
    return Policy(layers, "tanh", action, squash=squash, spread=spread, **kwargs)


def test_discrete_samples_have_the_frequencies_of_softmax() -> None:
    policy = random_policy(Discrete(3, start=5), temperature=2.0)
    obs = np.array([0.1, -0.2, 0.3, 0.4], np.float32)
    many = policy.sample(np.tile(obs, (20_000, 1)), np.random.default_rng(0))
    for heat, drawn in (
        (2.0, many),
        (0.5, policy.sample(np.tile(obs, (20_000, 1)), np.random.default_rng(1), temperature=0.5)),
    ):
        logits = policy.outputs(obs).astype(np.float64) / heat
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose([(drawn == 5 + i).mean() for i in range(3)], expected, atol=0.015)
    cold = policy.sample(np.tile(obs, (50, 1)), np.random.default_rng(0), temperature=0.0)
    assert set(cold) == {policy(obs)}


def test_gaussian_samples_have_the_spread_of_the_file(tmp_path: Path) -> None:
    box = Box((-50.0,) * 2, (50.0,) * 2, (2,))
    kernel = np.random.default_rng(5).normal(size=(6, 2)).astype(np.float32)
    skip = np.random.default_rng(6).normal(size=(4, 2)).astype(np.float32)
    obs = np.array([0.1, -0.2, 0.3, 0.4], np.float32)
    bias = np.array([0.5, -1.0], np.float32)
    for spread in (Spread(bias), Spread(bias, kernel, skip, -2.0, 1.0)):
        save_policy(tmp_path, random_policy(box, spread=spread))
        policy = load_policy(tmp_path)
        drawn = policy.sample(np.tile(obs, (20_000, 1)), np.random.default_rng(0))
        hidden = np.tanh(obs @ policy.layers[0][0] + policy.layers[0][1])
        log_std = spread.bias + (0.0 if spread.kernel is None else hidden @ kernel + obs @ skip)
        expected = np.exp(np.clip(log_std, spread.low, spread.high))
        np.testing.assert_allclose(drawn.std(axis=0), expected, rtol=0.03)
        np.testing.assert_allclose(drawn.mean(axis=0), policy(obs), atol=0.05 * expected.max())
        one = [policy.sample(obs, np.random.default_rng(7)) for _ in range(2)]
        np.testing.assert_array_equal(*one)
        assert one[0].shape == (2,)


def test_what_cannot_be_sampled_says_so() -> None:
    policy = random_policy(Box((-1.0,), (1.0,), (1,)))
    with pytest.raises(ValueError, match="has no spread"):
        policy.sample(np.zeros(4))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be"):
            random_policy(Discrete(2)).sample(np.zeros(4), temperature=bad)
    for bad in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="temperature must be"):
            random_policy(Discrete(2), temperature=bad)
    with pytest.raises(ValueError, match="a spread is for Box actions"):
        random_policy(Discrete(2), spread=Spread(np.zeros(2, np.float32)))
    with pytest.raises(ValueError, match=r"the spread's bias has shape \(3,\), not \(2,\)"):
        random_policy(Box((0.0,) * 2, (1.0,) * 2, (2,)), spread=Spread(np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    ("env", "algo"),
    [("CartPole-v1", "ppo"), ("Pendulum-v1", "ppo"), ("CartPole-v1", "sac"), ("Pendulum-v1", "sac")],
)
@pytest.mark.parametrize("skip", [False, True])
def test_samples_are_those_of_the_learner(env: str, algo: str, skip: bool) -> None:
    """Mean and standard deviation of many actions for one observation, against the learner's own `act`."""
    from prune_rl.envs.task import resolve_task
    from prune_rl.learners.registry import LEARNERS
    from prune_rl.training.config import Config
    from prune_rl.training.policy_export import compact_policy

    learner, task = LEARNERS[algo], resolve_task(env, "gymnasium")
    changes: dict[str, Any] = {"learning_starts": 0} if algo == "sac" else {}
    hyper = learner.Config(hidden=(6,), num_envs=1, skip=skip, prune=None, **changes)
    config = Config(env=env, algo=algo, method="dense", learner=hyper)
    state = learner.init(jax.random.key(1), hyper, task.spec)
    state.params["actor"]["head"]["kernel"] *= 60.0
    if skip:
        state.params["actor"]["skip"]["kernel"] += 0.3
    if "log_std" in state.params["actor"]:
        state.params["actor"]["log_std"] += np.float32(-1.0)
    policy = compact_policy(state, config, task.spec, 0)
    obs = np.tile(np.linspace(-0.5, 0.5, task.spec.observation_size, dtype=np.float32), (20_000, 1))
    noise = learner.action_noise(jax.random.key(2), (len(obs),), task.spec)
    theirs = np.clip(learner.act(state, jnp.asarray(obs), noise, hyper), -2.0, 2.0)
    ours = policy.sample(obs, np.random.default_rng(0))
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.05)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.05)


# --- in JAX


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("squash", [False, True])
def test_as_jax_is_the_same_function(activation: str, squash: bool) -> None:
    rng = np.random.default_rng(0)
    box = Box((-1.0, 0.0), (1.0, 3.0), (2,))
    layers: Any = (
        (rng.normal(size=(4, 6)), rng.normal(size=6)),
        (rng.normal(size=(6, 2)), rng.normal(size=2)),
    )
    statistics: Any = {"obs_mean": np.ones(4), "obs_std": np.full(4, 2.0), "skip": rng.normal(size=(4, 2))}
    policy = Policy(layers, activation, box, obs_clip=1.5, squash=squash, **statistics)
    act = jax.jit(policy.as_jax())
    obs = rng.normal(size=(30, 4)).astype(np.float32)
    np.testing.assert_allclose(act(obs), policy(obs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(act)(obs), policy(obs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(act(obs[0]), policy(obs[0]), rtol=1e-5, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: act(x).sum())(obs[0])).all()


@pytest.mark.parametrize("name", ["started", "integers", "bytes", "doubles"])
def test_as_jax_has_the_action_s_start_and_rounding(name: str) -> None:
    policy = constant(SPACES[name], [1.6, -2.4, -7.0, 300.0])
    action = jax.jit(policy.as_jax())(jnp.zeros(1))
    np.testing.assert_allclose(
        np.asarray(action, np.float64), np.asarray(policy([0.0]), np.float64), atol=1e-6
    )
    assert action.dtype.kind == np.asarray(policy([0.0])).dtype.kind
