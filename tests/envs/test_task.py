from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from prune_rl.envs.envpool import EnvPoolEnv
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_vector import HostEnv
from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector

from .reference_tasks import ENVPOOL_PLATFORM, NO_ENVPOOL

MUJOCO_IDS = ["Hopper-v3", "Walker2d-v3", "Walker2D-v3"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Hopper-v3", "Pendulum-v1"])
def test_gymnasium_is_stepped_by_host_env(env_id: str) -> None:
    task = resolve_task(env_id, "gymnasium")
    env = make_vector(task, 3)
    assert isinstance(env, HostEnv)
    assert env.spec == task.spec
    reference = HostEnv(resolve_task(env_id), 3)
    np.testing.assert_array_equal(env.reset(4), reference.reset(4))
    env.close()
    reference.close()


@pytest.mark.skipif(not ENVPOOL_PLATFORM, reason=NO_ENVPOOL)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Walker2D-v3"])
def test_envpool_is_stepped_by_envpool_env(env_id: str) -> None:
    task = resolve_task(env_id, "envpool")
    env = make_vector(task, 3)
    assert isinstance(env, EnvPoolEnv)
    assert env.spec == task.spec
    reference = EnvPoolEnv(resolve_task(env_id), 3)
    np.testing.assert_array_equal(env.reset(4), reference.reset(4))
    env.close()
    reference.close()


@pytest.mark.parametrize(
    ("env_id", "backend", "offered"),
    [
        ("CartPole-v1", "mjx", "jax, gymnasium, envpool"),
        ("Hopper-v3", "Auto", "envpool, gymnasium, jax"),
        ("Pendulum-v1", "envpool", "jax, gymnasium"),
        ("Acrobot-v1", "", "gymnasium"),
    ],
)
def test_other_backends_are_refused(env_id: str, backend: str, offered: str) -> None:
    with pytest.raises(ValueError, match=f"^{env_id} has no backend {backend!r}; choose one of {offered}$"):
        resolve_task(env_id, backend)


def test_a_backend_steps_on_the_device_or_on_the_host() -> None:
    with pytest.raises(ValueError, match=r"backend 'jax' steps CartPole-v1 on the device: call jax_env\(\)"):
        make_vector(resolve_task("CartPole-v1"), 2)
    for backend in ("gymnasium", "envpool"):
        with pytest.raises(
            ValueError, match=rf"backend '{backend}' steps CartPole-v1 on the host: call make_vec"
        ):
            resolve_task("CartPole-v1", backend).jax_env()


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_bad_arguments_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_vector(resolve_task("CartPole-v1", backend), 0)
    with pytest.raises(UnsupportedEnvironment, match="mean 'CartPole-v1'"):
        resolve_task("Cartpole-v1", backend)


def test_one_environment_is_made_to_read_the_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = gymnasium.make

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(args)
        return make(*args, **kwargs)

    monkeypatch.setattr(gymnasium, "make", counted)
    task = resolve_task("Acrobot-v1")
    assert made == []
    task.check()
    assert task.spec.observation_size == 6
    assert len(made) == 1
    make_vector(task, 3).close()
    assert len(made) == 1 + 3


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Hopper-v3"])
def test_a_missing_envpool_is_named_with_the_install_line(env_id: str) -> None:
    code = (
        "import sys; sys.modules['envpool'] = None\n"
        "from prune_rl.envs.vector import make_vector\n"
        "from prune_rl.envs.task import UnsupportedEnvironment, resolve_task\n"
        f"task = resolve_task({env_id!r}, 'envpool')\n"
        "for use in (task.check, lambda: make_vector(task, 2)):\n"
        "    try: use()\n"
        "    except UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line, again = result.stdout.splitlines()
    assert line == again
    assert line.startswith(f"{env_id} on EnvPool needs a package that is missing (")
    assert line.endswith("install it with: pip install 'prune_rl[envpool]'")


@pytest.mark.parametrize("env_id", MUJOCO_IDS)
def test_note_on_mjx(env_id: Any) -> None:
    task = resolve_task(env_id, "jax")
    note = task.backend_note("cpu")
    assert "order of magnitude slower" in note
    for backend in ("gymnasium", "envpool"):
        assert f"--backend {backend}" in note
        assert backend in task.backends
    assert task.backend_note("gpu") == task.backend_note("tpu") == ""


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_note_on_envpool(platform: str) -> None:
    assert "in distribution" in resolve_task("LunarLander-v2", "envpool").backend_note(platform)
    for env_id in MUJOCO_IDS:
        assert "tolerance" in resolve_task(env_id, "envpool").backend_note(platform)


@pytest.mark.skipif(not ENVPOOL_PLATFORM, reason=NO_ENVPOOL)
def test_note_where_envpool_is_not_installed() -> None:
    """Only where the choice was left open, and where EnvPool has the environment and is preferred."""
    code = (
        "import sys\n"
        "sys.modules['envpool'] = None\n"
        "from prune_rl.envs.task import resolve_task\n"
        "for env_id in ['LunarLander-v2', 'Hopper-v3', 'Acrobot-v1', 'CartPole-v1']:\n"
        "    for backend in ['auto', 'gymnasium']:\n"
        "        task = resolve_task(env_id, backend)\n"
        "        print(env_id, backend, task.backend, task.backend_note('cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    note = (
        "EnvPool, which is not installed, steps this environment faster; install it with: "
        "pip install 'prune_rl[envpool]'"
    )
    assert [line.strip() for line in done.stdout.splitlines()] == [
        f"LunarLander-v2 auto gymnasium {note}",
        "LunarLander-v2 gymnasium gymnasium",
        f"Hopper-v3 auto gymnasium {note}",
        "Hopper-v3 gymnasium gymnasium",
        "Acrobot-v1 auto gymnasium",
        "Acrobot-v1 gymnasium gymnasium",
        "CartPole-v1 auto jax",
        "CartPole-v1 gymnasium gymnasium",
    ]


def test_most_choices_need_no_note() -> None:
    for platform in ("cpu", "gpu"):
        for env_id in ("CartPole-v1", "LunarLander-v2", "Hopper-v3", "Pendulum-v1"):
            assert resolve_task(env_id, "gymnasium").backend_note(platform) == ""
        assert resolve_task("CartPole-v1", "jax").backend_note(platform) == ""
        assert resolve_task("CartPole-v1", "envpool").backend_note(platform) == ""


def test_notes_are_one_line_without_a_full_stop() -> None:
    for env_id in ("CartPole-v1", "LunarLander-v2", *MUJOCO_IDS):
        for backend in resolve_task(env_id).backends:
            note = resolve_task(env_id, backend).backend_note("cpu")
            assert "\n" not in note
            assert not note.endswith(".")
