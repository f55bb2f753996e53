"""The configuration of a training run: environment, learner, pruning method, seeds, length and evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, cast

from prune_rl.envs.task import Task, resolve_task
from prune_rl.learners.registry import LEARNERS
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.methods.registry import METHODS
from prune_rl.training.matmul_precision import MatmulPrecision

HOST_RESETS = 20
LOG_LINES = 2000
# Fields that do not change the result of a run, but for rounding. They are not part of the name of its folder, and may
# differ when it is continued.
NOT_PART_OF_THE_RESULT = ("checkpoints", "shard_envs")


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. Together with the library versions and the machine it determines every number of the result."""

    env: str = "CartPole-v1"
    """Environment id."""
    algo: str = "ppo"
    """Learner."""
    method: str = "dynamic"
    """dynamic: prune while training goes on; dense: train the wide network and remove nothing; small: train an actor of
    few neurons from scratch, beside the wide critic; linear: an actor without hidden neurons, likewise."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Seeds trained at once: seed, seed + 1, …"""
    backend: Literal["auto", "jax", "gymnasium", "envpool"] = "auto"
    """Engine of the environment; auto: the fastest one on a CPU that is installed (EnvPool on Linux on x86-64 only)."""
    matmul_precision: MatmulPrecision = "default"
    """Precision of float32 products of matrices on accelerators. default: JAX's own (TF32 on recent NVIDIA GPUs,
    bfloat16 on TPUs); highest: float32, as MJX and the least squares of mask updates have it in any case. A CPU
    computes in float32."""
    checkpoints: int = 20
    """At most this many checkpoints over the whole run; a killed run loses the work since the last one. Host
    environments are checkpointed only where they are reset (host_resets). Does not change the result."""
    shard_envs: bool = False
    """For one seed with backend jax: share its environments among all local devices, which makes rollouts faster. Does
    not change the result, up to rounding."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, NAME=VALUE each, such as gain=2; they go to gymnasium.make, so that the backend is
    gymnasium."""
    host_resets: int | None = None
    """How often host environments (gymnasium, envpool) are reset over the whole run, which truncates the episodes under
    way. By default 20 times, or as often as leaves time for two full episodes in between. Not for backend jax, which
    needs no such resets."""
    episodes: int = 100
    """Fresh episodes that each policy is evaluated on."""
    frontier: int = 20
    """At about how many widths to keep policies while a pruned network narrows, and at each number of the last neurons;
    0: none, and the policy is that of the end of training."""
    selection_episodes: int = 30
    """Episodes that the best candidates of each width are measured on, apart from those of the evaluation."""
    evaluation_seed: int = 1_000_000
    """Seed of the evaluation episodes, the same for every policy, so that returns can be compared in pairs."""
    extends: tuple[int, ...] = ()
    """Steps per seed at which shorter runs ended whose training this one continued, in order."""
    learner: LearnerConfig = cast(LearnerConfig, None)
    """Hyperparameters of the learner; by default those of ``algo``."""

    def __post_init__(self) -> None:
        if self.algo not in tuple(LEARNERS):
            raise ValueError(f"there is no learner {self.algo!r}; choose one of {', '.join(LEARNERS)}")
        if self.method not in METHODS:
            raise ValueError(f"there is no method {self.method!r}; choose one of {', '.join(METHODS)}")
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
    def steps(self) -> int:
        """Environment steps per seed in the whole of training: ``learner.total_timesteps`` in whole rollouts."""
        return self.learner.num_updates * self.learner.steps_per_update

    @property
    def log_every(self) -> int:
        """Updates that share a line of the log, so that it has at most 2000 lines (and one more per checkpoint)."""
        return -(-self.learner.num_updates // LOG_LINES)

    @property
    def reset_every(self) -> int | None:
        """Updates between two resets of the host environments; None where there are no such resets."""
        return None if self.host_resets is None else -(-self.learner.num_updates // self.host_resets)

    @property
    def checkpoint_every(self) -> int:
        """Updates between two checkpoints: a multiple of ``reset_every``, since a host environment cannot be saved."""
        every = -(-self.learner.num_updates // self.checkpoints)
        return every if self.reset_every is None else -(-every // self.reset_every) * self.reset_every

    def resolved(self, task: Task | None = None) -> Config:
        """This configuration as it is run and stored. Resolving twice changes nothing.

        Backend and ``host_resets`` get their values, ``learner.total_timesteps`` is rounded up to whole rollouts, and
        the method sets what it is about: "dense", for one, ``learner.prune`` to None, whatever was set for pruning.

        Args:
            task: the environment, if it is resolved already; else it is looked up.

        Raises:
            ValueError: a value that cannot work.
        """
        if self.frontier < 0:
            raise ValueError(f"frontier must be >= 0, got {self.frontier}")
        for name in ("seeds", "checkpoints", "host_resets", "episodes", "selection_episodes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("seed", "evaluation_seed"):
            if not 0 <= getattr(self, name) < 2**31 - self.seeds:
                raise ValueError(f"{name} must lie in [0, 2^31 - seeds), got {getattr(self, name)}")
        for name in ("num_envs", "num_steps"):
            if getattr(self.learner, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self.learner, name)}")
        if self.learner.total_timesteps < 1:
            raise ValueError(f"total_timesteps (--steps) must be >= 1, got {self.learner.total_timesteps}")
        task = task or resolve_task(self.env, self.backend, self.env_kwargs, self.seeds)
        learner: LearnerConfig = dataclasses.replace(self.learner, total_timesteps=self.steps)
        learner = METHODS[self.method].learner_config(learner)
        learner.check()
        host_resets = self.host_resets
        if self.shard_envs:
            self._check_shard_envs(task)
        if task.backend == "jax":
            if learner.acts_ahead:
                raise ValueError(
                    f"overlap is for environments on the host, and {self.env} runs on backend 'jax', where rollout and "
                    "update are one program: leave it out, or choose another backend"
                )
            if host_resets is not None:
                raise ValueError(
                    f"host_resets = {host_resets} is for environments on the host, and {self.env} runs on backend "
                    "'jax': leave it out, or choose another backend"
                )
        elif host_resets is None:
            host_resets = self._default_host_resets(task)
        return dataclasses.replace(
            self, backend=cast(Any, task.backend), host_resets=host_resets, learner=learner
        )

    def _check_shard_envs(self, task: Task) -> None:
        if task.backend != "jax":
            other = ", or choose backend 'jax'" if "jax" in task.backends else ""
            raise ValueError(
                f"shard_envs is for environments on the devices, and {self.env} runs on backend {task.backend!r}, on "
                f"the host: leave it out{other}"
            )
        if self.seeds > 1:
            raise ValueError(
                f"shard_envs is for one seed, and the {self.seeds} seeds of this run share the devices already: leave "
                "it out"
            )

    def _default_host_resets(self, task: Task) -> int:
        steps = self.learner.num_updates * self.learner.num_steps  # of one environment
        return max(1, min(HOST_RESETS, steps // max(2 * (task.time_limit or 0), 1)))

    def truncates_every_episode(self, task: Task) -> bool:
        """Whether host environments are reset so often that no episode can reach its time limit."""
        if self.reset_every is None or self.host_resets == 1:
            return False
        return self.reset_every * self.learner.num_steps < (task.time_limit or 0)

    def defaults(self, task: Task) -> Config:
        """The configuration of this environment, learner and method with all other options at their defaults."""
        default = Config(
            env=self.env, algo=self.algo, method=self.method, backend=self.backend, env_kwargs=self.env_kwargs
        )
        learner = default.learner
        if self.learner.prune is None:
            learner = dataclasses.replace(learner, prune=None)
        host_resets = None if task.backend == "jax" else self._default_host_resets(task)
        return dataclasses.replace(default, learner=learner, host_resets=host_resets)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: tuples are lists."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data

    def default_run_dir(self) -> Path:
        """``runs/ENV-ALGO-METHOD-seed0…-hash``, for a resolved configuration.

        The hash is of the values that differ from the defaults of the dataclasses and change the result. An option
        that is added later, with a default that keeps the result, therefore leaves the name as it is.
        """
        changed = _changed(self.to_json(), Config(algo=self.algo).to_json())
        for name in NOT_PART_OF_THE_RESULT:
            changed.pop(name, None)
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        seeds = f"seed{self.seed}" if self.seeds == 1 else f"seeds{self.seed}-{self.seed + self.seeds - 1}"
        name = self.env.replace("/", "_").replace(":", "_")
        return Path("runs") / f"{name}-{self.algo}-{self.method}-{seeds}-{digest}"


def _changed(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``data`` that differ from those of ``defaults``, nested alike."""
    changed = {}
    for key, value in data.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            nested = _changed(value, default)
            if nested:
                changed[key] = nested
        elif value != default:
            changed[key] = value
    return changed
