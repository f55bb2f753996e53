"""Networks that read words or series, one for each kind, with the connections of their namesakes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.architectures.layers import TOKENS, WIDTH, Net


def gpt(net: Net, tokens: jax.Array) -> jax.Array:
    x = net.get("words", 11, WIDTH)[tokens] + net.get("places", TOKENS, WIDTH)
    for name in ("one", "two"):
        x = x + net.attention(name, net.layer_norm(f"{name}/n", x), causal=True)
        x = x + net.mlp(f"{name}/mlp", net.layer_norm(f"{name}/m", x))
    return net.layer_norm("n", x) @ net.get("words", 11, WIDTH).T


def llama(net: Net, tokens: jax.Array) -> jax.Array:
    x = net.get("words", 11, WIDTH)[tokens]
    y = net.rms_norm("n", x)
    q = net.get("q/w", WIDTH, 2, 2, 4)  # two groups of two query heads that share a key and a value head
    k, v = net.get("k/w", WIDTH, 2, 4), net.get("v/w", WIDTH, 2, 4)
    q, k, v = (
        jnp.einsum("btd,dghc->btghc", y, q),
        jnp.einsum("btd,dgc->btgc", y, k),
        jnp.einsum("btd,dgc->btgc", y, v),
    )
    angles = jnp.arange(TOKENS)[:, None] * 0.5 ** jnp.arange(2)[None]
    q, k = rotated(q, angles[:, None, None]), rotated(k, angles[:, None])
    scores = jnp.where(
        jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), jnp.einsum("btghc,bsgc->bghts", q, k), -jnp.inf
    )
    heads = jnp.einsum("bghts,bsgc->btghc", jax.nn.softmax(scores), v)
    x = x + jnp.einsum("btghc,ghcd->btd", heads, net.get("o/w", 2, 2, 4, WIDTH))
    y = net.rms_norm("m", x)
    gated = jax.nn.silu(net.dense("gate", y, 12, bias=False)) * net.dense("up", y, 12, bias=False)
    return net.dense(
        "head", net.rms_norm("l", x + net.dense("down", gated, WIDTH, bias=False)), 11, bias=False
    )


def rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary positions."""
    left, right = jnp.split(x, 2, -1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


def bert(net: Net, tokens: jax.Array) -> jax.Array:
    x = net.layer_norm("n", net.get("words", 11, WIDTH)[tokens] + net.get("places", TOKENS, WIDTH))
    x = net.layer_norm("n0", x + net.attention("attention", x))
    x = net.layer_norm("n1", x + net.mlp("mlp", x))
    return net.dense("head", jnp.tanh(net.dense("pooler", x[:, 0], WIDTH)), 3)


def gru(net: Net, x: jax.Array) -> jax.Array:
    h = jnp.zeros((x.shape[0], 6))
    into, inside = net.get("x/w", x.shape[-1], 18), net.get("h/w", 6, 18)

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        (z, r, new), (dz, dr, dnew) = jnp.split(x @ into, 3, -1), jnp.split(h @ inside, 3, -1)
        z, r = jax.nn.sigmoid(z + dz), jax.nn.sigmoid(r + dr)
        return (1 - z) * jnp.tanh(new + r * dnew) + z * h, None

    return net.dense("head", jax.lax.scan(step, h, x.swapaxes(0, 1))[0], 3)
