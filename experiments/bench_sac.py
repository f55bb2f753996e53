"""Speed of our SAC on Hopper-v3 next to SBX's, the JAX SAC of Stable-Baselines3's authors: `make bench SBX=1`.

SBX brings Stable-Baselines3 and torch, so it lives in an environment of its own, named with ``--sbx-python``; without
one, our side alone is measured. Both sides do what a training does, environment included, with one update per
environment step; they take turns on the same machine, and only one of them is active at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from rich.console import Console
from rich.markdown import Markdown

from prune_rl.envs.task import resolve_task
from prune_rl.learners import sac
from prune_rl.training.config import Config
from prune_rl.training.engines import Engine
from prune_rl.training.loop import make_engine

INSTALL = "make bench SBX=1 installs it, or give --sbx-python a Python with experiments/sbx-requirements.txt"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to measure."""

    sbx_python: Path | None = None
    """A Python that has sbx-rl; without it, our side alone is measured."""
    repeats: int = 9
    """Timed repeats of either side, in turns; medians are reported."""
    steps: int = 1792
    """Environment steps of a repeat, rounded up to whole rollouts: about 10 s of SBX on two idle cores."""
    num_envs: int = 8
    """Our environments; SBX has one."""
    num_steps: int = 8
    """Steps of each of our environments between two calls of the update, which then makes as many updates as there
    were steps in all."""
    sbx_every: int = 1
    """SBX's train_freq and gradient_steps: steps, then as many updates in one call. 1 is its default."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden widths of actor and critics."""
    batch_size: int = 256
    """Transitions of one update."""
    buffer_size: int = 1_000_000
    """Transitions that the replay buffer has room for."""
    learning_starts: int = 256
    """Steps of random actions before the first update."""
    warm_up: int = 1024
    """Steps before the clock starts, random ones included: compilation falls in here."""

    @property
    def rollout(self) -> int:
        """Our environment steps between two calls of the update."""
        return self.num_envs * self.num_steps

    def rounded(self) -> Bench:
        """With ``steps`` and ``warm_up`` whole rollouts of both sides; raises ``ValueError`` for bad values."""
        for name in ("repeats", "steps", "num_envs", "num_steps", "sbx_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.rollout % self.sbx_every and self.sbx_every % self.rollout:
            raise ValueError(
                f"sbx_every must divide num_envs * num_steps = {self.rollout} or be a multiple of it, so that "
                f"both sides make the same steps; got {self.sbx_every}"
            )
        unit = max(self.rollout, self.sbx_every)
        if self.warm_up < self.learning_starts + 2 * unit:
            raise ValueError(
                f"warm_up must be >= learning_starts + 2 rollouts = {self.learning_starts + 2 * unit}, so that "
                f"everything is compiled before the clock starts; got {self.warm_up}"
            )
        steps, warm_up = (-(-n // unit) * unit for n in (self.steps, self.warm_up))
        return dataclasses.replace(self, steps=steps, warm_up=warm_up)


@dataclasses.dataclass(frozen=True)
class Timing:
    """One repeat."""

    seconds: float
    steps: int
    updates: int

    @property
    def speed(self) -> float:
        """Environment steps per second."""
        return self.steps / self.seconds


class OurSide:
    """Our SAC behind the engine that `prune-rl train` uses, warmed up."""

    def __init__(self, bench: Bench) -> None:
        self.name = f"prune_rl, {bench.num_envs} × {bench.num_steps} steps, then {bench.rollout} updates"
        self._bench = bench
        self._engine = ours(bench)
        self.run(bench.warm_up)

    def run(self, steps: int) -> Timing:
        """Train for ``steps`` more; seconds until the last update has left the device."""
        before = _updates(self._engine)
        started = time.perf_counter()
        self._engine.advance(steps // self._bench.rollout)
        jax.tree.map(lambda x: x.block_until_ready(), self._engine.tree)
        seconds = time.perf_counter() - started
        return Timing(seconds, steps, _updates(self._engine) - before)

    def versions(self) -> dict[str, str]:
        packages = {"JAX": "jax", "Gymnasium": "gymnasium", "MuJoCo": "mujoco"}
        found = {name: metadata.version(package) for name, package in packages.items()}
        return {**found, "Python": platform.python_version(), "device": jax.default_backend()}

    def close(self) -> None:
        self._engine.close()


def ours(bench: Bench) -> Engine[Any]:
    """A dense SAC run of a million steps, as `prune-rl train Hopper-v3 --algo sac --method dense` would begin it."""
    learner = sac.Config(
        hidden=bench.hidden,
        batch_size=bench.batch_size,
        utd_ratio=1.0,
        num_envs=bench.num_envs,
        num_steps=bench.num_steps,
        learning_starts=bench.learning_starts,
        buffer_size=bench.buffer_size,
        total_timesteps=1_000_000,
    )
    config = Config(env="Hopper-v3", algo="sac", method="dense", backend="gymnasium", learner=learner)
    task = resolve_task(config.env, config.backend)
    return make_engine(config.resolved(task), task)


def _updates(engine: Engine[Any]) -> int:
    """Gradient steps so far, as Adam counts them; the fewest, if the networks differ."""
    adams = optax.tree.get_all_with_path(engine.state, "ScaleByAdamState")
    return min(int(adam.count.reshape(-1)[0]) for _, adam in adams)


class SbxSide:
    """SBX's SAC in a process of its own (`sbx_worker.py`), warmed up; idle between two calls of ``run``."""

    def __init__(self, bench: Bench, python: Path) -> None:
        worker = Path(__file__).with_name("sbx_worker.py")
        options = {
            "--hidden": bench.hidden,
            "--batch-size": [bench.batch_size],
            "--buffer-size": [bench.buffer_size],
            "--learning-starts": [bench.learning_starts],
            "--warm-up": [bench.warm_up],
            "--every": [bench.sbx_every],
        }
        arguments = [str(part) for flag, values in options.items() for part in (flag, *values)]
        try:
            self._process = subprocess.Popen(
                [python, worker, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise SystemExit(f"--sbx-python {python} cannot be run ({error}): {INSTALL}") from error
        self._versions: dict[str, str] = self._read()
        every = f"{bench.sbx_every} step{'s' if bench.sbx_every > 1 else ''}"
        updates = f"{bench.sbx_every} update{'s' if bench.sbx_every > 1 else ''}"
        self.name = f"SBX {self._versions['SBX']}, {every}, then {updates}"

    def run(self, steps: int) -> Timing:
        """Train for ``steps`` more."""
        assert self._process.stdin is not None
        # If the process is gone, reading says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"run {steps}\n")
            self._process.stdin.flush()
        return Timing(**self._read())

    def versions(self) -> dict[str, str]:
        return self._versions

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"SBX's process ended with exit code {self._process.wait()}; its error is above")
        reply = json.loads(line)
        if "error" in reply:
            raise SystemExit(f"--sbx-python lacks a package ({reply['error']}): {INSTALL}")
        return reply


def measure(bench: Bench) -> str:
    """The table, and the versions below it."""
    sides: list[OurSide | SbxSide] = [OurSide(bench)]
    try:
        if bench.sbx_python is not None:
            sides.append(SbxSide(bench, bench.sbx_python))
            devices = [side.versions()["device"] for side in sides]
            if devices[0] != devices[1]:
                raise SystemExit(
                    f"JAX runs on {devices[0]} here and on {devices[1]} for SBX: "
                    "set JAX_PLATFORMS=cpu, or install the same JAX for both"
                )
        timings: list[list[Timing]] = [[] for _ in sides]
        for repeat in range(bench.repeats):
            # The other one first in every second pair, so that a drift of the machine favours neither.
            for index in range(len(sides))[:: -1 if repeat % 2 else 1]:
                timing = sides[index].run(bench.steps)
                if timing.updates != timing.steps:
                    raise SystemExit(
                        f"{sides[index].name}: {timing.updates} gradient steps in {timing.steps} environment steps, "
                        "where a comparison needs as many of the one as of the other"
                    )
                timings[index].append(timing)
        return report(sides, timings)
    finally:
        for side in sides:
            side.close()


def report(sides: list[OurSide | SbxSide], timings: list[list[Timing]]) -> str:
    """Markdown from one list of timings per side; the last side is what the ratios refer to."""
    rows = [
        "| implementation | steps/s (median) | gradient steps per environment step | ratio (min–max over pairs) |",
        "|---|---|---|---|",
    ]
    speeds = [[timing.speed for timing in repeats] for repeats in timings]
    for side, repeats, own in zip(sides, timings, speeds, strict=True):
        updates = sum(timing.updates for timing in repeats) / sum(timing.steps for timing in repeats)
        ratio = "1" if len(sides) > 1 else ""
        if side is not sides[-1]:
            pairs = [a / b for a, b in zip(own, speeds[-1], strict=True)]
            overall = statistics.median(own) / statistics.median(speeds[-1])
            ratio = f"{overall:.2f} ({min(pairs):.2f}–{max(pairs):.2f})"
        rows.append(f"| {side.name} | {statistics.median(own):,.0f} | {updates:.3f} | {ratio} |")
    rows.append("")
    for side in sides:
        found = ", ".join(f"{name} {version}" for name, version in side.versions().items())
        rows += [f"{side.name.split(',')[0]}: {found}", ""]
    return "\n".join(rows)


def main(bench: Bench) -> None:
    """Measure and print."""
    console = Console()
    if bench.sbx_python is None:
        console.print(
            f"SBX is left out. To compare: {INSTALL}", soft_wrap=True, markup=False, highlight=False
        )
    try:
        bench = bench.rounded()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    console.print(Markdown(measure(bench)))


if __name__ == "__main__":
    main(tyro.cli(Bench))
