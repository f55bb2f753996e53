"""The configuration of a training run: what is trained, where, how long, by which method."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from prune_rl.envs import registry
from prune_rl.learners import ppo
from prune_rl.spaces import Spec

Method = Literal["dynamic", "dense"]


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, completely: with the library versions and the machine it determines every number of the result."""

    env: str = "CartPole-v1"
    """Environment id."""
    algo: Literal["ppo"] = "ppo"
    """Learner."""
    method: Method = "dynamic"
    """'dynamic' prunes while it trains; 'dense' trains the wide network and removes nothing."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Seeds trained at once: seed, seed + 1, …"""
    steps: int = 500_000
    """Environment steps per seed, rounded up to whole rollouts."""
    backend: Literal["auto", "jax", "gymnasium"] = "auto"
    """Engine of the environment; auto: JAX-native where there is one."""
    checkpoints: int = 20
    """Checkpoints over the whole run; a killed run loses at most the work since the last one."""
    episodes: int = 100
    """Fresh episodes that each policy is evaluated on."""
    evaluation_seed: int = 1_000_000
    """Seed of the evaluation episodes, the same for every policy, so that returns can be compared in pairs."""
    learner: ppo.Config = ppo.Config()
    """Hyperparameters of the learner."""

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the run."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one seed between two updates."""
        return self.learner.num_envs * self.learner.num_steps

    @property
    def checkpoint_every(self) -> int:
        """Updates between two checkpoints."""
        return max(1, -(-self.learner.total_updates // self.checkpoints))

    def resolved(self) -> Config:
        """This configuration with what follows from other fields filled in; raises ``ValueError`` for bad values."""
        for name in ("steps", "seeds", "checkpoints", "episodes"):
            if getattr(self, name) < 1:
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
            steps=updates * self.steps_per_update,
            learner=dataclasses.replace(self.learner, total_updates=updates),
        )
        config.learner.check()
        return config

    def method_learner(self) -> ppo.Config:
        """The learner's hyperparameters under ``method``: a method only ever changes how neurons are removed."""
        if self.method == "dense":
            prune = dataclasses.replace(self.learner.prune, enabled=False)
            return dataclasses.replace(self.learner, prune=prune)
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
    """The configuration that ``to_json`` wrote; unknown keys raise ``ValueError``."""
    config: Config = _build(Config, data, "")
    return config


def merged(config: Config, data: dict[str, Any]) -> Config:
    """``config`` with the fields named in ``data`` (nested as the dataclasses are) replaced."""
    result: Config = _build(Config, _overlay(config.to_json(), data, ""), "")
    return result


def _overlay(base: dict[str, Any], data: dict[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(base)
    for key, value in data.items():
        if key not in base:
            raise ValueError(f"unknown field {prefix}{key!r}; known are {', '.join(sorted(base))}")
        result[key] = _overlay(base[key], value, f"{prefix}{key}.") if isinstance(base[key], dict) else value
    return result


def _build(kind: Any, data: dict[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"unknown field {prefix}{unknown[0]!r}; known are {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            values[name] = _build(type(default), value, f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
