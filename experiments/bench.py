"""Speed of training on the JAX-native CartPole-v1, and what pruning adds to it: `make bench`.

Prints a Markdown table. Times are medians over alternating repeats in one process, so that the ratios hold on a machine
whose speed drifts; quote the ratios, and the absolute numbers only with the machine they were measured on.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.markdown import Markdown

from prune_rl.envs.cartpole import CartPole
from prune_rl.learners import ppo
from prune_rl.learners.pruning_config import Pruning
from prune_rl.training.engines import Runner, init_runner, make_chunk, seed_keys


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to measure."""

    repeats: int = 7
    """Timed repeats of every variant; medians are reported."""
    updates: int = 100
    """Updates per repeat of the 64-64 run; the 256-256 runs make a quarter of it."""


def settings(hidden: tuple[int, ...], prune: Pruning | None) -> ppo.Config:
    """4 environments x 128 steps, 4 epochs x 4 minibatches."""
    return ppo.Config(
        hidden=hidden,
        num_envs=4,
        num_steps=128,
        update_epochs=4,
        num_minibatches=4,
        learning_rate=2.5e-4,
        ent_coef=0.01,
        total_timesteps=1_000_000 * 4 * 128,
        prune=prune,
    )


class Variant:
    """A compiled chunk of training and the state it carries."""

    def __init__(self, config: ppo.Config, updates: int) -> None:
        self.config, self.updates = config, updates
        self.runner: Runner = init_runner(CartPole(), seed_keys([0]), config)
        chunk = make_chunk(CartPole(), config, updates)
        started = time.perf_counter()
        compiled: Any = chunk.lower(self.runner, jnp.int32(updates)).compile()
        self.compile_seconds = time.perf_counter() - started
        self.chunk = compiled
        self.run()

    def run(self) -> float:
        """Seconds for one chunk."""
        started = time.perf_counter()
        self.runner, _ = self.chunk(self.runner, jnp.int32(self.updates))
        jax.tree.map(lambda x: x.block_until_ready(), self.runner)
        return time.perf_counter() - started

    def steps(self) -> int:
        """Environment steps in one chunk."""
        return self.updates * self.config.num_envs * self.config.num_steps


def measure(bench: Bench) -> str:
    """The table."""
    off = None
    # begin = 0: the threshold routine runs at every update, as it does between begin and end of a real run.
    on = Pruning(begin=0.0, end=1.0, sparsity=0.9)
    prox = dataclasses.replace(on, strength=1e-4)
    surgeon = dataclasses.replace(on, score="surgeon", refit=True, every=2)
    short = max(1, bench.updates // 4)
    variants = {
        "64-64, dense": Variant(settings((64, 64), off), bench.updates),
        "256-256, dense": Variant(settings((256, 256), off), short),
        "256-256, importance + threshold": Variant(settings((256, 256), on), short),
        "256-256, importance + threshold + prox": Variant(settings((256, 256), prox), short),
        "256-256, surgeon + refit, every 2nd update": Variant(settings((256, 256), surgeon), short),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(bench.repeats):
        for name, variant in variants.items():
            times[name].append(variant.run())
    baseline = times["256-256, dense"]
    rows = ["| variant | steps/s | time against 256-256 dense | compile, s |", "|---|---|---|---|"]
    for name, variant in variants.items():
        speed = variant.steps() / statistics.median(times[name])
        ratio = "" if name.startswith("64") else f"{statistics.median(_ratios(times[name], baseline)):.3f}"
        rows.append(f"| {name} | {speed:,.0f} | {ratio} | {variant.compile_seconds:.1f} |")
    return "\n".join(rows)


def _ratios(times: list[float], baseline: list[float]) -> list[float]:
    return [a / b for a, b in zip(times, baseline, strict=True)]


if __name__ == "__main__":
    Console().print(Markdown(measure(tyro.cli(Bench))))
