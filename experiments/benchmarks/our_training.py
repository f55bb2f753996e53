"""Our trainings behind the engine that `prune-rl train` uses: they go on from repeat to repeat, or start anew."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.turns import Timing, wait_for
from prune_rl.envs.task import resolve_task
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.sac import Config as SacConfig
from prune_rl.training.config import Config
from prune_rl.training.make_engine import make_engine


class Training:
    """A dense run, compiled and warmed up; ``run`` goes on with it, so that every repeat is like one in its middle."""

    def __init__(self, env: str, backend: str, learner: LearnerConfig, steps: int, warm_up: int) -> None:
        """A repeat makes ``steps`` environment steps, in whole rollouts; ``warm_up`` come before the first."""
        algo = "sac" if isinstance(learner, SacConfig) else "ppo"
        config = Config(env=env, algo=algo, method="dense", backend=backend, learner=learner)  # type: ignore[arg-type]
        task = resolve_task(env, backend)
        self._engine = make_engine(config.resolved(task), task)
        self._rollout = learner.steps_per_update
        self.updates = -(-steps // self._rollout)
        if warm_up:
            self._advance(-(-warm_up // self._rollout))

    def run(self) -> Timing:
        """Environment steps, and the seconds until the last update has left the device."""
        before = self.gradient_steps
        seconds = self._advance(self.updates)
        self.last_gradient_steps = self.gradient_steps - before
        return Timing(seconds, self.updates * self._rollout)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps so far, as Adam counts them; the fewest, if the networks differ."""
        adams = optax.tree.get_all_with_path(self._engine.state, "ScaleByAdamState")
        return min(int(adam.count.reshape(-1)[0]) for _, adam in adams)

    def close(self) -> None:
        """Close the environments."""
        self._engine.close()

    def _advance(self, updates: int) -> float:
        started = time.perf_counter()
        self._engine.advance(updates)
        wait_for(self._engine.tree)
        return time.perf_counter() - started


class WholeTraining(Training):
    """As ``Training``, but every repeat is the whole run from its start. Work is 1: one training."""

    def __init__(self, env: str, backend: str, learner: LearnerConfig) -> None:
        super().__init__(env, backend, learner, learner.total_timesteps, warm_up=0)
        self._start = _copy(self._engine.tree)
        self._advance(2)
        self._advance(1)

    def run(self) -> Timing:
        self._engine.tree = _copy(self._start)
        return Timing(self._advance(self.updates), 1.0)


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
