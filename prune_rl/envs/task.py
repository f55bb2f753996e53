"""An environment id resolved for one run: what it is, what steps it, and how it is made."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import TYPE_CHECKING, Any

from prune_rl.envs import registry
from prune_rl.envs.autoreset import JaxEnv
from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.registry import EnvInfo
from prune_rl.spaces import Spec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    from prune_rl.envs.gymnasium_adapter import Adapter

_ENVPOOL_NOTES = {
    "LunarLander-v2": (
        "EnvPool runs its own version of the task, which agrees with Gymnasium's in distribution; "
        "the same seed gives other episodes"
    ),
    **dict.fromkeys(
        registry.MJX_IDS,
        "EnvPool runs its own version of the task, which agrees with Gymnasium's to the tolerance of MuJoCo's solver; "
        "the same seed gives other episodes",
    ),
}


@dataclasses.dataclass(frozen=True)
class Task(EnvInfo):
    """An environment id and the backend that runs it, made once per run by ``resolve_task`` and handed on.

    The spaces are those of Gymnasium's environment for every backend. Reading them makes that environment once, on
    the first use of ``adapter``; everything else that is made is what the methods return.

    Attributes:
        backend: what steps the environment in training: "jax" (on the device), "gymnasium" or "envpool" (on the host).
        backend_given: whether the caller of ``resolve_task`` chose the backend.
    """

    backend: str
    backend_given: bool = dataclasses.field(default=True, compare=False)

    @functools.cached_property
    def entry(self) -> EnvSpec:
        """Gymnasium's registration of the environment, or ours for an id that Gymnasium withdrew."""
        return registry.gymnasium_spec(self.env_id)

    @functools.cached_property
    def adapter(self) -> Adapter:
        """Conversion between flat arrays and the spaces of the Gymnasium environment.

        Raises:
            UnsupportedEnvironment: a package is missing (with the install line), or the spaces are not supported
                (images, Dict, …).
        """
        env = self.make_gymnasium()
        from prune_rl.envs.gymnasium_adapter import Adapter

        try:
            return Adapter.of(env, self.env_id)
        finally:
            env.close()

    @property
    def spec(self) -> Spec:
        """Sizes of observation and action; raises as ``adapter`` does."""
        native = registry.native_env(self.env_id)
        return self.adapter.spec if native is None else native.spec

    def make_gymnasium(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Make one fresh Gymnasium environment, with its time limit.

        Args:
            kwargs: go to ``gymnasium.make``, for example ``render_mode="rgb_array"``. Gymnasium's passive checker
                is off unless asked for.

        Raises:
            UnsupportedEnvironment: a package is missing (with the install line).
        """
        gym, entry = registry.import_gymnasium(), self.entry
        try:
            with warnings.catch_warnings():
                # From Box2D's bindings at import. Where warnings are errors, it would crash the interpreter.
                warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
                env: gymnasium.Env[Any, Any] = gym.make(entry, **{"disable_env_checker": True, **kwargs})
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            raise UnsupportedEnvironment(registry.missing_dependency(self.env_id, entry, error)) from error
        return env

    def jax_env(self) -> JaxEnv[Any]:
        """The environment as pure functions in JAX.

        Raises:
            ValueError: the backend is not "jax".
            UnsupportedEnvironment: it needs MuJoCo MJX, which is missing (with the install line).
        """
        if self.backend != "jax":
            raise ValueError(
                f"backend {self.backend!r} steps {self.env_id} on the host: call make_vector(), or choose backend 'jax'"
            )
        native = registry.native_env(self.env_id)
        if native is not None:
            return native
        from prune_rl.envs import mjx

        return mjx.make(self.env_id)

    def check(self) -> None:
        """Check that training and evaluation can make the environment.

        Raises:
            UnsupportedEnvironment: a package is missing (with the install line), or the spaces are not supported.
        """
        _ = self.adapter  # evaluation plays in Gymnasium's environment, whatever the backend
        if self.backend == "jax":
            self.jax_env()
        elif self.backend == "envpool":
            registry.import_envpool(self.env_id)

    def backend_note(self, platform: str) -> str:
        """One line about a backend that may surprise, else "".

        Args:
            platform: where JAX computes: "cpu", "gpu" or "tpu", see ``jax.default_backend``.
        """
        if self.backend == "jax" and self.env_id in registry.MJX_IDS and platform == "cpu":
            return (
                "on a CPU, MJX is an order of magnitude slower than MuJoCo; "
                "use --backend gymnasium or --backend envpool there"
            )
        if self.backend == "envpool":
            return _ENVPOOL_NOTES.get(self.env_id, "")
        faster = not self.backend_given and "envpool" in self.backends[: self.backends.index(self.backend)]
        if faster and registry.envpool_platform():
            return (
                "EnvPool, which is not installed, steps this environment faster; install it with: "
                "pip install 'prune_rl[envpool]'"
            )
        return ""


def resolve_task(env_id: str, backend: str = "auto") -> Task:
    """Resolve an environment id; makes no environment yet.

    Args:
        env_id: one of the table in ``prune_rl.envs.registry``, any id of Gymnasium's registry, or ``module:Name-v0``.
        backend: "jax", "gymnasium" or "envpool"; "auto" takes the one that suits the environment best on a CPU:
            our own engine in JAX, else EnvPool where it has the environment and is installed (on Linux on x86-64),
            else Gymnasium.

    Raises:
        ValueError: the backend cannot run the environment.
        UnsupportedEnvironment: the id is unknown (with near matches), withdrawn (with the replacement), or its module
            is missing.
    """
    info = registry.lookup(env_id)
    if backend not in (*info.backends, "auto"):
        raise ValueError(f"{env_id} has no backend {backend!r}; choose one of {', '.join(info.backends)}")
    if backend == "auto":
        return Task(**vars(info), backend=registry.default_backend(info.backends), backend_given=False)
    return Task(**vars(info), backend=backend)
