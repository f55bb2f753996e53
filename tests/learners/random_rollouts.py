"""Rollouts drawn at random, with every kind of end in them, for what needs data but no environment."""

from __future__ import annotations

import numpy as np

from prune_rl.learners import ppo
from prune_rl.learners.config import Pruning
from prune_rl.spaces import Box, Discrete, Spec

DISCRETE = Spec(observation_size=3, action=Discrete(4))
CONTINUOUS = Spec(observation_size=3, action=Box((-1.0, -1.0), (1.0, 1.0), (2,)))
SMALL = ppo.Config(
    hidden=(6, 5), num_envs=3, num_steps=8, epochs=2, minibatches=4, prune=Pruning(enabled=False)
)


def random_rollout(
    seed: int, config: ppo.Config, spec: Spec, *, ends: float = 0.2, cut: bool = False
) -> ppo.Rollout:
    """A rollout [T, N, …] whose steps end an episode with probability ``ends`` in each of the two ways."""
    rng = np.random.default_rng(seed)
    lead = (config.num_steps, config.num_envs)
    obs, next_obs = rng.normal(1.0, 2.0, size=(2, *lead, spec.observation_size)).astype(np.float32)
    if isinstance(spec.action, Discrete):
        action = rng.integers(spec.action.n, size=lead).astype(np.int32)
    else:
        action = rng.normal(size=(*lead, spec.action.size)).astype(np.float32)
    reward = rng.normal(1.0, 3.0, size=lead).astype(np.float32)
    terminated, truncated = rng.random((2, *lead)) < ends / 2
    return ppo.Rollout(obs, action, reward, terminated, truncated, next_obs, np.array(cut))  # type: ignore[arg-type]
