"""An Equinox classifier of handwritten digits that loses nine tenths of its neurons while it trains.

    python experiments/examples/equinox_digits.py

The lines marked "prune" are those that pruning adds. Needs ``pip install 'prune_rl[examples]'``.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_rl  # prune


def loss(model: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y))


def main(sparsity: float = 0.9, steps: int = 600, seed: int = 0) -> dict[str, Any]:
    x, test_x, y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
    x, test_x = jnp.float32(x / 16), jnp.float32(test_x / 16)
    model = eqx.nn.MLP(64, 10, width_size=128, depth=2, key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = optax.adam(2e-3)
    groups = prune_rl.find_groups(lambda params, x: eqx.combine(params, static)(x), params, x[0])  # prune
    tx = prune_rl.dynamic_pruning(tx, groups, total_updates=steps, sparsity=sparsity)  # prune
    opt_state = tx.init(params)

    @eqx.filter_jit
    def step(model: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        _, grads = eqx.filter_value_and_grad(loss)(model, x, y)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state

    for batch in np.random.default_rng(seed).integers(len(x), size=(steps, 64)):
        model, opt_state = step(model, opt_state, x[batch], y[batch])
    masks = prune_rl.masks_of(opt_state)  # prune
    small = prune_rl.compact(groups, model, masks)  # prune

    masked_logits, logits = jax.vmap(model)(test_x), jax.vmap(small)(test_x)
    return {
        "masked": round(float(jnp.mean(masked_logits.argmax(axis=-1) == test_y)), 4),
        "compact": round(float(jnp.mean(logits.argmax(axis=-1) == test_y)), 4),
        "difference": float(jnp.max(jnp.abs(masked_logits - logits))),
        "widths": {name: int(mask.sum()) for name, mask in masks.items()},
        "weights": optax.tree.size(eqx.filter(small, eqx.is_inexact_array)),
    }


if __name__ == "__main__":
    print("dense, accuracy: ", main(sparsity=0.0))
    print("pruned, accuracy:", main())
