"""Short pruned runs of both learners on random rollouts, trained once per process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from prune_rl.learners import ppo, sac
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.pruning_config import Pruning
from prune_rl.spaces import Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import CONTINUOUS, DISCRETE, SMALL_SAC, moments_of, random_rollout
from tests.learners.schedules import by_schedule


class Run(NamedTuple):
    """What is trained; ``module`` is the learner's."""

    module: Any
    config: Any
    spec: Spec

    @property
    def prune(self) -> Pruning:
        assert self.config.prune is not None
        options: Pruning = self.config.prune
        return options

    @property
    def sizes(self) -> dict[str, int]:
        """Width at the start by group name, of actor and critic."""
        hidden = self.config.hidden
        return {f"{network}/layer_{i}": n for network in ("actor", "critic") for i, n in enumerate(hidden)}

    def final_width(self, name: str) -> int:
        sparsity = self.prune.sparsity if name.startswith("actor") else self.prune.critic_sparsity
        return self.sizes[name] - round(sparsity * self.sizes[name])

    def masked_trees(self, state: Any, name: str) -> list[Any]:
        """Params, both moments and, of a critic, the target critics: trees whose masked slices are 0."""
        if self.module is ppo:
            return [state.params, *(optax.tree.get(state.opt_state, moment) for moment in ("mu", "nu"))]
        target = [{"critic": state.networks.target_critic}] if name.startswith("critic") else []
        return [state.params, *moments_of(state.networks), *target]


class Trained(NamedTuple):
    states: list[Any]  # states[t] after t updates
    metrics: list[Any]  # metrics[t] of the update that led to states[t + 1]


UPDATE: dict[Any, Callable[..., Any]] = {
    module: quick_jit(module.update, static_argnames="config") for module in (ppo, sac)
}


@functools.cache
def trained(run: Run) -> Trained:
    states, metrics = [run.module.init(jax.random.key(0), run.config, run.spec)], []
    for t in range(run.config.num_updates):
        state, numbers = UPDATE[run.module](states[-1], random_rollout(t, run.config, run.spec), run.config)
        states.append(state)
        metrics.append(numbers)
    return Trained(states, metrics)


def lasting(config: Any, updates: int, prune: Pruning | None) -> Any:
    """``config`` for so many updates."""
    assert isinstance(config, LearnerConfig)
    return dataclasses.replace(config, total_timesteps=updates * config.steps_per_update, prune=prune)


PPO = ppo.Config(
    hidden=(16, 24), num_envs=2, num_steps=8, update_epochs=2, num_minibatches=2, learning_rate=0.01
)
# The first two updates are warm-up. An odd number of gradient steps, since a loop that makes two at a time is a larger
# program.
SAC = dataclasses.replace(SMALL_SAC, hidden=(8, 12), utd_ratio=5 / 24)

PPO_ACTOR = Run(ppo, lasting(PPO, 10, by_schedule(sparsity=0.75, begin=0.2, end=0.6)), DISCRETE)
SAC_ACTOR = Run(sac, lasting(SAC, 10, by_schedule(sparsity=0.75, begin=0.4, end=0.8)), DISCRETE)
# At a cadence that does not divide training, with the proximal step; PPO prunes over all of it.
BOTH = by_schedule(critic=True, critic_sparsity=0.5, every=2, strength=1e-3, metric="adam")
PPO_BOTH = Run(ppo, lasting(PPO, 7, dataclasses.replace(BOTH, sparsity=0.875, begin=0.0, end=1.0)), DISCRETE)
SAC_BOTH = Run(
    sac, lasting(SAC, 12, dataclasses.replace(BOTH, sparsity=0.75, begin=0.25, end=0.85)), CONTINUOUS
)
PPO_DENSE = Run(ppo, lasting(PPO, 10, None), DISCRETE)
SAC_DENSE = Run(sac, lasting(SAC, 10, None), DISCRETE)
