"""What every learner's module offers to the rest of the package, and which learners there are."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners import ppo, sac
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.rollout import Metrics as Metrics
from prune_rl.learners.rollout import Rollout
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.pruning.shrinking import full_masks
from prune_rl.spaces import Spec

Config = LearnerConfig


class State(Protocol):
    """A train state, for one seed or with a leading seed axis on all but ``step``; see ``ppo.State``, ``sac.State``."""

    @property
    def params(self) -> dict[str, Any]: ...

    @property
    def masks(self) -> dict[str, jax.Array]: ...

    @property
    def obs_stats(self) -> RunningStatistics: ...

    @property
    def step(self) -> jax.Array: ...


class Learner(Protocol):
    """A learner's module: pure functions, written for one seed, over its own ``State`` and ``Config``.

    It may also have ``shrink(state, widths, config)``, which gathers the state into arrays of {group name: neurons};
    its ``State`` then holds a ``PruningState`` as ``pruning``. Without it, arrays keep their size. One whose ``Config``
    can be ``acts_ahead`` has ``acting(state)``, the part of a state that ``act`` reads. One whose actor puts out a
    log standard deviation beside the mean may bound it by ``LOG_STD_RANGE``. One whose state depends on the length of
    training has ``extend(state, config)``, the state at the end of a run as one of a longer run. One whose Box actions
    are not yet those of the environment has ``environment_actions(action, spec)``.
    """

    @property
    def Config(self) -> type[Any]: ...

    @property
    def VMAP_AXES(self) -> Any: ...

    def init(self, key: jax.Array, config: Any, spec: Spec) -> Any: ...

    def act(self, state: Any, obs: jax.Array, noise: jax.Array, config: Any) -> jax.Array: ...

    def action_noise(self, key: jax.Array, shape: tuple[int, ...], spec: Spec) -> jax.Array: ...

    def update(self, state: Any, rollout: Rollout, config: Any) -> tuple[Any, Metrics]: ...

    def squashes(self, spec: Spec) -> bool: ...

    def all_groups(self, params: Any, config: Any) -> NeuronGroups: ...

    def prunable_groups(self, params: Any, config: Any) -> NeuronGroups: ...


LEARNERS: dict[str, Learner] = {"ppo": ppo, "sac": sac}


def environment_actions(config: Config, action: Any, spec: Spec) -> Any:
    """Actions of a learner's ``act`` as the environment takes them, [..., size] for Box."""
    convert = getattr(learner_of(config), "environment_actions", None)
    return action if convert is None else convert(action, spec)


def shrinks(config: Config) -> bool:
    """Whether the learner can go on in smaller arrays: its module has ``shrink(state, widths, config)``."""
    return hasattr(learner_of(config), "shrink")


def masks_at_start(state: State) -> dict[str, Any]:
    """{group name: bool[…, size]} over the neurons that there were at the start, in NumPy; leading axes stay."""
    pruning = getattr(state, "pruning", None)
    if pruning is None:  # a learner whose arrays keep their size
        return {name: np.asarray(mask) for name, mask in state.masks.items()}
    return full_masks(pruning)


def learner_of(config: Config) -> Learner:
    """The learner whose hyperparameters ``config`` holds."""
    for learner in LEARNERS.values():
        if isinstance(config, learner.Config):
            return learner
    raise TypeError(f"{type(config).__name__} is the configuration of none of {', '.join(LEARNERS)}")
