"""An ensemble of critics, made by ``jax.vmap``, that shares its neuron masks and is pruned while it trains.

    python experiments/examples/critic_ensemble.py

The critics learn Q(s, a) of a random policy on CartPole-v1 from the discounted returns of whole episodes. Reported is
the share of the returns' variance that the critics' mean explains on other episodes (R²); as the policy is random, none
could explain all of it. The lines marked "prune" are those that pruning adds.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prune_rl  # prune
from prune_rl.envs.cartpole import CartPole

ENV = CartPole()


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (64, 64):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)[..., 0]


def episode(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(state, action), discounted return and "not over yet" at each of 200 steps of a random policy."""
    reset_key, action_key = jax.random.split(key)

    def step(carry: Any, action: jax.Array) -> tuple[Any, Any]:
        env_state, obs, alive = carry
        env_state, new_obs, _, terminated, _ = ENV.step(env_state, action)
        return (env_state, new_obs, alive & ~terminated), (jnp.append(obs, action), alive)

    actions = jax.random.randint(action_key, (200,), 0, 2)
    _, (x, alive) = jax.lax.scan(step, (*ENV.reset(reset_key), jnp.bool(True)), actions)
    returns = jax.lax.scan(lambda g, reward: (0.95 * g + reward,) * 2, 0.0, alive, reverse=True)[1]
    return x, returns, alive


@jax.jit
def play(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jax.vmap(episode)(keys)


def data(key: jax.Array, episodes: int = 1000) -> tuple[jax.Array, jax.Array]:
    x, returns, alive = play(jax.random.split(key, episodes))
    return x[alive], returns[alive]


def r_squared(prediction: jax.Array, target: jax.Array) -> float:
    return round(float(1.0 - jnp.mean(jnp.square(prediction - target)) / jnp.var(target)), 4)


def main(sparsity: float = 0.75, steps: int = 1000, seed: int = 0, critics: int = 4) -> dict[str, Any]:
    train_key, test_key, init_key = jax.random.split(jax.random.key(seed), 3)
    (x, y), (test_x, test_y) = data(train_key), data(test_key)
    apply: Any = jax.vmap(Critic().apply, (0, None))  # outputs [critic, batch]
    init = jax.jit(jax.vmap(Critic().init, (0, None)))
    params = init(jax.random.split(init_key, critics), x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(apply(params, x) - y[None]))

    tx = optax.adam(optax.linear_schedule(3e-3, 0.0, steps))
    groups = prune_rl.find_groups(apply, params, x)  # prune
    tx = prune_rl.dynamic_pruning(tx, groups, total_updates=steps, sparsity=sparsity)  # prune
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in np.random.default_rng(seed).integers(len(x), size=(steps, 128)):
        params, opt_state = step(params, opt_state, x[batch], y[batch])
    small = prune_rl.compact(groups, params, prune_rl.masks_of(opt_state))  # prune
    small_apply = prune_rl.compact_function(apply, groups, params, prune_rl.masks_of(opt_state))  # prune

    masked_q, q = apply(params, test_x), small_apply(small, test_x)
    return {
        "masked": r_squared(masked_q.mean(axis=0), test_y),
        "compact": r_squared(q.mean(axis=0), test_y),
        "difference": float(jnp.max(jnp.abs(masked_q - q))),
        "widths": [layer["bias"].shape[-1] for layer in small["params"].values()][:-1],
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, R²: ", main(sparsity=0.0))
    print("pruned, R²:", main())
