from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from prune_rl.envs import make as backends
from prune_rl.envs import registry
from prune_rl.envs.envpool import EnvPoolEnv
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.gymnasium_vector import HostEnv

MUJOCO_IDS = ["Hopper-v3", "Walker2d-v3", "Walker2D-v3"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Hopper-v3", "Pendulum-v1"])
def test_gymnasium_is_stepped_by_host_env(env_id):
    env = backends.make_host(env_id, "gymnasium", 3)
    assert isinstance(env, HostEnv)
    assert env.spec == registry.spec_of(env_id)
    reference = HostEnv(env_id, 3)
    np.testing.assert_array_equal(env.reset(4), reference.reset(4))
    env.close()
    reference.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Walker2D-v3"])
def test_envpool_is_stepped_by_envpool_env(env_id):
    pytest.importorskip("envpool", reason="EnvPool is not installed (pip install 'prune_rl[envpool]')")
    env = backends.make_host(env_id, "envpool", 3)
    assert isinstance(env, EnvPoolEnv)
    assert env.spec == registry.spec_of(env_id)
    reference = EnvPoolEnv(env_id, 3)
    np.testing.assert_array_equal(env.reset(4), reference.reset(4))
    env.close()
    reference.close()


@pytest.mark.parametrize(
    ("env_id", "backend", "offered"),
    [
        ("CartPole-v1", "jax", "gymnasium, envpool"),
        ("Hopper-v3", "auto", "gymnasium, envpool"),
        ("Pendulum-v1", "envpool", "gymnasium"),
        ("Pendulum-v1", "", "gymnasium"),
    ],
)
def test_other_backends_are_refused(env_id, backend, offered):
    with pytest.raises(ValueError, match=f"^{env_id} .*by {backend!r}, only by: {offered}$"):
        backends.make_host(env_id, backend, 2)


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_bad_arguments_are_refused(backend):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        backends.make_host("CartPole-v1", backend, 0)
    with pytest.raises(UnsupportedEnvironment, match="mean 'CartPole-v1'"):
        backends.make_host("Cartpole-v1", backend, 1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v2", "Hopper-v3"])
def test_a_missing_envpool_is_named_with_the_install_line(env_id):
    code = (
        "import sys; sys.modules['envpool'] = None\n"
        "from prune_rl.envs import backends, registry\n"
        f"assert 'envpool' in registry.resolve({env_id!r}).backends\n"
        f"try: backends.make_host({env_id!r}, 'envpool', 2)\n"
        "except registry.UnsupportedEnvironment as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{env_id} on EnvPool needs a package that is missing (")
    assert line.endswith("install it with: pip install 'prune_rl[envpool]'")


@pytest.mark.parametrize("env_id", MUJOCO_IDS)
def test_note_on_mjx(env_id):
    note = backends.note(env_id, "jax", "cpu")
    assert "order of magnitude slower" in note
    for backend in ("gymnasium", "envpool"):
        assert f"--backend {backend}" in note
        assert backend in registry.backends(env_id)
    assert backends.note(env_id, "jax", "gpu") == backends.note(env_id, "jax", "tpu") == ""


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_note_on_envpool(platform):
    assert "in distribution" in backends.note("LunarLander-v2", "envpool", platform)
    for env_id in MUJOCO_IDS:
        assert "tolerance" in backends.note(env_id, "envpool", platform)


def test_most_choices_need_no_note():
    for platform in ("cpu", "gpu"):
        for env_id in ("CartPole-v1", "LunarLander-v2", "Hopper-v3", "Pendulum-v1"):
            assert backends.note(env_id, "gymnasium", platform) == ""
        assert backends.note("CartPole-v1", "jax", platform) == ""
        assert backends.note("CartPole-v1", "envpool", platform) == ""


def test_notes_are_one_line_without_a_full_stop():
    for env_id in ("CartPole-v1", "LunarLander-v2", *MUJOCO_IDS):
        for backend in registry.backends(env_id):
            note = backends.note(env_id, backend, "cpu")
            assert "\n" not in note
            assert not note.endswith(".")
