from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from prune_rl.envs import mjx, registry
from prune_rl.envs import task as task_module
from prune_rl.envs.cartpole import CartPole
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_adapter import Adapter
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector
from prune_rl.spaces import Box, Discrete, Spec
from prune_rl.training.config import Config

from .reference_tasks import ENVPOOL_PLATFORM


def unit_box(size: Any) -> Any:
    return Box((-1.0,) * size, (1.0,) * size, (size,))


SPECS = {
    "CartPole-v1": (Spec(4, Discrete(2)), 500, 475.0),
    "LunarLander-v2": (Spec(8, Discrete(4)), 1000, 200.0),
    "Hopper-v3": (Spec(11, unit_box(3)), 1000, 3800.0),
    "Walker2d-v3": (Spec(17, unit_box(6)), 1000, None),
    "Walker2D-v3": (Spec(17, unit_box(6)), 1000, None),
    "Pendulum-v1": (Spec(3, Box((-2.0,), (2.0,), (1,))), 200, None),
    "Acrobot-v1": (Spec(6, Discrete(3)), 500, -100.0),
    "MountainCarContinuous-v0": (Spec(2, unit_box(1)), 999, 90.0),
    "BipedalWalker-v3": (Spec(24, unit_box(4)), 1600, 300.0),
}


@pytest.mark.parametrize("env_id", SPECS)
def test_known_ids_step_quietly(env_id: Any, capfd: pytest.CaptureFixture[str]) -> None:
    spec, time_limit, threshold = SPECS[env_id]
    before = dict(gymnasium.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = resolve_task(env_id)
        assert task.spec == task.adapter.spec == spec
        env = HostEnv(task, 2)
        assert env.spec == spec
        rng = np.random.default_rng(0)
        assert env.reset(0).shape == (2, spec.observation_size)
        for _ in range(50):
            if isinstance(spec.action, Discrete):
                action: np.ndarray = rng.integers(0, spec.action.n, 2)
            else:
                action = rng.uniform(-1, 1, (2, spec.action.size))
            obs, reward, terminated, truncated, next_obs = env.step(action)
            assert obs.shape == next_obs.shape == (2, spec.observation_size)
            assert reward.shape == terminated.shape == truncated.shape == (2,)
            assert np.isfinite(obs).all()
            assert np.isfinite(reward).all()
        env.close()
    assert (task.env_id, task.time_limit, task.reward_threshold) == (env_id, time_limit, threshold)
    assert "gymnasium" in task.backends
    assert gymnasium.registry == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("LunarLander-v2", "LunarLander-v3"), ("Hopper-v3", "Hopper-v4"), ("Walker2D-v3", "Walker2d-v4")],
)
def test_old_ids_run_what_their_note_says(ours: str, theirs: str) -> None:
    assert f"v{theirs[-1]} class" in resolve_task(ours).note
    env, reference = resolve_task(ours).make_gymnasium(), resolve_task(theirs).make_gymnasium()
    assert env.spec is not None
    assert env.spec.id == ours
    assert env.spec.max_episode_steps == 1000
    left, right = env.reset(seed=3)[0], reference.reset(seed=3)[0]
    env.action_space.seed(0)
    for _ in range(60):
        np.testing.assert_array_equal(left, right)
        action = env.action_space.sample()
        left, reward, *ends, _ = env.step(action)
        right, expected_reward, *expected_ends, _ = reference.step(action)
        assert (reward, ends) == (expected_reward, expected_ends)
        if any(ends):
            left, right = env.reset(seed=4)[0], reference.reset(seed=4)[0]
    env.close()
    reference.close()


@pytest.mark.parametrize("env_id", ["LunarLander-v2", "Hopper-v3", "Acrobot-v1"])
def test_a_time_limit_can_be_set(env_id: str) -> None:
    env = resolve_task(env_id).make_gymnasium(max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(2)] == [False, True]
    env.close()


def test_cartpole_is_the_same_through_both_backends() -> None:
    task = resolve_task("CartPole-v1")
    jax_env = task.jax_env()
    assert isinstance(jax_env, CartPole)
    env = task.make_gymnasium()
    assert Adapter.of(env, "CartPole-v1").spec == jax_env.spec == task.spec
    assert env.spec is not None
    assert env.spec.max_episode_steps == jax_env.time_limit
    assert env.spec.reward_threshold == task.reward_threshold
    env.close()


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("CartPole-v1", ("jax", "gymnasium", "envpool")),
        ("LunarLander-v2", ("envpool", "gymnasium")),
        ("Hopper-v3", ("envpool", "gymnasium", "jax")),
        ("Walker2d-v3", ("envpool", "gymnasium", "jax")),
        ("Walker2D-v3", ("envpool", "gymnasium", "jax")),
        ("Hopper-v4", ("gymnasium",)),
        ("LunarLander-v3", ("gymnasium",)),
        ("CartPole-v0", ("gymnasium",)),
        ("gymnasium.envs.classic_control:Acrobot-v1", ("gymnasium",)),
    ],
)
def test_backends_with_the_preferred_one_first(
    env_id: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = resolve_task(env_id)
    assert task.backends == expected
    without = next(backend for backend in expected if backend != "envpool")
    assert task.backend == (expected[0] if ENVPOOL_PLATFORM else without)
    for missing in ("envpool_platform", "envpool_installed"):
        with monkeypatch.context() as patch:
            patch.setattr(registry, missing, lambda: False)
            assert resolve_task(env_id).backend == without
    for backend in expected:
        assert resolve_task(env_id, backend).backend == backend


def test_mjx_is_the_default_on_a_gpu_from_a_number_of_seeds_that_is_not_known_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def on(platform: str) -> Callable[[], str]:
        return lambda: asked.append(platform) or platform  # type: ignore[func-returns-value]

    assert registry.MJX_FROM_SEEDS is None
    assert not registry.prefers_mjx("Hopper-v3", 1000, on("gpu"))
    monkeypatch.setattr(registry, "MJX_FROM_SEEDS", 8)
    for env_id in registry.MJX_IDS:
        assert registry.prefers_mjx(env_id, 8, on("gpu"))
        assert not registry.prefers_mjx(env_id, 7, on("gpu"))
        assert not registry.prefers_mjx(env_id, 8, on("cpu"))
        assert not registry.prefers_mjx(env_id, 8, on("tpu"))
    asked.clear()
    assert not registry.prefers_mjx("LunarLander-v2", 8, on("gpu"))
    assert not asked, "JAX is asked only where the answer depends on it"
    # On this machine's CPU, nothing changes; what the user says counts everywhere.
    assert resolve_task("Hopper-v3", seeds=8).backend == resolve_task("Hopper-v3").backend != "jax"
    monkeypatch.setattr(task_module, "_jax_platform", on("gpu"))
    assert resolve_task("Hopper-v3", seeds=8).backend == "jax"
    assert resolve_task("Hopper-v3", "gymnasium", seeds=8).backend == "gymnasium"
    assert resolve_task("Hopper-v3", kwargs=("gain=1",), seeds=8).backend == "gymnasium"
    assert Config(env="Hopper-v3", seeds=8).resolved().backend == "jax"
    assert Config(env="Hopper-v3", seeds=7).resolved().backend != "jax"


def test_the_walkers_in_jax_are_those_of_mjx() -> None:
    assert set(registry.MJX_IDS) == set(mjx.WALKERS)
    for env_id in registry.MJX_IDS:
        task = resolve_task(env_id, "jax")
        env = task.jax_env()
        assert env == mjx.make(env_id)
        assert env.spec == task.spec
        assert env.time_limit == task.time_limit


def test_looking_up_imports_no_engine() -> None:
    """Nor do the sizes of a walker need MJX, which takes seconds to import."""
    code = (
        "import sys\n"
        "from prune_rl.envs.registry import MJX_IDS\n"
        "from prune_rl.envs.vector import make_vector\n"
        "from prune_rl.envs.task import UnsupportedEnvironment, resolve_task\n"
        "for env_id in ['CartPole-v1', 'LunarLander-v2', *MJX_IDS]:\n"
        "    for backend in resolve_task(env_id).backends: resolve_task(env_id, backend).backend_note('cpu')\n"
        "assert not {'mujoco', 'mujoco.mjx', 'envpool', 'Box2D'} & set(sys.modules)\n"
        "sys.modules.update({'mujoco.mjx': None, 'envpool': None})\n"
        "print(resolve_task('Hopper-v3').spec.observation_size)\n"
        "try: resolve_task('Hopper-v3', 'jax').jax_env()\n"
        "except UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, message = result.stdout.splitlines()
    assert size == "11"
    assert message.endswith("install it with: pip install 'prune_rl[mjx]'")


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("CartPole-v9", ["unknown environment 'CartPole-v9'", "'CartPole-v1'"]),
        ("Cartpole-v1", ["unknown environment 'Cartpole-v1'", "mean 'CartPole-v1'"]),
        ("hopper-v3", ["mean 'Hopper-v3'"]),
        ("LunarLnader-v2", ["mean 'LunarLander-v2' or 'LunarLander-v3'?"]),
        ("Walker2D-v4", ["mean 'Walker2D-v3'?"]),
        ("CartPole", ["'CartPole-v1'"]),
        ("Hopper-v2", ["no longer has 'Hopper-v2'", "'Hopper-v3'"]),
        ("Ant-v3", ["no longer has 'Ant-v3'; use 'Ant-v4' or 'Ant-v5'"]),
        ("CarRacing-v2", ["no longer has 'CarRacing-v2'; use 'CarRacing-v3'"]),
        ("no such thing", ["unknown environment 'no such thing'", "'package:Name-v0'"]),
        ("", ["unknown environment ''"]),
        ("no_such_module:Thing-v0", ["cannot import 'no_such_module'"]),
        (".relative:Thing-v0", ["cannot import '.relative'"]),
        ("json:Thing-v0", ["unknown environment 'Thing-v0'"]),
    ],
)
@pytest.mark.parametrize("function", [registry.lookup, registry.gymnasium_spec, resolve_task])
def test_bad_ids_get_one_sentence(env_id: str, parts: Any, function: Any) -> None:
    with pytest.raises(UnsupportedEnvironment) as caught:
        function(env_id)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("env_id", "part"),
    [("CarRacing-v3", "image observations"), ("FrozenLake-v1", "Discrete")],
)
def test_unsupported_spaces_are_found_before_training(env_id: str, part: str) -> None:
    for use in (lambda task: task.spec, lambda task: task.check(), lambda task: make_vector(task, 1)):
        with pytest.raises(UnsupportedEnvironment, match=part):
            use(resolve_task(env_id))


def test_an_id_may_name_the_module_that_registers_it() -> None:
    task = resolve_task("gymnasium.envs.classic_control:Acrobot-v1")
    env = task.make_gymnasium()
    assert task.time_limit == 500
    env.close()


@pytest.mark.parametrize(
    ("module", "env_id", "extra"), [("Box2D", "LunarLander-v2", "box2d"), ("mujoco", "Hopper-v3", "mujoco")]
)
def test_missing_extras_are_named_with_the_install_line(module: str, env_id: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from prune_rl.envs.vector import make_vector\n"
        "from prune_rl.envs.task import UnsupportedEnvironment, resolve_task\n"
        f"task = resolve_task({env_id!r})\n"
        "for use in (lambda: task.spec, task.check, task.make_gymnasium):\n"
        "    try: use()\n"
        "    except UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == 3 * (
        f"{env_id} needs a package that is missing; install it with: pip install 'prune_rl[{extra}]'\n"
    )
