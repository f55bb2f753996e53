"""Single-file PPO on CartPole-v1, pure functions and ``lax.scan``, that loses nine tenths of its neurons as it learns.

    python experiments/examples/single_file_ppo.py

The lines marked "prune" are those that pruning adds; the rest is an ordinary PPO with its parameters in plain lists and
dictionaries.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import prune_rl  # prune
from prune_rl.envs.autoreset import autoreset_step
from prune_rl.envs.cartpole import CartPole

ENV = CartPole()
Layers = list[dict[str, jax.Array]]
ENVS, STEPS, EPOCHS, MINIBATCHES = 16, 128, 4, 4
GAMMA, LAMBDA, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.01, 0.5


class Transition(NamedTuple):
    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    next_value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array


def init_mlp(key: jax.Array, *sizes: int) -> Layers:
    make = jax.nn.initializers.orthogonal(2**0.5)
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [{"w": make(k, shape), "b": jnp.zeros(shape[1])} for k, shape in zip(keys, shapes, strict=True)]


def mlp(layers: Layers, x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def network(params: Any, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each action, and the value."""
    return jax.nn.log_softmax(mlp(params["actor"], obs)), mlp(params["critic"], obs)[0]


def env_step(params: Any, env: Any, key: jax.Array) -> tuple[Any, Transition]:
    env_state, obs = env
    action_key, reset_key = jax.random.split(key)
    log_probs, value = network(params, obs)
    action = jax.random.categorical(action_key, log_probs)
    start = ENV.reset(reset_key)
    env_state, new_obs, reward, terminated, truncated, next_obs = autoreset_step(
        ENV, env_state, action, *start
    )
    next_value, done = network(params, next_obs)[1], terminated | truncated
    step = Transition(obs, action, log_probs[action], value, next_value, reward, terminated, done)
    return (env_state, new_obs), step


def advantages(batch: Transition) -> jax.Array:
    """Generalised advantage estimation. A time limit is bootstrapped, a termination is not."""
    deltas = batch.reward + GAMMA * batch.next_value * ~batch.terminated - batch.value

    def backwards(advantage: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, done = now
        advantage = delta + GAMMA * LAMBDA * ~done * advantage
        return advantage, advantage

    return jax.lax.scan(backwards, jnp.zeros(ENVS), (deltas, batch.done), reverse=True)[1]


def loss(params: Any, batch: Transition, advantage: jax.Array) -> jax.Array:
    log_probs, value = jax.vmap(network, (None, 0))(params, batch.obs)
    ratio = jnp.exp(log_probs[jnp.arange(len(value)), batch.action] - batch.log_prob)
    gain = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * gain)
    error = jnp.square(value - batch.value - advantage)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return jnp.mean(-surrogate + VALUE * error - ENTROPY * entropy)


def train(tx: optax.GradientTransformation, params: Any, key: jax.Array, iterations: int) -> tuple[Any, Any]:
    """A rollout, then epochs of minibatches, again and again. Returns (params, opt_state)."""

    def gradient_step(batch: Any, carry: Any, indices: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        grads = jax.grad(loss)(params, *jax.tree.map(lambda x: x[indices], batch))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def iteration(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state, envs = carry
        rollout_key, shuffle_key = jax.random.split(key)
        step_all = functools.partial(jax.vmap(env_step, (None, 0, 0)), params)
        envs, batch = jax.lax.scan(step_all, envs, jax.random.split(rollout_key, (STEPS, ENVS)))
        flat = jax.tree.map(lambda x: x.reshape(STEPS * ENVS, *x.shape[2:]), (batch, advantages(batch)))
        shuffle = jax.vmap(jax.random.permutation, (0, None))
        order = shuffle(jax.random.split(shuffle_key, EPOCHS), STEPS * ENVS)
        order = order.reshape(EPOCHS * MINIBATCHES, -1)
        learn = functools.partial(gradient_step, flat)
        (params, opt_state), _ = jax.lax.scan(learn, (params, opt_state), order)
        return (params, opt_state, envs), None

    reset_key, key = jax.random.split(key)
    start = params, tx.init(params), jax.vmap(ENV.reset)(jax.random.split(reset_key, ENVS))
    (params, opt_state, _), _ = jax.lax.scan(iteration, start, jax.random.split(key, iterations))
    return params, opt_state


def evaluate(params: Any, key: jax.Array, episodes: int = 100) -> float:
    """Mean return of the policy that takes the likeliest action."""

    def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        env_state, obs, alive = carry
        action = jnp.argmax(network(params, obs)[0])
        env_state, obs, reward, terminated, _ = ENV.step(env_state, action)
        return (env_state, obs, alive & ~terminated), reward * alive

    def episode(key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, (*ENV.reset(key), jnp.bool(True)), length=ENV.time_limit)[1].sum()

    return round(float(jax.vmap(episode)(jax.random.split(key, episodes)).mean()), 1)


def main(sparsity: float = 0.9, iterations: int = 100, seed: int = 0) -> dict[str, Any]:
    actor_key, critic_key, train_key, test_key = jax.random.split(jax.random.key(seed), 4)
    params = {"actor": init_mlp(actor_key, 4, 64, 64, 2), "critic": init_mlp(critic_key, 4, 64, 64, 1)}
    updates = iterations * EPOCHS * MINIBATCHES
    learning_rate = optax.linear_schedule(1e-3, 0.0, updates)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate))
    groups = prune_rl.find_groups(network, params, jnp.zeros(4))  # prune
    tx = prune_rl.dynamic_pruning(tx, groups, total_updates=updates, sparsity=sparsity)  # prune
    params, opt_state = jax.jit(train, static_argnums=(0, 3))(tx, params, train_key, iterations)
    masks = prune_rl.masks_of(opt_state)  # prune
    small = prune_rl.compact(groups, params, masks)  # prune

    obs = jax.random.uniform(test_key, (1000, 4), minval=-1.0)
    wide, compact = (jax.vmap(network, (None, 0))(p, obs) for p in (params, small))
    return {
        "masked": evaluate(params, test_key),
        "compact": evaluate(small, test_key),
        "difference": max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(wide, compact, strict=True)),
        "widths": {name: int(mask.sum()) for name, mask in masks.items()},
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, return: ", main(sparsity=0.0))
    print("pruned, return:", main())
