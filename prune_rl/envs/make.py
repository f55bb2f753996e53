"""Which implementation steps an environment on the host, and what is to be said about the choice.

Backends are "jax" (steps on the device, see `registry.make_jax`), "gymnasium" and "envpool" (step on the host).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from prune_rl.envs import registry
from prune_rl.spaces import Spec

HOST_BACKENDS = ("gymnasium", "envpool")

_ENVPOOL_NOTES = {
    "LunarLander-v2": (
        "EnvPool runs its own version of the task, which agrees with Gymnasium's in distribution; "
        "the same seed gives other episodes"
    ),
    **dict.fromkeys(
        registry.MJX_IDS,
        "EnvPool runs its own version of the task, which agrees with Gymnasium's to the tolerance of MuJoCo's solver; "
        "the same seed gives other episodes",
    ),
}


class HostEnvironment(Protocol):
    """A batch of environments stepped by Python; `prune_rl.envs.gymnasium_vector.HostEnv` says what its methods do."""

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


def make_host(env_id: str, backend: str, num_envs: int) -> HostEnvironment:
    """Make a batch of environments that are stepped on the host.

    Args:
        env_id: see ``registry.resolve``.
        backend: "gymnasium" or "envpool".
        num_envs: how many environments.

    Raises:
        ValueError: ``num_envs`` is not positive, or ``backend`` is another one or cannot run the environment.
        UnsupportedEnvironment: see ``registry.adapter_of``; or EnvPool is missing (with the install line).
    """
    offered = [name for name in registry.backends(env_id) if name in HOST_BACKENDS]
    if backend not in offered:
        raise ValueError(
            f"{env_id} cannot be stepped on the host by {backend!r}, only by: {', '.join(offered)}"
        )
    if backend == "envpool":
        from prune_rl.envs.envpool import EnvPoolEnv

        return EnvPoolEnv(env_id, num_envs)
    from prune_rl.envs.gymnasium_vector import HostEnv

    return HostEnv(env_id, num_envs)


def note(env_id: str, backend: str, platform: str) -> str:
    """One line about a choice that may surprise, else "".

    Args:
        env_id: see ``registry.resolve``.
        backend: one of its backends.
        platform: where JAX computes: "cpu", "gpu" or "tpu", see ``jax.default_backend``.
    """
    if backend == "jax" and env_id in registry.MJX_IDS and platform == "cpu":
        return (
            "on a CPU, MJX is an order of magnitude slower than MuJoCo; "
            "use --backend gymnasium or --backend envpool there"
        )
    if backend == "envpool":
        return _ENVPOOL_NOTES.get(env_id, "")
    return ""
