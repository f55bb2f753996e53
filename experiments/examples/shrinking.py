"""A training step that gets cheaper: the arrays of a plain JAX network shrink while it trains on handwritten digits.

    python experiments/examples/shrinking.py

Adam's moments, the tracked importance and the masks are gathered with the params, so that the plain training step goes
on where it was. Needs ``pip install 'prune_rl[examples]'``.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import prune_rl


def init(key: jax.Array, sizes: list[int]) -> Any:
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes, sizes[1:], strict=False)
    return [{"w": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "b": jnp.zeros(n)} for k, m, n in shapes]


def network(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"][None])
    logits: jax.Array = x @ params[-1]["w"] + params[-1]["b"][None]
    return logits


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(params, x), y))


def make_step(groups: prune_rl.NeuronGroups, steps: int) -> tuple[Any, Any]:
    tx = prune_rl.dynamic_pruning(optax.adam(1e-3), groups, total_updates=steps, every=20, sparsity=0.95)

    @jax.jit
    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return tx.init, step


def main(width: int = 512, steps: int = 1000, seed: int = 0, shrink: bool = True) -> dict[str, Any]:
    x, test_x, y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
    x, test_x = jnp.float32(x / 16), jnp.float32(test_x / 16)
    params = init(jax.random.key(seed), [64, width, width, 10])
    groups = prune_rl.find_groups(network, params, x[:1])
    init_state, step = make_step(groups, steps)
    opt_state = init_state(params)
    seconds: dict[int, list[float]] = {}
    for i, batch in enumerate(np.random.default_rng(seed).integers(len(x), size=(steps, 256))):
        start = time.perf_counter()
        params, opt_state = step(params, opt_state, x[batch], y[batch])
        params[0]["b"].block_until_ready()
        seconds.setdefault(len(params[0]["b"]), []).append(time.perf_counter() - start)
        masks = prune_rl.masks_of(opt_state)
        if shrink and i % 20 == 0 and all(mask.sum() <= mask.size / 2 for mask in masks.values()):
            groups, params, opt_state, _ = prune_rl.shrink(groups, params, opt_state, masks)
            _, step = make_step(groups, steps)
    small = prune_rl.compact(groups, params, prune_rl.masks_of(opt_state))
    return {
        "accuracy": round(float(jnp.mean(network(small, test_x).argmax(axis=-1) == test_y)), 4),
        "logits": np.asarray(network(small, test_x)),
        "width": len(small[0]["b"]),
        "ms per step, by width of the arrays": {n: 1e3 * float(np.median(t)) for n, t in seconds.items()},
    }


if __name__ == "__main__":
    for shrink in (False, True):
        result = main(shrink=shrink)
        steps = {n: round(t, 2) for n, t in result.pop("ms per step, by width of the arrays").items()}
        print("shrinking:" if shrink else "masked:   ", {k: result[k] for k in ("accuracy", "width")}, steps)
