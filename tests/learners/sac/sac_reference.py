"""Soft actor-critic in NumPy and float64, written from the papers, with gradients by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.special
import scipy.stats

Array = np.ndarray
Tree = Any  # nested dicts of float64 arrays

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}


def to_numpy(params: Any) -> Tree:
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)


def network(params: Tree, x: Array, activation: str) -> Array:
    for i in range(len(params) - 1):
        layer = params[f"layer_{i}"]
        x = ACTIVATIONS[activation](x @ layer["kernel"] + layer["bias"])
    outputs: Array = x @ params["head"]["kernel"] + params["head"]["bias"]
    return outputs


def both(critic: Tree) -> list[Tree]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], critic) for i in range(2)]


def q_values(critic: Tree, obs: Array, action: Array, activation: str) -> Array:
    """Q of both critics [2, B]; integer actions choose one of their outputs, others are one of their inputs."""
    if np.issubdtype(action.dtype, np.integer):
        rows = np.arange(len(action))
        return np.array([network(member, obs, activation)[rows, action] for member in both(critic)])
    x = np.concatenate([obs, action], axis=1)
    return np.array([network(member, x, activation)[:, 0] for member in both(critic)])


def normal_parts(actor: Tree, obs: Array, activation: str) -> tuple[Array, Array]:
    """Mean and standard deviation before the squashing."""
    outputs = network(actor, obs, activation)
    size = outputs.shape[1] // 2
    return outputs[:, :size], np.exp(np.clip(outputs[:, size:], -20.0, 2.0))


def soft_value(
    actor: Tree, critic: Tree, alpha: float, obs: Array, noise: Array | None, activation: str
) -> tuple[Array, Array]:
    """Value and entropy [B]; without ``noise`` actions are Discrete, and both are exact."""
    if noise is None:
        log_p = scipy.special.log_softmax(network(actor, obs, activation), axis=1)
        q = np.minimum(*(network(member, obs, activation) for member in both(critic)))
        entropy = scipy.stats.entropy(np.exp(log_p), axis=1)
        return (np.exp(log_p) * q).sum(1) + alpha * entropy, entropy
    mean, std = normal_parts(actor, obs, activation)
    x = mean + std * noise
    # The density of tanh(x): that of x over the slope 1 / cosh²x.
    log_cosh = np.logaddexp(x, -x) - np.log(2.0)
    log_p = (scipy.stats.norm.logpdf(noise) - np.log(std) + 2.0 * log_cosh).sum(1)
    q = np.minimum(*q_values(critic, obs, np.tanh(x), activation))
    return q - alpha * log_p, -log_p


def critic_loss(critic: Tree, obs: Array, action: Array, target: Array, activation: str) -> float:
    first, second = q_values(critic, obs, action, activation)
    return float(np.mean((first - target) ** 2) / 2 + np.mean((second - target) ** 2) / 2)


def actor_loss(
    actor: Tree, critic: Tree, alpha: float, obs: Array, noise: Array | None, activation: str
) -> float:
    return float(-np.mean(soft_value(actor, critic, alpha, obs, noise, activation)[0]))


def gradient(loss: Callable[[Tree], float], params: Tree, step: float = 1e-5) -> Tree:
    """Central differences, entry by entry."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.copy, params))
    moved = jax.tree.unflatten(structure, leaves)
    slopes = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, slopes, strict=True):
        for index in np.ndindex(leaf.shape):
            here, sides = leaf[index], []
            for side in (step, -step):
                leaf[index] = here + side
                sides.append(loss(moved))
            leaf[index] = here
            slope[index] = (sides[0] - sides[1]) / (2.0 * step)
    return jax.tree.unflatten(structure, slopes)


class Adam:
    """Kingma & Ba 2015, algorithm 1, with a rate for every step."""

    def __init__(self, params: Tree, rates: list[float]) -> None:
        self.rates, self.step = rates, 0
        self.first = jax.tree.map(np.zeros_like, params)
        self.second = jax.tree.map(np.zeros_like, params)

    def __call__(self, params: Tree, slope: Tree) -> Tree:
        rate = self.rates[self.step]
        self.step += 1
        self.first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.first, slope)
        self.second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, self.second, slope)
        bias = 1.0 - 0.9**self.step, 1.0 - 0.999**self.step
        return jax.tree.map(
            lambda p, m, v: p - rate * (m / bias[0]) / (np.sqrt(v / bias[1]) + 1e-8),
            params,
            self.first,
            self.second,
        )


class Learner:
    """Gradient steps on given batches. ``noise`` None: Discrete actions; else what stands in for the normal noise."""

    def __init__(
        self,
        networks: Any,
        rates: list[float],
        *,
        activation: str,
        gamma: float,
        tau: float,
        scale: float,
        entropy_backup: bool = True,
    ) -> None:
        self.actor, self.critic = to_numpy(networks.params["actor"]), to_numpy(networks.params["critic"])
        self.target, self.log_alpha = to_numpy(networks.target_critic), float(networks.log_alpha)
        self.activation, self.gamma, self.tau, self.scale = activation, gamma, tau, scale
        self.entropy_backup = entropy_backup
        self.adams = [Adam(x, rates) for x in (self.actor, self.critic, np.float64(0.0))]

    def __call__(self, batch: Any, noise: Array | None, target_entropy: float | None) -> dict[str, float]:
        """One step; ``target_entropy`` None: the temperature is fixed."""
        obs, next_obs = np.asarray(batch.obs, np.float64), np.asarray(batch.next_obs, np.float64)
        action, reward = np.asarray(batch.action), np.asarray(batch.reward, np.float64)
        alpha, net = np.exp(self.log_alpha), self.activation
        bonus = alpha if self.entropy_backup else 0.0
        value, _ = soft_value(self.actor, self.target, bonus, next_obs, noise, net)
        target = self.scale * reward + self.gamma * np.where(batch.terminated, 0.0, value)

        metrics = {"critic_loss": critic_loss(self.critic, obs, action, target, net)}
        slope = gradient(lambda critic: critic_loss(critic, obs, action, target, net), self.critic)
        self.critic = self.adams[1](self.critic, slope)

        metrics["actor_loss"] = actor_loss(self.actor, self.critic, alpha, obs, noise, net)
        entropy = float(soft_value(self.actor, self.critic, alpha, obs, noise, net)[1].mean())
        slope = gradient(lambda actor: actor_loss(actor, self.critic, alpha, obs, noise, net), self.actor)
        self.actor = self.adams[0](self.actor, slope)

        if target_entropy is not None:
            slope = np.float64(alpha * (entropy - target_entropy))
            self.log_alpha = float(self.adams[2](np.float64(self.log_alpha), slope))
        self.target = jax.tree.map(lambda old, new: old + self.tau * (new - old), self.target, self.critic)
        return {**metrics, "entropy": entropy, "alpha": float(alpha), "q_target": float(target.mean())}
