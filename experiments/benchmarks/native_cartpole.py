"""PPO on the JAX-native CartPole-v1: dense, pruning, and the whole run in one program."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax.numpy as jnp

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Section, rows_of
from experiments.benchmarks.turns import Contender, Timing, take_turns, wait_for
from experiments.benchmarks.whole_run_in_one_jit import OneJit
from prune_rl.envs.cartpole import CartPole
from prune_rl.learners import ppo
from prune_rl.learners.pruning_config import Pruning
from prune_rl.training.engines import init_runner, make_chunk, seed_keys


def settings(width: int, prune: Pruning | None = None) -> ppo.Config:
    """4 environments × 128 steps, 4 epochs × 4 minibatches."""
    return ppo.Config(
        hidden=(width, width),
        num_envs=4,
        num_steps=128,
        update_epochs=4,
        num_minibatches=4,
        learning_rate=2.5e-4,
        ent_coef=0.01,
        total_timesteps=1_000_000 * 4 * 128,
        prune=prune,
    )


class Chunk:
    """Updates of a run in one compiled program, which goes on from repeat to repeat."""

    def __init__(self, config: ppo.Config, updates: int) -> None:
        self._updates, self._steps = updates, updates * config.steps_per_update
        self._runner: Any = init_runner(CartPole(), seed_keys([0]), config)
        program = make_chunk(CartPole(), config, updates)
        self._program: Any = program.lower(self._runner, jnp.int32(updates)).compile()
        self.run()

    def run(self) -> Timing:
        """Environment steps and their seconds."""
        started = time.perf_counter()
        self._runner, _ = self._program(self._runner, jnp.int32(self._updates))
        wait_for(self._runner)
        return Timing(time.perf_counter() - started, self._steps)


def measure(options: Options) -> list[Section]:
    """Small networks against the plain loop, wide ones by what pruning adds."""
    # Half a second is about 200 updates of 64·64, or 30 of 256·256.
    updates, wide_updates = (max(1, round(options.seconds * rate)) for rate in (400, 60))
    small = 64 if options.hidden >= 64 else options.hidden
    plain = f"{small}·{small}, the whole run in one program (purejaxrl's way)"
    runs: dict[str, Contender] = {
        plain: OneJit(settings(small), updates),
        f"{small}·{small}, prune_rl": Chunk(settings(small), updates),
    }
    # begin = 0: masks are updated from the first update on, as they are between begin and end of a real run.
    importance = Pruning(
        tolerance=None, score="taylor", refit=False, strength=0.0, sparsity=0.9, begin=0.0, end=1.0
    )
    wide = {
        "dense": None,
        "importance and mask update at every update": importance,
        "the same with proximal step": dataclasses.replace(importance, strength=1e-4),
        "surgeon and refit at every 2nd update": dataclasses.replace(
            importance, score="surgeon", refit=True, every=2
        ),
    }
    hidden = f"{options.hidden}·{options.hidden}"
    chunks = {
        f"{hidden}, {name}": Chunk(settings(options.hidden, prune), wide_updates)
        for name, prune in wide.items()
    }
    what = "4 environments × 128 steps, 4 epochs × 4 minibatches, one seed"
    return [
        Section(
            key="cartpole",
            title="PPO on the JAX-native CartPole-v1",
            text=f"{what}, dense; ratio: speed against the plain loop.",
            unit="environment steps/s",
            rows=tuple(rows_of(take_turns(runs, options.repeats), plain, "speed")),
        ),
        Section(
            key="cartpole-pruning",
            title="What pruning adds on the JAX-native CartPole-v1",
            text=f"{what}, masks only; ratio: time against dense.",
            unit="environment steps/s",
            rows=tuple(rows_of(take_turns(chunks, options.repeats), f"{hidden}, dense", "time")),
        ),
    ]
