"""A Flax NNX classifier of handwritten digits that loses nine tenths of its neurons while it trains.

    python experiments/examples/nnx_network.py

The lines marked "prune" are those that pruning adds. Needs ``pip install 'prune_rl[examples]'``.
``nnx.merge(graphdef, small)`` is the compact network as a module.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_rl  # prune


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


def main(sparsity: float = 0.9, steps: int = 600, seed: int = 0) -> dict[str, Any]:
    x, test_x, y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
    x, test_x = jnp.float32(x / 16), jnp.float32(test_x / 16)
    graphdef, params = nnx.split(Network(nnx.Rngs(seed)))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x)

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
    masks = prune_rl.masks_of(opt_state)  # prune
    small = prune_rl.compact(groups, params, masks)  # prune

    masked_logits, logits = apply(params, test_x), apply(small, test_x)
    return {
        "masked": round(float(jnp.mean(masked_logits.argmax(axis=-1) == test_y)), 4),
        "compact": round(float(jnp.mean(logits.argmax(axis=-1) == test_y)), 4),
        "difference": float(jnp.max(jnp.abs(masked_logits - logits))),
        "widths": {name: int(mask.sum()) for name, mask in masks.items()},
        "weights": optax.tree.size(small),
    }


if __name__ == "__main__":
    print("dense, accuracy: ", main(sparsity=0.0))
    print("pruned, accuracy:", main())
