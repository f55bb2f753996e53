"""Time per update and seed of many seeds beside that of one seed alone, PPO on CartPole-v1, on all cores of a CPU.

    python -m experiments.benchmarks.many_seeds                    # 64 seeds, 256·256 neurons
    python -m experiments.benchmarks.many_seeds --hidden 64 64

Every contender runs in a process of its own, since the number of devices of a process is fixed. Dense updates, the
environment's steps included, after compilation; contenders take turns.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from typing import Annotated

import tyro
from tyro.conf import arg

UPDATES = 128  # of one seed; many seeds make a multiple of it all together


@dataclasses.dataclass(frozen=True)
class Options:
    """Time per update and seed, many seeds against one."""

    seeds: int = 64
    """How many seeds are trained together."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of actor and critic."""
    repeats: int = 3
    """How often each contender is timed."""
    only: Annotated[int | None, arg(metavar="SEEDS")] = None
    """Time this number of seeds once in this process, and print seconds per update and seed."""


def seconds(seeds: int, hidden: tuple[int, ...]) -> float:
    """Per update and seed, in this process."""
    from prune_rl.training.engines.seed_devices import use_all_cores

    use_all_cores(seeds)
    from prune_rl.cli.train import parse_train
    from prune_rl.envs.task import resolve_task
    from prune_rl.training.engines import DeviceEngine

    widths = [str(width) for width in hidden]
    config, _ = parse_train(["CartPole-v1", "--seeds", str(seeds), "--method", "dense", "--hidden", *widths])
    task = resolve_task(config.env, config.backend, config.env_kwargs)
    config = config.resolved(task)
    updates = max(2, UPDATES // seeds)
    engine = DeviceEngine(task.jax_env(), config.all_seeds, config.learner, length=2)
    engine.advance(2)
    start = time.perf_counter()
    engine.advance(updates)
    return (time.perf_counter() - start) / updates / seeds


def main(options: Options) -> None:
    """Print a line per contender, and the ratio of the medians with that of each turn."""
    if options.only is not None:
        print(seconds(options.only, options.hidden))
        return
    times: dict[int, list[float]] = {1: [], options.seeds: []}
    for _ in range(options.repeats):
        for seeds, measured in times.items():
            command = [
                sys.executable,
                "-m",
                "experiments.benchmarks.many_seeds",
                "--only",
                str(seeds),
                "--hidden",
            ]
            done = subprocess.run(
                [*command, *map(str, options.hidden)], check=True, capture_output=True, text=True
            )
            measured.append(float(done.stdout.split()[-1]))
    for seeds, measured in times.items():
        print(f"{seeds:3} seeds: {1e3 * statistics.median(measured):.1f} ms per update and seed")
    ratios = [many / one for one, many in zip(*times.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(tyro.cli(Options))
