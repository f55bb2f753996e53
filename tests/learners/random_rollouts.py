"""Rollouts drawn at random, with every kind of end in them, and params, for what needs data but no environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prune_rl.learners import ppo, sac
from prune_rl.learners.replay_buffer import Transitions
from prune_rl.learners.sac.learner import gradient_noise
from prune_rl.learners.sac.values import Architecture
from prune_rl.spaces import Box, Discrete, Spec

DISCRETE = Spec(observation_size=3, action=Discrete(4))
CONTINUOUS = Spec(observation_size=3, action=Box((-1.0, -1.0), (1.0, 1.0), (2,)))
SMALL = ppo.Config(hidden=(6, 5), num_envs=3, num_steps=8, update_epochs=2, num_minibatches=4, prune=None)
LOPSIDED = Spec(observation_size=3, action=Box((-3.0, 0.5), (1.0, 0.75), (2,)))
# Two updates of warm-up, then 6 gradient steps per update of 24 environment steps.
SMALL_SAC = sac.Config(
    hidden=(6, 5),
    activation="tanh",
    num_envs=3,
    num_steps=8,
    utd_ratio=0.25,
    batch_size=16,
    learning_starts=30,
    learning_rate=0.01,
    learning_rate_end=0.01,
    tau=0.1,
    total_timesteps=7 * 3 * 8,
    prune=None,
)


def random_params(seed: int, params: Any, scale: float = 0.5) -> Any:
    """Params of the same shapes, normally distributed, so that no head is near 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, scale, leaf.shape), jnp.float32), params)


def random_sac_state(config: sac.Config, spec: Spec, *, step: int = 0) -> sac.State:
    """A state after ``step`` updates with random networks, the critics unlike their targets."""
    state = sac.init(jax.random.key(0), config, spec)
    networks = dataclasses.replace(
        state.networks,
        params=random_params(1, state.params),
        target_critic=random_params(2, state.networks.target_critic),
    )
    return dataclasses.replace(state, networks=networks, step=jnp.int32(step))


def arch_of(config: sac.Config, spec: Spec) -> Architecture:
    """What the networks' params do not say."""
    return Architecture(config.activation, isinstance(spec.action, Discrete))


def random_rollout(
    seed: int, config: ppo.Config | sac.Config, spec: Spec, *, ends: float = 0.2, cut: bool = False
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


def random_batch(seed: int, config: sac.Config, spec: Spec) -> Transitions:
    """A batch for a gradient step, a third of it terminated, as the networks see it."""
    rng = np.random.default_rng(seed)
    size = config.batch_size
    obs, next_obs = rng.normal(size=(2, size, spec.observation_size))
    discrete = isinstance(spec.action, Discrete)
    action = (
        rng.integers(spec.action.num_outputs, size=size)
        if discrete
        else rng.uniform(-1.0, 1.0, (size, spec.action.num_outputs))
    )
    return Transitions(
        obs=jnp.asarray(obs, jnp.float32),
        action=jnp.asarray(action, jnp.int32 if discrete else jnp.float32),
        reward=jnp.asarray(rng.normal(size=size), jnp.float32),
        terminated=jnp.asarray(rng.random(size) < 1.0 / 3.0),
        next_obs=jnp.asarray(next_obs, jnp.float32),
    )


def random_noise(seed: int, networks: sac.Networks, config: sac.Config) -> jax.Array:
    """What a gradient step of these networks takes as noise."""
    return gradient_noise(jax.random.key(seed), networks.params, config.batch_size)


def slices_of(tree: Any, name: str) -> Iterator[np.ndarray]:
    """Incoming columns, biases and outgoing rows of a layer's neurons in all members, neurons first, by layer names."""
    network, layer = name.split("/")
    following = f"layer_{int(layer[-1]) + 1}"
    yield np.moveaxis(np.asarray(tree[network][layer]["kernel"]), -1, 0)
    yield np.moveaxis(np.asarray(tree[network][layer]["bias"]), -1, 0)
    outgoing = tree[network].get(following, tree[network]["head"])["kernel"]
    yield np.moveaxis(np.asarray(outgoing), -2, 0)


def moments_of(networks: sac.Networks) -> list[Any]:
    """Adam's two moments, each in a tree like params."""
    found = []
    for moment in ("mu", "nu"):
        tree: dict[str, Any] = {}
        for _, part in optax.tree.get_all_with_path(networks.opt_state, moment):
            tree |= part if isinstance(part, dict) else {}
        assert set(tree) == {"actor", "critic"}
        found.append(tree)
    return found
