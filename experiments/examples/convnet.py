"""A small Flax Linen conv net for handwritten digits that loses channels and dense units while it trains.

    python experiments/examples/convnet.py

The lines marked "prune" are those that pruning adds. Needs ``pip install 'prune_rl[examples]'``.
A Linen module knows its widths, so the compact parameters need the adapted ``small_apply``.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_rl  # prune


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def main(sparsity: float = 0.75, steps: int = 600, seed: int = 0) -> dict[str, Any]:
    x, test_x, y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
    x, test_x = (jnp.float32(images / 16).reshape(-1, 8, 8, 1) for images in (x, test_x))
    apply: Any = ConvNet().apply
    params = jax.jit(ConvNet().init)(jax.random.key(seed), x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y))

    tx = optax.adam(2e-3)
    groups = prune_rl.find_groups(apply, params, x)  # prune
    tx = prune_rl.dynamic_pruning(tx, groups, total_updates=steps, sparsity=sparsity)  # prune
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in np.random.default_rng(seed).integers(len(x), size=(steps, 64)):
        params, opt_state = step(params, opt_state, x[batch], y[batch])
    small = prune_rl.compact(groups, params, prune_rl.masks_of(opt_state))  # prune
    small_apply = prune_rl.compact_function(apply, groups, params, prune_rl.masks_of(opt_state))  # prune

    masked_logits, logits = apply(params, test_x), small_apply(small, test_x)
    return {
        "masked": round(float(jnp.mean(masked_logits.argmax(axis=-1) == test_y)), 4),
        "compact": round(float(jnp.mean(logits.argmax(axis=-1) == test_y)), 4),
        "difference": float(jnp.max(jnp.abs(masked_logits - logits))),
        "widths": [layer["bias"].size for layer in small["params"].values()][:-1],
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, accuracy: ", main(sparsity=0.0))
    print("pruned, accuracy:", main())
