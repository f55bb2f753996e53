"""Steps per second of rollouts in host environments, by backend."""

from __future__ import annotations

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.bare_updates import sac_settings
from experiments.benchmarks.options import Options
from experiments.benchmarks.our_training import Training
from experiments.benchmarks.table import Row, Section, rows_of
from experiments.benchmarks.turns import Timing, take_turns
from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector
from prune_rl.learners import ppo

ENVS = ("Hopper-v3", "Walker2d-v3", "LunarLander-v2")
NUM_ENVS = (8, 16)
STEPS = 128
OVERLAP_WIDTHS = (256, 64, 16)


class HostRollout:
    """Acting with a fresh PPO policy and stepping, one transfer each way per step, as a training does."""

    def __init__(self, env_id: str, backend: str, num_envs: int, seconds: float) -> None:
        self._env = make_vector(resolve_task(env_id, backend), num_envs)
        self._num_envs = num_envs
        config = ppo.Config(num_envs=num_envs, prune=None)
        key, noise_key = jax.random.split(jax.random.key(0))
        self._state = jax.jit(lambda key: ppo.init(key, config, self._env.spec))(key)
        self._noise = ppo.action_noise(noise_key, (STEPS, num_envs), self._env.spec)

        def act(state: ppo.State, obs: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
            return ppo.act(state, obs, noise[t], config)

        self._act = jax.jit(act)
        self._obs = self._env.reset(0)
        self._rollouts = 1
        self.run()
        self._rollouts = max(1, math.ceil(seconds / self.run().seconds))

    def run(self) -> Timing:
        """Environment steps and their seconds."""
        started = time.perf_counter()
        for _ in range(self._rollouts):
            for t in range(STEPS):
                action = np.asarray(self._act(self._state, jnp.asarray(self._obs), self._noise, np.int32(t)))
                self._obs, *_ = self._env.step(action)
        return Timing(time.perf_counter() - started, self._rollouts * STEPS * self._num_envs)

    def close(self) -> None:
        self._env.close()


def measure(options: Options) -> list[Section]:
    """One section; EnvPool against Gymnasium for each environment and each number of environments."""
    rows: list[Row] = []
    for env_id in ENVS:
        for num_envs in NUM_ENVS:
            rollouts = {
                f"{env_id} × {num_envs}, {backend}": HostRollout(env_id, backend, num_envs, options.seconds)
                for backend in ("gymnasium", "envpool")
            }
            rows += rows_of(
                take_turns(rollouts, options.repeats), f"{env_id} × {num_envs}, gymnasium", "speed"
            )
            for each in rollouts.values():
                each.close()
    return [
        Section(
            key="rollout",
            title="Host environments",
            text=f"Rollouts of {STEPS} steps with a PPO policy of 256·256 in the loop, no learning; ratio: speed "
            "against Gymnasium with as many environments.",
            unit="environment steps/s",
            rows=tuple(rows),
        ),
        overlapped(options),
    ]


def overlapped(options: Options) -> Section:
    """SAC with and without ``overlap``, where learning takes most of the time and where it takes little."""
    rows: list[Row] = []
    for width in OVERLAP_WIDTHS:
        config = dataclasses.replace(sac_settings(width), buffer_size=20_000, learning_starts=64)
        sides = {
            f"{width}·{width}{', overlap' * overlap}": Training(
                "Hopper-v3", "auto", dataclasses.replace(config, overlap=overlap), options.steps, 1024
            )
            for overlap in (False, True)
        }
        rows += rows_of(take_turns(sides, options.repeats), f"{width}·{width}", "speed")
        for each in sides.values():
            each.close()
    return Section(
        key="overlap",
        title="SAC on Hopper-v3 that steps while it learns",
        text="Training of one seed, batch 256, one gradient step per environment step, equal widths in all networks; "
        "ratio: speed with --overlap against that without.",
        unit="environment steps/s",
        rows=tuple(rows),
    )
