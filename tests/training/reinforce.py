"""A third learner in one file: REINFORCE (Williams 1992) of a linear policy, or of one with hidden layers to prune."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

import prune_rl
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.networks import apply_mlp, init_mlp
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.rollout import Rollout
from prune_rl.learners.running_statistics import RunningStatistics
from prune_rl.spaces import Spec
from tests.learners.schedules import by_schedule


@dataclasses.dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyperparameters of REINFORCE."""

    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers; none for a linear policy."""
    activation: str = "tanh"
    """Activation of the hidden layers."""
    num_envs: int = 8
    """Environments per seed, stepped together."""
    num_steps: int = 64
    """Steps per environment between two updates."""
    learning_rate: float = 0.05
    """Step size of gradient ascent."""
    learning_rate_end: float = 0.0
    """Of no effect."""
    gamma: float = 0.99
    """Discount factor."""
    baseline: bool = True
    """Subtract the mean return of the rollout."""
    normalize_obs: bool = False
    """Not offered."""
    clip_obs: float = 10.0
    """Of no effect."""
    total_timesteps: int = 20_000
    """Environment steps per seed in the whole of training."""
    prune: Pruning | None = by_schedule(sparsity=0.5)
    """How neurons are removed."""

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        return -(-self.total_timesteps // self.steps_per_update)

    def check(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if self.prune is not None:
            self.prune.check(self.hidden)


@struct.dataclass
class State:
    params: Any
    masks: Any
    obs_stats: Any
    step: Any


VMAP_AXES = State(params=0, masks=0, obs_stats=0, step=None)


def init(key: jax.Array, config: Config, spec: Spec) -> State:
    sizes = [spec.observation_size, *config.hidden, spec.action.num_outputs]
    params = {"actor": init_mlp(key, sizes, 0.01)}
    masks = prune_rl.init_masks(prunable_groups(params, config))
    return State(params, masks, RunningStatistics.create((spec.observation_size,)), jnp.int32(0))


def act(state: State, obs: jax.Array, noise: jax.Array, config: Config) -> jax.Array:
    logits = apply_mlp(state.params["actor"], obs, config.activation)
    return jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)


def action_noise(key: jax.Array, shape: tuple[int, ...], spec: Spec) -> jax.Array:
    return jax.random.gumbel(key, (*shape, spec.action.num_outputs))


def squashes(spec: Spec) -> bool:
    return False


def all_groups(params: Any, config: Config) -> NeuronGroups:
    first = params["actor"]["layer_0" if config.hidden else "head"]
    obs = jnp.zeros((1, first["kernel"].shape[0]))
    return prune_rl.find_groups(lambda p, x: apply_mlp(p["actor"], x, config.activation), params, obs)


def prunable_groups(params: Any, config: Config) -> NeuronGroups:
    return NeuronGroups(()) if config.prune is None else all_groups(params, config)


def returns_to_go(rollout: Rollout, gamma: float) -> jax.Array:
    """Discounted returns [T, N] of what is left of each episode, up to the end of the rollout."""

    def back(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, ends = now
        value = reward + gamma * later * ~ends
        return value, value

    ends = rollout.terminated | rollout.truncated
    return jax.lax.scan(back, jnp.zeros(rollout.reward.shape[1]), (rollout.reward, ends), reverse=True)[1]


def loss(params: Any, rollout: Rollout, config: Config) -> jax.Array:
    weight = returns_to_go(rollout, config.gamma)
    weight = weight - config.baseline * jnp.mean(weight)
    log_probs = jax.nn.log_softmax(apply_mlp(params["actor"], rollout.obs, config.activation))
    chosen = jnp.take_along_axis(log_probs, rollout.action[..., None], axis=-1)[..., 0]
    return -jnp.mean(chosen * weight)


def update(state: State, rollout: Rollout, config: Config) -> tuple[State, dict[str, Any]]:
    value, grads = jax.value_and_grad(loss)(state.params, rollout, config)
    params = jax.tree.map(lambda p, g: p - config.learning_rate * g, state.params, grads)
    masks, step = state.masks, state.step + 1
    episodes = jnp.sum(rollout.terminated | rollout.truncated)
    mean = jnp.sum(rollout.reward) / jnp.maximum(episodes, 1)
    metrics = {"policy_loss": value, "return": mean, "episodes": episodes, "running_return": mean}
    if masks:  # a linear policy has no neurons
        assert config.prune is not None
        groups = prunable_groups(params, config)
        begin, end = config.prune.begin, config.prune.end
        progress = jnp.clip((step / config.num_updates - begin) / (end - begin), 0.0, 1.0)
        scores = prune_rl.magnitude_importance(groups, params)
        masks = prune_rl.update_masks(masks, scores, config.prune.sparsity * progress)
        params = prune_rl.apply_masks(groups, params, masks)
        zero = jnp.zeros(())
        metrics["prune"] = {
            name: {"width": jnp.sum(mask), "threshold": zero, "removed_importance": zero, "nan_scores": zero}
            for name, mask in masks.items()
        }
    return State(params, masks, state.obs_stats, step), metrics
