"""One action of an exported policy: C in float32 and 8-bit integers, ONNX Runtime, NumPy.

Times are of the processor, since everything runs on one thread: other processes disturb them less.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Section, rows_of
from experiments.benchmarks.turns import Contender, Timing, take_turns
from experiments.device.__main__ import random_policy
from prune_rl.export.c.actions import action_type
from prune_rl.export.c.int8 import c_int8_source
from prune_rl.export.c.library import FLAGS, compile_library
from prune_rl.export.c.source import CSource, c_source
from prune_rl.export.onnx_model import onnx_int8_model, onnx_model
from prune_rl.export.onnx_runtime import OnnxPolicy
from prune_rl.export.policy import Policy
from prune_rl.export.quantize import quantize
from prune_rl.spaces import Box, Discrete

OBSERVATIONS = 256
LIBM = ("-DPOLICY_LIBM", "-lm")


def repeating(policy: Policy, source: CSource) -> CSource:
    """``source`` with a loop over observations, so that a call from Python costs nothing."""
    size, name = policy.observation_size, source.name
    loop = (
        f"void {name}_repeat(const float *observations, {action_type(policy.action)} *action, uint32_t count)\n{{\n"
        f"    for (uint32_t i = 0U; i < count; i++) {{\n"
        f"        (void){name}_act(&observations[(i % {OBSERVATIONS}U) * {size}U], action);\n    }}\n}}\n"
    )
    header = source.header.replace(
        "\n#endif\n",
        f"\nvoid {name}_repeat(const float *, {action_type(policy.action)} *, uint32_t);\n#endif\n",
    )
    return dataclasses.replace(source, header=header, source=source.source + loop)


class InC:
    """Many actions of C code in a loop of C."""

    def __init__(
        self, policy: Policy, source: CSource, flags: tuple[str, ...], obs: Any, seconds: float
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="prune_rl-bench-") as folder:
            library = compile_library([repeating(policy, source)], Path(folder), (*FLAGS, *flags))
        self._repeat: Any = getattr(library, f"{source.name}_repeat")
        self._repeat.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        self._obs, self._action = obs, np.zeros(16, np.int64)
        self._count = 1000
        self._count = max(1000, round(seconds * self.run().speed))

    def run(self) -> Timing:
        """Actions and their seconds."""
        started = time.thread_time()
        self._repeat(self._obs.ctypes.data, self._action.ctypes.data, self._count)
        return Timing(time.thread_time() - started, self._count)


class Called:
    """Actions of something that Python calls with one observation after the other."""

    def __init__(self, act: Callable[[Any], Any], obs: list[Any], seconds: float) -> None:
        self._act, self._obs, self._rounds = act, obs, 1
        self._rounds = max(1, round(seconds * self.run().speed / len(obs)))

    def run(self) -> Timing:
        """Actions and their seconds."""
        act, started = self._act, time.thread_time()
        for _ in range(self._rounds):
            for obs in self._obs:
                act(obs)
        return Timing(time.thread_time() - started, self._rounds * len(self._obs))


def contenders(policy: Policy, seconds: float) -> Mapping[str, Contender]:
    """Everything that acts as ``policy`` does."""
    x = np.random.default_rng(1).standard_normal((OBSERVATIONS, policy.observation_size))
    mean, std, _ = policy.normalisation or (0.0, 1.0, 0.0)
    obs = np.ascontiguousarray(x * std + mean, np.float32)
    quantized = quantize(policy, obs)
    code, integers = c_source(policy), c_int8_source(quantized)
    found: dict[str, Contender] = {
        "C, float32, -O2": InC(policy, code, (), obs, seconds),
        "C, float32, -O2, libm's tanhf": InC(policy, code, LIBM, obs, seconds),
        "C, int8, -O2": InC(policy, integers, (), obs, seconds),
        "NumPy": Called(policy, list(obs), seconds),
    }
    for name, model in (("float32", onnx_model(policy)), ("int8", onnx_int8_model(quantized))):
        session: Any = OnnxPolicy(policy, model.SerializeToString()).session
        rows = [{"obs": row[None]} for row in obs]
        run: Callable[[Any], Any] = functools.partial(session.run, ["actions"])
        found[f"ONNX Runtime from Python, {name}"] = Called(run, rows, seconds)
    return found


def measure(options: Options) -> list[Section]:
    """Policies of the sizes that pruning ends with, and a dense one."""
    hopper = Box((-1.0,) * 3, (1.0,) * 3, (3,))
    policies = {
        "Hopper-v3, 17·17": random_policy((11, 17, 17, 3), hopper),
        "LunarLander-v2, 7·7": random_policy((8, 7, 7, 4), Discrete(4)),
        "Hopper-v3, 64·64": random_policy((11, 64, 64, 3), hopper),
    }
    return [
        Section(
            key=f"export-{number}",
            title=f"One action of an exported policy: {name}, tanh",
            text="Random weights, one observation at a time, processor time of one thread; ratio: time against C.",
            unit="actions/s",
            rows=tuple(
                rows_of(
                    take_turns(contenders(policy, options.seconds), options.repeats),
                    "C, float32, -O2",
                    "time",
                )
            ),
        )
        for number, (name, policy) in enumerate(policies.items())
    ]
