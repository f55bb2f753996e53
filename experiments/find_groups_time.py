"""CPU seconds that ``find_groups`` takes for a GPT of width 384, by its number of layers.

    .venv/bin/python -m experiments.find_groups_time

The smallest of three times. Arrays are shapes alone: nothing is computed. Three ways to write the attention: it runs on
smaller arrays as they are, it fixes its widths, or it runs on them and counts their features anew.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

import prune_rl

WIDTH, HEADS, TOKENS, WORDS = 384, 6, 32, 65
Shape: Any = jax.ShapeDtypeStruct


def shapes(layers: int) -> dict[str, Any]:
    of_layer = {
        "norm": (WIDTH,),
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "norm_mlp": (WIDTH,),
        "up": (WIDTH, 4 * WIDTH),
        "up_bias": (4 * WIDTH,),
        "down": (4 * WIDTH, WIDTH),
    }
    sizes = {f"layer_{i}/{name}": shape for i in range(layers) for name, shape in of_layer.items()}
    sizes |= {"words": (WORDS, WIDTH), "places": (TOKENS, WIDTH), "head": (WIDTH, WORDS)}
    return {name: Shape(shape, jnp.float32) for name, shape in sizes.items()}


def layer_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale


def gpt(params: dict[str, Any], tokens: jax.Array, layers: int, kind: str) -> Any:
    batch = tokens.shape[0]
    x = params["words"][tokens] + params["places"]
    for i in range(layers):
        p = {
            name: params[f"layer_{i}/{name}"]
            for name in ("norm", "qkv", "out", "norm_mlp", "up", "up_bias", "down")
        }
        parts = jnp.split(layer_norm(x, p["norm"]) @ p["qkv"], 3, -1)
        q, k, v = (z.reshape(batch, TOKENS, HEADS, -1).transpose(0, 2, 1, 3) for z in parts)
        features = q.shape[-1] if kind == "counts anew" else WIDTH // HEADS
        scores = q @ k.transpose(0, 1, 3, 2) / features**0.5
        scores = jnp.where(jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), scores, -jnp.inf)
        mixed = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3)
        x = x + mixed.reshape(batch, TOKENS, WIDTH if kind == "fixed" else -1) @ p["out"]
        x = x + jax.nn.gelu(layer_norm(x, p["norm_mlp"]) @ p["up"] + p["up_bias"]) @ p["down"]
    return x @ params["head"]


def seconds(layers: int, kind: str) -> float:
    params, tokens = shapes(layers), Shape((2, TOKENS), jnp.int32)
    times = []
    for _ in range(3):
        start = time.process_time()
        groups = prune_rl.find_groups(lambda p, t: gpt(p, t, layers, kind), params, tokens)
        times.append(time.process_time() - start)
        assert len(groups) == (2 if kind == "counts anew" else 3) * layers, groups
    return min(times)


if __name__ == "__main__":
    kinds = ("any width", "fixed", "counts anew")
    print("layers  " + "  ".join(f"{kind:>11}" for kind in kinds) + "   CPU s")
    for layers in (1, 2, 4, 8, 16, 32):
        print(f"{layers:6}  " + "  ".join(f"{seconds(layers, kind):11.2f}" for kind in kinds), flush=True)
