"""The table of environment ids: what runs each of them, and the error for an id that cannot be used.

Gymnasium's registry is read, never written. Gymnasium itself is imported on first use.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_rl.envs.errors import EnvironmentCrashed, UnsupportedEnvironment

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from prune_rl.envs.autoreset import JaxEnv


@dataclasses.dataclass(frozen=True)
class EnvInfo:
    """What the tables say about an id; no environment is made.

    Attributes:
        env_id: the id as given.
        backends: of "jax", "gymnasium" and "envpool" those that can run it, the preferred one first; see
            ``default_backend``.
        note: one line on what it runs on, where that is not what the id says; else "".
        reward_threshold: return from which the environment counts as solved, if its authors named one.
        time_limit: steps after which an episode is truncated, if there is a limit.
    """

    env_id: str
    backends: tuple[str, ...]
    note: str
    reward_threshold: float | None
    time_limit: int | None


@dataclasses.dataclass(frozen=True)
class _Entry:
    """How an id that Gymnasium refuses is made from a class that it ships."""

    entry_point: str
    time_limit: int
    reward_threshold: float | None
    note: str


_WALKER = _Entry(
    "gymnasium.envs.mujoco.walker2d_v4:Walker2dEnv",
    1000,
    None,
    "runs Gymnasium's v4 class: v3's task on current MuJoCo bindings (v5 changes reward and foot friction)",
)
_TABLE: dict[str, _Entry] = {
    "LunarLander-v2": _Entry(
        "gymnasium.envs.box2d.lunar_lander:LunarLander",
        1000,
        200.0,
        "runs Gymnasium's v3 class without wind, where v3 and v2 are the same task",
    ),
    "Hopper-v3": _Entry(
        "gymnasium.envs.mujoco.hopper_v4:HopperEnv",
        1000,
        3800.0,
        "runs Gymnasium's v4 class: v3's task on current MuJoCo bindings (v5 changes the reward)",
    ),
    "Walker2d-v3": _WALKER,
    "Walker2D-v3": dataclasses.replace(_WALKER, note=f"is Walker2d-v3 and {_WALKER.note}"),
}

# Environments in pure JAX: where they are, their reward thresholds and time limits. Looking one up imports neither JAX
# nor Gymnasium.
_JAX: dict[str, tuple[str, float | None, int]] = {
    "CartPole-v1": ("prune_rl.envs.cartpole:CartPole", 475.0, 500),
    "Pendulum-v1": ("prune_rl.envs.pendulum:Pendulum", None, 200),
}

# Those whose backend "jax" is `prune_rl.envs.mjx`.
MJX_IDS = ("Hopper-v3", "Walker2d-v3", "Walker2D-v3")

# Seeds of a run from which MJX is the default of MJX_IDS on a GPU; None: it is the default nowhere. That number is not
# measured on a GPU yet: section mjx of `python -m prune_rl.bench_device` prints it, and this is the line to change.
MJX_FROM_SEEDS: int | None = None

# What can run an id that not only Gymnasium can run. Whether a backend's package is installed shows when it is used.
_BACKENDS: dict[str, tuple[str, ...]] = {
    "CartPole-v1": ("jax", "gymnasium", "envpool"),
    "Pendulum-v1": ("jax", "gymnasium"),
    "LunarLander-v2": ("envpool", "gymnasium"),
    **dict.fromkeys(MJX_IDS, ("envpool", "gymnasium", "jax")),
}

_EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}


def lookup(env_id: str) -> EnvInfo:
    """Look an id up without making the environment.

    An id is known if it is in the table of this module or, exactly as written, in Gymnasium's registry; the
    form ``module:Name-v0`` imports the module first, so that it can register its environments.

    Raises:
        UnsupportedEnvironment: unknown (with near matches), withdrawn (with the replacement), or its module
            is missing.
    """
    if env_id in _JAX:
        _, threshold, limit = _JAX[env_id]
        return EnvInfo(env_id, _BACKENDS[env_id], "", threshold, limit)
    spec = gymnasium_spec(env_id)
    note = _TABLE[env_id].note if env_id in _TABLE else ""
    threshold = None if spec.reward_threshold is None else float(spec.reward_threshold)
    backends = _BACKENDS.get(env_id, ("gymnasium",))
    return EnvInfo(env_id, backends, note, threshold, spec.max_episode_steps)


def default_backend(backends: tuple[str, ...]) -> str:
    """The first of ``backends`` that can be used here: EnvPool only where it is installed, on Linux on x86-64."""
    return next(
        backend
        for backend in backends
        if backend != "envpool" or (envpool_platform() and envpool_installed())
    )


def prefers_mjx(env_id: str, seeds: int, platform: Callable[[], str]) -> bool:
    """Whether MJX is the default backend for a run of so many seeds, see ``MJX_FROM_SEEDS``.

    Args:
        env_id: any id.
        seeds: of the run.
        platform: returns where JAX computes: "cpu", "gpu" or "tpu". It is called only where the answer depends on it.
    """
    if env_id not in MJX_IDS or MJX_FROM_SEEDS is None or seeds < MJX_FROM_SEEDS:
        return False
    return mjx_installed() and platform() == "gpu"


def mjx_installed() -> bool:
    """Whether MuJoCo and MJX are there; MJX is not imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("mujoco", "mujoco.mjx"))


def envpool_platform() -> bool:
    """Whether EnvPool has wheels for this platform that the tests cover."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def envpool_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("envpool") is not None


@functools.cache
def native_env(env_id: str) -> JaxEnv[Any] | None:
    """The environment of that id written in pure JAX, or None; MJX's environments are not among them."""
    if env_id not in _JAX:
        return None
    path, _, limit = _JAX[env_id]
    module, _, name = path.partition(":")
    env: JaxEnv[Any] = getattr(importlib.import_module(module), name)(time_limit=limit)
    return env


def import_gymnasium() -> Any:
    """The module; raises ``UnsupportedEnvironment`` with the install line where it is missing."""
    try:
        return importlib.import_module("gymnasium")
    except ModuleNotFoundError as error:
        raise UnsupportedEnvironment(
            "Gymnasium is not installed; install it with: pip install gymnasium"
        ) from error


def import_envpool(env_id: str) -> Any:
    """The package; raises ``UnsupportedEnvironment`` with the install line where it is missing."""
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        raise UnsupportedEnvironment(
            f"{env_id} on EnvPool needs a package that is missing ({error}); "
            "install it with: pip install 'prune_rl[envpool]'"
        ) from error


def gymnasium_spec(env_id: str) -> EnvSpec:
    """The argument of ``gymnasium.make``, which given this instead of an id does not warn about old versions.

    Raises:
        UnsupportedEnvironment: as ``lookup``.
    """
    registration = import_gymnasium().envs.registration
    if env_id in _TABLE:
        entry = _TABLE[env_id]
        spec: EnvSpec = registration.EnvSpec(
            id=env_id,
            entry_point=entry.entry_point,
            max_episode_steps=entry.time_limit,
            reward_threshold=entry.reward_threshold,
        )
        return spec
    module, _, name = env_id.rpartition(":")
    if module:
        # As `python -m` does, whatever command this is: the user's module may lie in the working directory.
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(module)
        except (ImportError, TypeError) as error:  # TypeError: a relative name such as ".module"
            raise UnsupportedEnvironment(
                f"cannot import {module!r} for environment {env_id!r}: {error}"
            ) from error
        except (Exception, SystemExit) as error:
            raise EnvironmentCrashed(
                f"importing {module!r} for environment {env_id!r} raised {type(error).__name__}: {error}"
            ) from error
    known: dict[str, EnvSpec] = {
        key: value for key, value in registration.registry.items() if not _is_withdrawn(value)
    }
    if name in known:
        return known[name]
    raise UnsupportedEnvironment(_unknown(name, {*known, *_TABLE}))


def _is_withdrawn(spec: EnvSpec) -> bool:
    """Gymnasium keeps some old ids whose entry point is a function that only raises."""
    return callable(spec.entry_point) and getattr(spec.entry_point, "__module__", "") == "gymnasium.envs"


def _unknown(env_id: str, known: set[str]) -> str:
    """One sentence that names the replacement of an old version, or what the id may have meant."""
    base, version = _split_version(env_id)
    versions = {
        _split_version(other)[1]: other for other in sorted(known) if _split_version(other)[0] == base
    }
    newer = [versions[v] for v in sorted(versions) if v > version >= 0]
    if newer:
        return f"Gymnasium no longer has {env_id!r}; use {_one_of(newer)}"
    if versions:
        near = [versions[v] for v in sorted(versions, reverse=True)]
    else:
        by_lower = {other.lower(): other for other in sorted(known)}
        near = [
            by_lower[lower] for lower in difflib.get_close_matches(env_id.lower(), by_lower, n=3, cutoff=0.7)
        ]
    if near:
        return f"unknown environment {env_id!r}; did you mean {_one_of(near)}?"
    return (
        f"unknown environment {env_id!r}, and no known id resembles it; "
        "if a package of yours registers it, write 'package:Name-v0'"
    )


def _one_of(ids: list[str]) -> str:
    return " or ".join(repr(env_id) for env_id in ids)


def _split_version(env_id: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)-v(\d+)", env_id)
    return (match[1], int(match[2])) if match else (env_id, -1)


def missing_dependency(env_id: str, spec: EnvSpec, error: Exception) -> str:
    """One sentence about a package without which Gymnasium cannot make the environment."""
    entry_point = spec.entry_point if isinstance(spec.entry_point, str) else ""
    for prefix, extra in _EXTRAS.items():
        if entry_point.startswith(prefix):
            return (
                f"{env_id} needs a package that is missing; install it with: pip install 'prune_rl[{extra}]'"
            )
    return f"{env_id} needs a package that is missing: {error}"
