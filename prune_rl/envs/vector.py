"""Batches of environments that are stepped on the host, by Gymnasium or by EnvPool."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from prune_rl.envs.task import Task
from prune_rl.spaces import Spec


class VectorEnv(Protocol):
    """A batch of environments stepped by Python; `prune_rl.envs.gymnasium_vector.HostEnv` documents the methods."""

    @property
    def spec(self) -> Spec: ...

    def reset(self, seed: int) -> npt.NDArray[np.float32]: ...

    def step(
        self, action: npt.ArrayLike
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        npt.NDArray[np.float32],
    ]: ...

    def close(self) -> None: ...


def make_vector(task: Task, num_envs: int) -> VectorEnv:
    """Make a batch of environments that are stepped on the host.

    Raises:
        ValueError: ``num_envs`` is not positive, or the backend is "jax".
        UnsupportedEnvironment: see ``Task.adapter``; or EnvPool is missing (with the install line).
    """
    if task.backend == "envpool":
        from prune_rl.envs.envpool import EnvPoolEnv

        return EnvPoolEnv(task, num_envs)
    if task.backend == "gymnasium":
        from prune_rl.envs.gymnasium_vector import HostEnv

        return HostEnv(task, num_envs)
    raise ValueError(
        f"backend {task.backend!r} steps {task.env_id} on the device: call jax_env(), or choose another backend"
    )
