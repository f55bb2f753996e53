"""A policy as its exported code plays it, and the observations that its 8-bit integers are calibrated with."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prune_rl.envs.task import Task
from prune_rl.evaluation.evaluate import evaluate_policy
from prune_rl.export.artefact import Artefact
from prune_rl.export.export_policy import ExportOptions, rendered
from prune_rl.export.metadata import metadata_of
from prune_rl.export.policy import Policy
from prune_rl.export.quantize import quantize

Kind = Literal["onnx", "c", "int8"]
CALIBRATION_EPISODES = 10
# No run evaluates with this seed by itself: ranges do not come from the episodes that they are judged on.
CALIBRATION_SEED = 2**31 - 1


class _Recorder(Artefact):
    """Acts as a policy does and keeps the observations."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.seen: list[npt.NDArray[np.float32]] = []

    def __call__(self, obs: npt.ArrayLike) -> Any:
        x = self.policy.flat(obs)
        self.seen.append(x.reshape(-1, self.policy.observation_size).copy())
        return self.policy(obs)


def calibration(
    policy: Policy, task: Task, episodes: int = CALIBRATION_EPISODES, seed: int = CALIBRATION_SEED
) -> npt.NDArray[np.float32]:
    """Observations float32[N, D] of a few episodes that ``policy`` plays; raises as `evaluate_policy`."""
    recorder = _Recorder(policy)
    # One environment at a time, since one whose episode has ended repeats its last observation.
    evaluate_policy(recorder, task, episodes=episodes, seed=seed, num_envs=1)
    return np.concatenate(recorder.seen)


def artefact(policy: Policy, kind: Kind, task: Task) -> Artefact:
    """``policy`` as its exported ONNX model, C code, or C code in 8-bit integers, ready to act.

    Raises:
        NoCompiler: "c" and "int8" need a C compiler.
        ImportError: "onnx" needs onnx and onnxruntime.
    """
    quantized = quantize(policy, calibration(policy, task)) if kind == "int8" else None
    options = ExportOptions("policy", metadata_of(policy), quantized)
    if kind == "onnx":
        from prune_rl.export.onnx_runtime import OnnxPolicy

        return OnnxPolicy(policy, rendered(policy, "onnx", options)["policy.onnx"])
    from prune_rl.export.c.library import compiled
    from prune_rl.export.c.source import CSource

    files = rendered(policy, "c", options)
    nbytes = None if quantized is None else quantized.nbytes
    return compiled(policy, CSource("policy", files["policy.h"].decode(), files["policy.c"].decode()), nbytes)


def step_seconds(task: Task) -> float | None:
    """How long one step of the environment lasts in its own time, where it says so.

    That is the attribute ``dt`` of MuJoCo's environments, ``tau`` of classic control, else one over the frames per
    second of its pictures.
    """
    env = task.make_gymnasium()
    try:
        for name in ("dt", "tau"):
            value = getattr(env.unwrapped, name, None)
            if isinstance(value, float) and value > 0.0:
                return value
        rate = env.metadata.get("render_fps")
        return 1.0 / rate if isinstance(rate, int | float) and rate > 0 else None
    finally:
        env.close()
