"""A Haiku classifier of tumours (scikit-learn's breast cancer data) that loses nine tenths of its neurons in training.

    python experiments/examples/haiku_network.py

The lines marked "prune" are those that pruning adds. Needs ``pip install 'prune_rl[examples]'``.
A Haiku module knows its widths, so the compact parameters need the adapted ``small_apply``.
"""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import prune_rl  # prune


def network(x: jax.Array) -> jax.Array:
    return hk.nets.MLP([128, 128, 2])(x)


def main(sparsity: float = 0.9, steps: int = 400, seed: int = 0) -> dict[str, Any]:
    x, test_x, y, test_y = train_test_split(*load_breast_cancer(return_X_y=True), random_state=0)
    scaler = StandardScaler().fit(x)
    x, test_x = jnp.float32(scaler.transform(x)), jnp.float32(scaler.transform(test_x))
    net: hk.Transformed = hk.without_apply_rng(hk.transform(network))
    params = net.init(jax.random.key(seed), x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y))

    tx = optax.adam(1e-3)
    groups = prune_rl.find_groups(net.apply, params, x)  # prune
    tx = prune_rl.dynamic_pruning(tx, groups, total_updates=steps, sparsity=sparsity)  # prune
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in np.random.default_rng(seed).integers(len(x), size=(steps, 64)):
        params, opt_state = step(params, opt_state, x[batch], y[batch])
    small = prune_rl.compact(groups, params, prune_rl.masks_of(opt_state))  # prune
    small_apply = prune_rl.compact_function(net.apply, groups, params, prune_rl.masks_of(opt_state))  # prune

    masked_logits, logits = net.apply(params, test_x), small_apply(small, test_x)
    return {
        "masked": round(float(jnp.mean(masked_logits.argmax(axis=-1) == test_y)), 4),
        "compact": round(float(jnp.mean(logits.argmax(axis=-1) == test_y)), 4),
        "difference": float(jnp.max(jnp.abs(masked_logits - logits))),
        "widths": [layer["b"].size for layer in small.values()][:-1],
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, accuracy: ", main(sparsity=0.0))
    print("pruned, accuracy:", main())
