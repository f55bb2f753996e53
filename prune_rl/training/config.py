"""The configuration of a training run: what is trained, where, how long, by which method."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, cast

from prune_rl.envs import registry
from prune_rl.learners.registry import LEARNERS
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.spaces import Spec

Method = Literal["dynamic", "dense"]

CHECKPOINTS = 20
LOG_LINES = 2000


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, completely: with the library versions and the machine it determines every number of the result."""

    env: str = "CartPole-v1"
    """Environment id."""
    algo: Literal["ppo", "sac"] = "ppo"
    """Learner."""
    method: Method = "dynamic"
    """'dynamic' prunes while it trains; 'dense' trains the wide network and removes nothing."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Seeds trained at once: seed, seed + 1, …"""
    steps: int = 500_000
    """Environment steps per seed, rounded up to whole rollouts."""
    backend: Literal["auto", "jax", "gymnasium", "envpool"] = "auto"
    """Engine of the environment; auto: the one that suits it best on a CPU."""
    checkpoints: int | None = None
    """Checkpoints over the whole run; a killed run loses at most the work since the last one. By default 20, or as many
    as leave a Gymnasium environment, which is reset at each, time for two full episodes."""
    episodes: int = 100
    """Fresh episodes that each policy is evaluated on."""
    evaluation_seed: int = 1_000_000
    """Seed of the evaluation episodes, the same for every policy, so that returns can be compared in pairs."""
    learner: LearnerConfig = cast(LearnerConfig, None)
    """Hyperparameters of the learner; by default those of ``algo``."""

    def __post_init__(self) -> None:
        if self.algo not in LEARNERS:
            raise ValueError(f"there is no learner {self.algo!r}; choose one of {', '.join(LEARNERS)}")
        kind = LEARNERS[self.algo].Config
        given: Any = self.learner
        if given is None:
            object.__setattr__(self, "learner", kind())
        elif not isinstance(given, kind):
            other = next((name for name, it in LEARNERS.items() if isinstance(given, it.Config)), repr(given))
            raise ValueError(
                f"algo is {self.algo!r}, but the learner's hyperparameters are those of {other}: give "
                f"{self.algo}.Config(...), or another algo"
            )

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the run."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed between two updates."""
        return self.learner.num_envs * self.learner.num_steps

    @property
    def log_every(self) -> int:
        """Updates that share a line of the log: one of PPO; of SAC, which makes many small ones, at most 2000 lines."""
        return 1 if self.algo == "ppo" else -(-self.learner.num_updates // LOG_LINES)

    @property
    def checkpoint_every(self) -> int:
        """Updates between two checkpoints, for a resolved configuration."""
        assert self.checkpoints is not None
        return -(-self.learner.num_updates // self.checkpoints)

    @property
    def cuts_short(self) -> bool:
        """Whether no episode can reach its time limit, because host environments are reset at every checkpoint."""
        limit = registry.resolve(self.env).time_limit or 0
        between = self.checkpoint_every * self.learner.num_steps
        return self.backend != "jax" and self.checkpoints != 1 and between < limit

    def resolved(self) -> Config:
        """This configuration with what follows from other fields filled in; raises ``ValueError`` for bad values."""
        for name in ("steps", "seeds", "checkpoints", "episodes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("seed", "evaluation_seed"):
            if not 0 <= getattr(self, name) < 2**31 - self.seeds:
                raise ValueError(f"{name} must lie in [0, 2^31 - seeds), got {getattr(self, name)}")
        for name in ("num_envs", "num_steps"):
            if getattr(self.learner, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self.learner, name)}")
        backends = registry.backends(self.env)
        backend: Any = backends[0] if self.backend == "auto" else self.backend
        if backend not in backends:
            raise ValueError(f"{self.env} has no backend {backend!r}; choose one of {', '.join(backends)}")
        updates = -(-self.steps // self.steps_per_update)
        config = dataclasses.replace(
            self,
            backend=backend,
            checkpoints=self.checkpoints or self._default_checkpoints(backend, updates),
            steps=updates * self.steps_per_update,
            learner=dataclasses.replace(self.learner, total_timesteps=updates * self.steps_per_update),
        )
        config.method_learner().check()
        if self.method == "dense":
            # Whatever was set for pruning: a dense run is one and the same, so it is trained once.
            config = dataclasses.replace(config, learner=config.method_learner())
        return config

    def _default_checkpoints(self, backend: str, updates: int) -> int:
        if backend == "jax":
            return CHECKPOINTS
        limit = registry.resolve(self.env).time_limit or 0
        return max(1, min(CHECKPOINTS, updates * self.learner.num_steps // max(2 * limit, 1)))

    def method_learner(self) -> LearnerConfig:
        """The learner's hyperparameters under ``method``: a method only ever changes how neurons are removed."""
        if self.method == "dense":
            return dataclasses.replace(self.learner, prune=None)
        return self.learner

    def spec(self) -> Spec:
        """Spaces of the environment; raises ``registry.UnsupportedEnvironment``."""
        return registry.spec_of(self.env)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: tuples are lists."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data

    def default_run_dir(self) -> Path:
        """``runs/ENV-ALGO-METHOD-seed0…-hash``: equal commands share it, different ones do not."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]
        seeds = f"seed{self.seed}" if self.seeds == 1 else f"seeds{self.seed}-{self.seed + self.seeds - 1}"
        name = self.env.replace("/", "_").replace(":", "_")
        return Path("runs") / f"{name}-{self.algo}-{self.method}-{seeds}-{digest}"


def from_json(data: dict[str, Any]) -> Config:
    """The configuration that ``to_json`` wrote; ``ValueError`` for unknown keys and values of another type."""
    config: Config = _build(Config, data, "")
    return config


def merged(config: Config, data: dict[str, Any]) -> Config:
    """``config`` with the fields named in ``data`` (nested as the dataclasses are) replaced; raises as above.

    Another ``algo`` brings that learner's default hyperparameters.
    """
    if data.get("algo", config.algo) != config.algo:
        config = dataclasses.replace(config, algo=data["algo"], learner=cast(Any, None))
    result: Config = _build(Config, _overlay(config.to_json(), data, ""), "")
    return result


def _overlay(base: dict[str, Any], data: dict[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(base)
    for key, value in data.items():
        if key not in base:
            raise _unknown(prefix + key, base)
        nested = isinstance(base[key], dict) and isinstance(value, dict)
        result[key] = _overlay(base[key], value, f"{prefix}{key}.") if nested else value
    return result


def _build(kind: Any, data: Any, name: str) -> Any:
    """A dataclass from JSON data; ``name`` is that of the field that holds it, "" for the outermost."""
    prefix = f"{name}." if name else ""
    if not isinstance(data, dict):
        raise ValueError(f"{name or 'the configuration'} must be a table of fields, got {data!r}")
    hints = typing.get_type_hints(kind)
    if kind is Config:
        # A bad algo is refused where its own value is read.
        algo = data.get("algo", Config.algo)
        hints["learner"] = LEARNERS[algo if algo in tuple(LEARNERS) else Config.algo].Config
    for key in data:
        if key not in hints:
            raise _unknown(prefix + key, hints)
    return kind(**{key: _value(hints[key], value, prefix + key) for key, value in data.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the type that a field's annotation names; JSON's lists become tuples, its whole numbers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name)
    if origin is types.UnionType:
        return None if value is None else _value(arguments[0], value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], entry, name) for entry in value)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint)
    if wanted is None:
        wanted = f"one of {', '.join(arguments)}" if origin is Literal else "a list of whole numbers"
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _unknown(name: str, known: typing.Iterable[str]) -> ValueError:
    return ValueError(f"unknown field {name!r}; known are {', '.join(sorted(known))}")
