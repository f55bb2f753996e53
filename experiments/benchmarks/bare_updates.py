"""Gradient steps per second of SAC and PPO by hidden width, without environments."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Row, Section, rows_of
from experiments.benchmarks.turns import Timing, take_turns, wait_for
from prune_rl.learners import ppo, sac
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.registry import Config, learner_of
from prune_rl.learners.rollout import Rollout
from prune_rl.spaces import Box, Spec

HOPPER = Spec(11, Box((-1.0,) * 3, (1.0,) * 3, (3,)))


def sac_settings(width: int, prune: Pruning | None = None) -> sac.Config:
    """As on Hopper-v3: batch 256, one gradient step per environment step, 64 of either in an update."""
    return sac.Config(
        hidden=(width, width),
        num_envs=8,
        num_steps=8,
        batch_size=256,
        buffer_size=100_000,
        learning_starts=0,
        total_timesteps=1_000_000,
        prune=prune,
    )


def ppo_settings(width: int, prune: Pruning | None = None) -> ppo.Config:
    """As in the preset of Hopper-v3: 16 environments × 128 steps, 10 epochs × 16 minibatches."""
    return ppo.Config(
        hidden=(width, width),
        num_envs=16,
        num_steps=128,
        update_epochs=10,
        num_minibatches=16,
        total_timesteps=1_000_000,
        prune=prune,
    )


def gradient_steps(config: Config) -> int:
    """Gradient steps of one update of the learner."""
    if isinstance(config, sac.Config):
        return config.gradient_steps
    assert isinstance(config, ppo.Config)
    return config.update_epochs * config.num_minibatches


def random_rollout(config: Config, spec: Spec) -> Rollout:
    """Transitions of no environment, always the same."""
    rng = np.random.default_rng(0)
    lead = (config.num_steps, config.num_envs)
    assert isinstance(spec.action, Box)
    obs, next_obs = rng.normal(size=(2, *lead, spec.observation_size)).astype(np.float32)
    action = rng.uniform(-1.0, 1.0, (*lead, spec.action.size)).astype(np.float32)
    ends = rng.random((2, *lead)) < 0.005
    reward = rng.normal(size=lead).astype(np.float32)
    columns = (obs, action, reward, ends[0], ends[1], next_obs, np.zeros((), bool))
    return Rollout(*map(jnp.asarray, columns))


def with_critics_of(state: Any, other: Any) -> Any:
    """``state`` with the critics of ``other``, their targets and their optimiser's moments among them."""

    def choose(path: Any, own: Any, others: Any) -> Any:
        return others if any("critic" in jax.tree_util.keystr((key,)) for key in path) else own

    return jax.tree_util.tree_map_with_path(choose, state, other)


class Update:
    """The learner's ``update`` on the same rollout again and again, compiled and warmed up."""

    def __init__(
        self,
        config: Config,
        critics: Config | None = None,
        seconds: float = 0.5,
        at_least: int = 1,
    ) -> None:
        """Actor as ``config`` says, critics as ``critics`` says if given; a repeat makes ``at_least`` updates."""
        learner = learner_of(config)

        def init(key: jax.Array) -> Any:
            state = learner.init(key, config, HOPPER)
            return state if critics is None else with_critics_of(state, learner.init(key, critics, HOPPER))

        self._state = jax.jit(init)(jax.random.key(0))
        self._rollout = random_rollout(config, HOPPER)
        self._gradient_steps = gradient_steps(config)

        def update(state: Any, rollout: Rollout, count: jax.Array) -> Any:
            return jax.lax.fori_loop(0, count, lambda _, s: learner.update(s, rollout, config)[0], state)

        program = jax.jit(update, donate_argnums=0)
        self._program: Any = program.lower(self._state, self._rollout, jnp.int32(1)).compile()
        self._updates = at_least
        self.run()
        once = self.run().seconds / at_least
        self._updates = max(1, math.ceil(seconds / once / at_least)) * at_least

    def run(self) -> Timing:
        """Gradient steps, and the seconds until the last one has left the device."""
        started = time.perf_counter()
        self._state = self._program(self._state, self._rollout, jnp.int32(self._updates))
        wait_for(self._state)
        return Timing(time.perf_counter() - started, self._updates * self._gradient_steps)


def measure(options: Options) -> list[Section]:
    """One section per learner."""
    sections = []
    for algo, settings in (("SAC", sac_settings), ("PPO", ppo_settings)):
        widest = options.widths[0]
        updates = {
            f"actor and critics {width}·{width}": Update(settings(width), seconds=options.seconds)
            for width in options.widths
        }
        for width in options.mixed:
            updates[f"actor {widest}·{widest}, critics {width}·{width}"] = Update(
                settings(widest), settings(width), options.seconds
            )
            updates[f"actor {width}·{width}, critics {widest}·{widest}"] = Update(
                settings(width), settings(widest), options.seconds
            )
        baseline = f"actor and critics {widest}·{widest}"
        rows: Sequence[Row] = rows_of(take_turns(updates, options.repeats), baseline, "speed")
        sections.append(
            Section(
                key=f"bare-{algo.lower()}",
                title=f"{algo} updates by hidden width",
                text=f"Gradient steps per second on stored transitions of Hopper's sizes "
                f"({describe(settings(widest))}); ratio: speed against {widest}·{widest}.",
                unit="gradient steps/s",
                rows=tuple(rows),
            )
        )
    return sections


def describe(config: Config) -> str:
    """What the cost of a gradient step depends on, beside the widths."""
    if isinstance(config, sac.Config):
        return f"two critics, batch {config.batch_size}"
    assert isinstance(config, ppo.Config)
    return f"minibatches of {config.steps_per_update // config.num_minibatches} transitions"
