"""A GRU that balances CartPole-v1 without seeing velocities, and acts on a small state once it is pruned.

    python experiments/examples/recurrent_policy.py

The policy learns from a linear teacher that sees the whole state, on the states that it visits itself (DAgger: Ross et
al. 2011). It sees the two positions alone, so it has to remember. Its neurons lie in the state that a step takes and
returns: ``find_groups(..., carry=True)`` finds them there, and ``compact_carry`` gives the smaller state that the
smaller step starts with. The lines marked "prune" are those that pruning adds.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import prune_rl  # prune
from prune_rl.envs.cartpole import CartPole

ENV = CartPole()
SEEN = jnp.array([0, 2])  # of the position, its velocity, the angle and its velocity
TEACHER = jnp.array([0.1, 0.4, 3.0, 1.0])
ENVS, STEPS = 32, 200


def init(key: jax.Array, hidden: int) -> dict[str, jax.Array]:
    shapes = {
        "x": (2, 3 * hidden),
        "gates": (hidden, 2 * hidden),
        "new": (hidden, hidden),
        "out": (hidden, 2),
    }
    keys = jax.random.split(key, len(shapes))
    weights = {
        n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }
    return {**weights, "bias": jnp.zeros(3 * hidden)}


def act(params: Any, h: jax.Array, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step: the new state and the logits of both actions (Cho et al. 2014)."""
    z, r, new = jnp.split(obs @ params["x"] + params["bias"][None], 3, axis=-1)
    dz, dr = jnp.split(h @ params["gates"], 2, axis=-1)
    z, r = jax.nn.sigmoid(z + dz), jax.nn.sigmoid(r + dr)
    h = (1 - z) * jnp.tanh(new + (r * h) @ params["new"]) + z * h
    return h, h @ params["out"]


def play(step: Any, params: Any, h: jax.Array, key: jax.Array, steps: int) -> Any:
    """Logits, the teacher's actions, and "not over yet", at each step of ``len(h)`` episodes."""

    def one(carry: Any, _: Any) -> Any:
        env_state, obs, h, alive = carry
        h, logits = step(params, h, obs[:, SEEN])
        env_state, new_obs, _, terminated, _ = jax.vmap(ENV.step)(env_state, jnp.argmax(logits, axis=-1))
        told = (obs @ TEACHER > 0).astype(jnp.int32)
        return (env_state, new_obs, h, alive & ~terminated), (logits, told, alive)

    env_state, obs = jax.vmap(ENV.reset)(jax.random.split(key, len(h)))
    return jax.lax.scan(one, (env_state, obs, h, jnp.ones(len(h), bool)), length=steps)[1]


def loss(params: Any, h: jax.Array, key: jax.Array) -> jax.Array:
    logits, told, alive = play(act, params, h, key, STEPS)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, told)
    return jnp.sum(errors * alive) / jnp.sum(alive)


def main(sparsity: float = 0.8, steps: int = 600, seed: int = 0, hidden: int = 32) -> dict[str, Any]:
    init_key, train_key, test_key = jax.random.split(jax.random.key(seed), 3)
    params, start, obs = init(init_key, hidden), jnp.zeros((ENVS, hidden)), jnp.zeros((ENVS, 2))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1e-2, 0.0, steps)))
    groups = prune_rl.find_groups(act, params, start, obs, carry=True)  # prune
    tx = prune_rl.dynamic_pruning(
        tx, groups, total_updates=steps, sparsity=sparsity, end=0.4, every=10
    )  # prune

    def update(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, start, key), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    train = jax.jit(functools.partial(jax.lax.scan, update))
    (params, opt_state), _ = train((params, tx.init(params)), jax.random.split(train_key, steps))
    masks = prune_rl.masks_of(opt_state)  # prune
    small = prune_rl.compact(groups, params, masks)  # prune
    small_act = prune_rl.compact_function(act, groups, params, masks, start, obs, carry=True)  # prune
    small_start = prune_rl.compact_carry(act, groups, params, masks, start, obs)  # prune

    evaluate = jax.jit(functools.partial(play, steps=ENV.time_limit), static_argnums=0)
    masked_logits, _, masked_alive = evaluate(act, params, start, test_key)
    logits, _, alive = evaluate(small_act, small, small_start, test_key)
    both = (masked_alive & alive)[:50, :, None]
    return {
        "masked": float(masked_alive.sum(axis=0).mean()),
        "compact": float(alive.sum(axis=0).mean()),
        "difference": float(jnp.max(jnp.abs(masked_logits[:50] - logits[:50]) * both)),
        "state": small_start.shape[-1],
        "widths": {name: int(mask.sum()) for name, mask in masks.items()},
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, return: ", main(sparsity=0.0))
    print("pruned, return:", main())
