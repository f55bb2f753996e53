"""An exported ONNX model, played by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.artefact import Artefact
from prune_rl.export.policy import Policy


class MissingRuntime(ImportError, ValueError):
    """The package onnxruntime is not installed; the message says how to get it."""


class OnnxPolicy(Artefact):
    """The actions of a policy, computed by ONNX Runtime on one thread of the CPU."""

    def __init__(self, policy: Policy, model: bytes) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingRuntime(
                "playing an ONNX model needs the package onnxruntime, which is not installed: pip install "
                "'prune_rl[onnx]'"
            ) from error
        self.policy = policy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, obs: ArrayLike) -> Any:
        """See `Policy.__call__`."""
        x = self.policy.flat(obs)
        if np.isnan(x).any():
            raise ValueError("a component of the observation is NaN, on which this policy cannot act")
        (actions,) = self.session.run(["actions"], {"obs": x.reshape(-1, x.shape[-1])})
        shape = (*x.shape[:-1], *actions.shape[1:])
        return actions.reshape(shape)[()]
