"""Peak memory of a training in a process of its own, and what it compiles with and without the cache.

Run as a script, this file is that process: it trains a little and writes one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Row, Section
from experiments.benchmarks.turns import Spread

COMPILATION = {"tracing": "trace_seconds", "lowering": "lower_seconds", "compiling": "compile_seconds"}
CONTENDERS = (("ppo", "CartPole-v1"), ("ppo", "Hopper-v3"), ("sac", "Hopper-v3"))


def train_a_little(algo: str, env: str, width: int) -> dict[str, float]:
    """Two updates of a dense run of the preset with other widths: MB at the peak, seconds of compilation."""
    import resource

    from experiments.benchmarks.our_training import Training
    from prune_rl import compilation_cache
    from prune_rl.training.config import Config
    from prune_rl.training.engines.timing import Timing
    from prune_rl.training.presets import find_preset, load_preset

    compilation_cache.enable()
    path = find_preset(env, algo)
    assert path is not None
    learner: Any = load_preset(path, Config(env=env, algo=algo)).learner
    learner = type(learner)(**{**vars(learner), "hidden": (width, width), "prune": None})
    timing = Timing()
    with timing.counting_programs():
        training = Training(env, "auto", learner, learner.steps_per_update, learner.steps_per_update)
        training.run()
    training.close()
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"megabytes": peak, **{name: getattr(timing, field) for name, field in COMPILATION.items()}}


def in_a_process(algo: str, env: str, width: int, cache: str) -> dict[str, float]:
    """The same in a new process, with this folder for compiled programs."""
    settings = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {key: value for key, value in os.environ.items() if key not in settings}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.fresh_processes", algo, env, str(width)],
        env={**environment, "XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: Options) -> list[Section]:
    """Memory by width, and compilation of the first and of the second process."""
    memory: list[Row] = []
    compilation: list[Row] = []
    for algo, env in CONTENDERS:
        name = f"{algo.upper()}, {env}"
        peaks: dict[int, list[float]] = {options.hidden: [], options.narrow: []}
        first: list[dict[str, float]] = []
        second: list[dict[str, float]] = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                first.append(in_a_process(algo, env, options.hidden, cache))
                second.append(in_a_process(algo, env, options.hidden, cache))
                peaks[options.hidden].append(second[-1]["megabytes"])
                # Compilation takes memory, too: peaks are those of processes that find their programs in the cache.
                in_a_process(algo, env, options.narrow, cache)
                peaks[options.narrow].append(in_a_process(algo, env, options.narrow, cache)["megabytes"])
        base = f"{name}, {options.hidden}·{options.hidden}"
        for width, own in peaks.items():
            memory.append(_row(f"{name}, {width}·{width}", own, base, peaks[options.hidden]))
        for part in COMPILATION:
            ones, others = ([found[part] for found in both] for both in (first, second))
            compilation.append(_row(f"{name}, {part}, first process", ones, f"{name}, {part}, first", ones))
            compilation.append(
                _row(f"{name}, {part}, second process", others, f"{name}, {part}, first", ones)
            )
    return [
        Section(
            key="memory",
            title="Peak memory",
            text="Resident memory of a new process at its peak, two updates of a dense run with the options of the "
            "preset, whose replay buffer has its full size; programs come from the cache. Ratio: against the wide "
            "network.",
            unit="MB",
            rows=tuple(memory),
        ),
        Section(
            key="compilation",
            title="Compilation",
            text=f"Dense {options.hidden}·{options.hidden} in a new process, cache empty (first) and filled (second). "
            "Tracing counts nested programs twice. Ratio: seconds against the first process.",
            unit="s",
            rows=tuple(compilation),
        ),
    ]


def _row(name: str, own: list[float], against: str, baseline: list[float]) -> Row:
    ratio = Spread.of([a / b for a, b in zip(own, baseline, strict=True)])
    return Row(name, statistics.median(own), against, ratio, "time", len(own))


if __name__ == "__main__":
    print(json.dumps(train_a_little(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
