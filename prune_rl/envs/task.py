"""An environment id resolved for one run: what it is, what steps it, and how it is made."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from typing import TYPE_CHECKING, Any

from prune_rl.envs import registry
from prune_rl.envs.errors import EnvironmentCrashed, UnsupportedEnvironment
from prune_rl.envs.registry import EnvInfo
from prune_rl.spaces import Spec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    from prune_rl.envs.autoreset import JaxEnv
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

# Where an environment is registered without a time limit: an evaluation that plays whole episodes has to end.
LONGEST_EPISODE = 10_000


@dataclasses.dataclass(frozen=True)
class Task(EnvInfo):
    """An environment id and the backend that runs it, made once per run by ``resolve_task`` and handed on.

    The spaces are those of Gymnasium's environment for every backend. Reading them makes that environment once, on
    the first use of ``adapter``; everything else that is made is what the methods return.

    Attributes:
        backend: what steps the environment in training: "jax" (on the device), "gymnasium" or "envpool" (on the host).
        kwargs: arguments of the environment, as in ``resolve_task``.
        backend_given: whether the caller of ``resolve_task`` chose the backend.
    """

    backend: str
    backend_given: bool = dataclasses.field(default=True, compare=False)
    kwargs: tuple[str, ...] = ()

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
        native = None if self.kwargs else registry.native_env(self.env_id)
        return self.adapter.spec if native is None else native.spec

    def make_gymnasium(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Make one fresh Gymnasium environment, with its time limit, or ``LONGEST_EPISODE`` where it has none.

        Args:
            kwargs: go to ``gymnasium.make``, for example ``render_mode="rgb_array"``. Gymnasium's passive checker
                is off unless asked for.

        Raises:
            UnsupportedEnvironment: a package is missing (with the install line).
        """
        gym, entry = registry.import_gymnasium(), self.entry
        own = parse_kwargs(self.kwargs)
        options = {"disable_env_checker": True, **own, **kwargs}
        if entry.max_episode_steps is None:
            options.setdefault("max_episode_steps", LONGEST_EPISODE)
        try:
            with warnings.catch_warnings():
                # From Box2D's bindings at import. Where warnings are errors, it would crash the interpreter.
                warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
                env: gymnasium.Env[Any, Any] = gym.make(entry, **options)
        except (gym.error.DependencyNotInstalled, ImportError) as error:
            raise UnsupportedEnvironment(registry.missing_dependency(self.env_id, entry, error)) from error
        except (gym.error.Error, UnsupportedEnvironment):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, TypeError) and any(f"'{name}'" in str(error) for name in own):
                raise UnsupportedEnvironment(
                    f"{self.env_id} does not take --env-kwargs {' '.join(self.kwargs)}: {error}"
                ) from error
            raise EnvironmentCrashed(
                f"making {self.env_id} raised {type(error).__name__}: {error}"
            ) from error
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
            UnsupportedEnvironment: a package is missing (with the install line), the spaces are not supported, or the
                methods do not return what Gymnasium asks.
            EnvironmentCrashed: the environment's own code raised an exception.
        """
        from prune_rl.envs.gymnasium_adapter import Adapter, check_interface

        env = self.make_gymnasium()  # evaluation plays in it, whatever the backend
        try:
            # As ``adapter`` would be, without making another environment.
            adapter = vars(self).setdefault("adapter", Adapter.of(env, self.env_id))
            check_interface(env, adapter)
        finally:
            env.close()
        if self.backend == "jax":
            self.jax_env()
        elif self.backend == "envpool":
            registry.import_envpool(self.env_id)

    def limit_note(self) -> str:
        """One line about an environment without a time limit, else ""."""
        if self.time_limit is not None:
            return ""
        return (
            f"{self.env_id} is registered without a time limit: episodes are truncated after {LONGEST_EPISODE:,} "
            "steps, in training and evaluation; --env-kwargs max_episode_steps=N sets another limit"
        )

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


def parse_kwargs(words: tuple[str, ...]) -> dict[str, Any]:
    """{name: value} from texts NAME=VALUE; a VALUE that is JSON is read as that (numbers, true, lists), else as text.

    Raises:
        ValueError: a text without "=", a NAME that is no Python name, or one that is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"env_kwargs must be NAME=VALUE, such as gain=2, got {word!r}")
        if name in found:
            raise ValueError(f"env_kwargs names {name!r} twice")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def resolve_task(env_id: str, backend: str = "auto", kwargs: tuple[str, ...] = (), seeds: int = 1) -> Task:
    """Resolve an environment id; makes no environment yet.

    Args:
        env_id: one of the table in ``prune_rl.envs.registry``, any id of Gymnasium's registry, or ``module:Name-v0``.
        backend: "jax", "gymnasium" or "envpool"; "auto" takes the one that suits the environment best: our own engine
            in JAX, else MJX where ``registry.prefers_mjx``, else EnvPool where it has the environment and is installed
            (on Linux on x86-64), else Gymnasium.
        kwargs: arguments of the environment, each NAME=VALUE, see ``parse_kwargs``; they go to ``gymnasium.make``, so
            that the backend is "gymnasium".
        seeds: of the run that trains in it.

    Raises:
        ValueError: the backend cannot run the environment.
        UnsupportedEnvironment: the id is unknown (with near matches), withdrawn (with the replacement), or its module
            is missing.
    """
    info = registry.lookup(env_id)
    if kwargs:
        given = parse_kwargs(kwargs)
        if backend not in ("auto", "gymnasium"):
            raise ValueError(
                f"env_kwargs ({' '.join(kwargs)}) are for backend 'gymnasium', got {backend!r}: leave one of them out"
            )
        limit = given.get("max_episode_steps", info.time_limit)
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"env_kwargs max_episode_steps must be a whole number >= 1, got {limit!r}")
        info = dataclasses.replace(info, backends=("gymnasium",), time_limit=limit)
    if backend not in (*info.backends, "auto"):
        raise ValueError(f"{env_id} has no backend {backend!r}; choose one of {', '.join(info.backends)}")
    if backend == "auto":
        default = registry.default_backend(info.backends)
        if "jax" in info.backends and registry.prefers_mjx(env_id, seeds, _jax_platform):
            default = "jax"
        return Task(**vars(info), backend=default, backend_given=False, kwargs=kwargs)
    return Task(**vars(info), backend=backend, kwargs=kwargs)


def _jax_platform() -> str:
    """Where JAX computes, which is imported and started for it."""
    import jax

    return jax.default_backend()
