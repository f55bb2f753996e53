"""Networks that read pictures, one for each kind, with the connections of their namesakes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.architectures.layers import BATCH, SIDE, WIDTH, Net, bigger, classified, pool


def vgg(net: Net, x: jax.Array) -> jax.Array:
    x = pool(jax.nn.relu(net.conv("a", x, WIDTH) + net.get("a/b", WIDTH)))
    x = pool(net.block("b", x, WIDTH)).reshape(x.shape[0], -1)
    return net.dense("head", jax.nn.relu(net.dense("fc", x, 12)), 3)


def resnet(net: Net, x: jax.Array) -> jax.Array:
    x = net.block("stem", x, WIDTH)
    for name, width, stride in (("one", WIDTH, 1), ("two", 12, 2)):
        y = net.block(f"{name}/b", net.block(f"{name}/a", x, 6, 1), 6, stride=stride)
        y = net.norm(f"{name}/n", net.conv(f"{name}/c", y, width, 1))
        same = x.shape == y.shape
        x = jax.nn.relu(
            y + (x if same else net.norm(f"{name}/m", net.conv(f"{name}/d", x, width, 1, stride=2)))
        )
    return classified(net, x)


def grouped(net: Net, x: jax.Array) -> jax.Array:
    x = net.block("stem", x, WIDTH)
    y = net.squeeze("se", net.block("b", net.block("a", x, 12, 1), 12, groups=3))
    return classified(net, jax.nn.relu(x + net.norm("n", net.conv("c", y, WIDTH, 1))))


def densenet(net: Net, x: jax.Array) -> jax.Array:
    x = net.conv("stem", x, WIDTH)
    for name in ("one", "two"):
        y = net.conv(f"{name}/a", jax.nn.relu(net.norm(f"{name}/m", x)), 6, 1)
        x = jnp.concatenate([x, net.conv(f"{name}/b", jax.nn.relu(net.norm(f"{name}/n", y)), 4)], -1)
    return classified(net, pool(net.conv("transition", jax.nn.relu(net.norm("t", x)), 6, 1)))


def squeezenet(net: Net, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(net.conv("squeeze", net.block("stem", x, WIDTH), 4, 1))
    x = jax.nn.relu(jnp.concatenate([net.conv("left", x, 5, 1), net.conv("right", x, 5)], -1))
    return jax.nn.relu(net.conv("head", x, 3, 1)).mean((1, 2))


def inception(net: Net, x: jax.Array) -> jax.Array:
    x = net.block("stem", x, WIDTH)
    largest = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    branches = [
        net.block("a", x, 4, 1),
        net.block("c", net.block("b", x, 4, 1), 5),
        net.block("d", largest, 3, 1),
    ]
    return classified(net, jnp.concatenate(branches, -1))


def mobilenet(net: Net, x: jax.Array) -> jax.Array:
    x = net.block("stem", x, WIDTH)
    y = net.block("deep", net.block("wide", x, 12, 1), 12, groups=12)
    return classified(net, net.block("last", x + net.norm("n", net.conv("narrow", y, WIDTH, 1)), 10, 1))


def efficientnet(net: Net, x: jax.Array) -> jax.Array:
    x = jax.nn.silu(net.norm("n0", net.conv("stem", x, WIDTH)))
    y = jax.nn.silu(net.norm("n1", net.conv("wide", x, 12, 1)))
    y = net.squeeze("se", jax.nn.silu(net.norm("n2", net.conv("deep", y, 12, groups=12))))
    return classified(net, x + net.norm("n3", net.conv("narrow", y, WIDTH, 1)))


def shufflenet(net: Net, x: jax.Array) -> jax.Array:
    x = net.block("stem", x, WIDTH)
    for name in ("one", "two"):
        left, right = jnp.split(x, 2, -1)
        half = right.shape[-1]
        right = net.norm(
            f"{name}/n", net.conv(f"{name}/b", net.block(f"{name}/a", right, half, 1), half, groups=half)
        )
        right = net.block(f"{name}/c", right, half, 1)
        x = jnp.concatenate([left, right], -1)
        x = x.reshape(*x.shape[:3], 2, half).swapaxes(3, 4).reshape(x.shape)
    return classified(net, net.block("last", x, 10, 1))


def convnext(net: Net, x: jax.Array) -> jax.Array:
    x = net.layer_norm("stem/n", net.conv("stem", x, WIDTH, 2, stride=2))
    y = net.layer_norm("n", net.conv("deep", x, WIDTH, 7, groups=WIDTH))
    return classified(net, x + net.get("scale", WIDTH) * net.mlp("mlp", y))


def vit(net: Net, x: jax.Array) -> jax.Array:
    x = net.conv("patches", x, WIDTH, 2, stride=2).reshape(x.shape[0], -1, WIDTH)
    first = jnp.broadcast_to(net.get("class", 1, 1, WIDTH), (x.shape[0], 1, WIDTH))
    x = jnp.concatenate([first, x], 1)
    x = x + net.get("places", 1, x.shape[1], WIDTH)
    x = x + net.attention("attention", net.layer_norm("n0", x))
    return net.dense("head", net.layer_norm("n2", x + net.mlp("mlp", net.layer_norm("n1", x)))[:, 0], 3)


def swin(net: Net, x: jax.Array) -> jax.Array:
    x = net.conv("patches", x, WIDTH)
    for name, shift in (("one", 0), ("two", 1)):
        y = jnp.roll(net.layer_norm(f"{name}/n", x), (-shift, -shift), (1, 2))
        y = (
            y.reshape(BATCH, SIDE // 2, 2, SIDE // 2, 2, WIDTH)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(-1, 4, WIDTH)
        )
        y = net.attention(name, y, bias=True)
        y = y.reshape(BATCH, SIDE // 2, SIDE // 2, 2, 2, WIDTH).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + jnp.roll(y, (shift, shift), (1, 2))
        x = x + net.mlp(f"{name}/mlp", net.layer_norm(f"{name}/m", x))
    merged = jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    return classified(net, net.dense("merge", net.layer_norm("n", merged), 12, bias=False))


def segmentation(net: Net, x: jax.Array) -> Any:
    x = net.block("stem", x, WIDTH, stride=2)
    pooled = net.block("pooled", x.mean((1, 2), keepdims=True), 4, 1)
    branches = [
        net.block("a", x, 4, 1),
        net.block("b", x, 4, dilation=2),
        jnp.broadcast_to(pooled, (*x.shape[:3], 4)),
    ]
    return bigger(net.conv("head", net.block("project", jnp.concatenate(branches, -1), 6, 1), 3, 1))


def pyramid(net: Net, x: jax.Array) -> list[jax.Array]:
    c2 = net.block("c2", x, WIDTH, stride=2)
    c3 = net.block("c3", c2, 12, stride=2)
    top = net.conv("l3", c3, 6, 1)
    fine = net.conv("s2", net.conv("l2", c2, 6, 1) + jnp.repeat(jnp.repeat(top, 2, 1), 2, 2), 6)
    tower = [jax.nn.relu(net.conv("tower", level, 6)) for level in (net.conv("s3", top, 6), fine)]
    return [net.conv(name, level, outs, 1) for level in tower for name, outs in (("class", 3), ("box", 4))]


def yolo(net: Net, x: jax.Array) -> jax.Array:
    x = jax.nn.silu(net.conv("stem", x, WIDTH))
    left, right = jnp.split(jax.nn.silu(net.conv("a", x, WIDTH, 1)), 2, -1)
    inner = right + jax.nn.silu(net.conv("c", jax.nn.silu(net.conv("b", right, 4)), 4))
    x = jax.nn.silu(net.conv("d", jnp.concatenate([left, right, inner], -1), WIDTH, 1))
    windows = [x]
    for _ in range(2):
        windows.append(
            jax.lax.reduce_window(windows[-1], -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        )
    return net.conv("head", jax.nn.silu(net.conv("e", jnp.concatenate(windows, -1), 6, 1)), 5, 1)


def unet(net: Net, x: jax.Array) -> Any:
    top = net.block("a", x, 6)
    low = net.block("b", pool(top), WIDTH)
    up = jax.lax.conv_transpose(low, net.get("up/w", 2, 2, WIDTH, 6), (2, 2), "SAME")
    return net.conv("head", net.block("c", jnp.concatenate([top, up], -1), 6), 2, 1)


def diffusion(net: Net, x: jax.Array) -> jax.Array:
    h = net.conv("stem", x, WIDTH)
    time = net.dense("t1", jax.nn.silu(net.dense("t0", x.mean((1, 2)), 6)), 6)
    y = net.conv("a", jax.nn.silu(group_norm(net, "n", h)), 6) + time[:, None, None]
    h = h + net.conv("b", jax.nn.silu(y), WIDTH)
    flat = h.reshape(h.shape[0], -1, WIDTH)
    return net.conv("head", (flat + net.attention("attention", flat)).reshape(h.shape), x.shape[-1])


def group_norm(net: Net, name: str, x: jax.Array) -> jax.Array:
    parts = x.reshape(*x.shape[:3], 2, -1)
    centred = parts - parts.mean((1, 2, 4), keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 2, 4), keepdims=True) + 1e-5)
    return normed.reshape(x.shape) * net.get(f"{name}/scale", x.shape[-1])


def raft(net: Net, images: jax.Array) -> jax.Array:
    first, second = (net.conv("out", net.block("in", image, 6), 5, 1) for image in images)
    volume = jnp.einsum("bhwc,bijc->bhwij", first, second).reshape(*first.shape[:3], -1)
    h, flow = jnp.tanh(net.conv("context", images[0], 6)), jnp.zeros((*first.shape[:3], 2))
    for _ in range(2):
        seen = jax.nn.relu(net.conv("motion", jnp.concatenate([volume, flow], -1), 6))
        x = jnp.concatenate([h, seen], -1)
        z, r = jax.nn.sigmoid(net.conv("z", x, 6)), jax.nn.sigmoid(net.conv("r", x, 6))
        h = (1 - z) * h + z * jnp.tanh(net.conv("new", jnp.concatenate([r * h, seen], -1), 6))
        flow = flow + net.conv("flow", jax.nn.relu(net.conv("flow/in", h, 6)), 2)
    return flow
