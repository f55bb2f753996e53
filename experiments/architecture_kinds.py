"""The neurons of each kind of architecture that Torch-Pruning lists, and whether they can be removed exactly.

    .venv/bin/python -m experiments.architecture_kinds

Each kind is a small network of plain JAX functions with the connections of its namesake: for every one, the groups are
found, half of the neurons are masked at random, and the compacted function is compared with the masked one on random
inputs. The table is that of docs/architectures.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prune_rl

Params = dict[str, Any]
BATCH, SIDE, TOKENS, WIDTH, HEADS = 2, 8, 6, 8, 2


class Net:
    """Layers that make their parameters when a network is traced the first time, and read them afterwards."""

    def __init__(self, forward: Callable[[Net, Any], Any], x: Any, **options: bool) -> None:
        self.forward, self.x, self.options = forward, x, options
        self.made: Params = {}
        self.params: Params | None = None
        with jax.numpy_rank_promotion("allow"):
            jax.eval_shape(lambda x: forward(self, x), x)
        self.params = self.made

    def __call__(self, params: Params, x: Any) -> Any:
        kept, self.params = self.params, params
        try:
            with jax.numpy_rank_promotion("allow"):
                return self.forward(self, x)
        finally:
            self.params = kept

    def get(self, name: str, *shape: int, positive: bool = False) -> jax.Array:
        if self.params is None:
            rng = np.random.default_rng(len(self.made))
            scale = 1 / max(1, int(np.prod(shape[:-1]))) ** 0.5 if len(shape) > 1 else 0.5
            array = rng.normal(size=shape, scale=scale).astype(np.float32)
            self.made[name] = np.abs(array) + 0.5 if positive else array
            return jnp.asarray(self.made[name])
        leaf: jax.Array = self.params[name]
        return leaf

    def dense(self, name: str, x: jax.Array, width: int, bias: bool = True) -> jax.Array:
        y: jax.Array = x @ self.get(f"{name}/w", x.shape[-1], width)
        return y + self.get(f"{name}/b", width) if bias else y

    def conv(
        self,
        name: str,
        x: jax.Array,
        width: int,
        size: int = 3,
        groups: int = 1,
        stride: int = 1,
        dilation: int = 1,
    ) -> jax.Array:
        kernel = self.get(f"{name}/w", size, size, x.shape[-1] // groups, width)
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """Batch normalisation with the statistics of training, which lie among the parameters."""
        mean, var = (self.get(f"{name}/{s}", x.shape[-1], positive=s == "var") for s in ("mean", "var"))
        scale, shift = (self.get(f"{name}/{s}", x.shape[-1]) for s in ("scale", "shift"))
        return (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + shift

    def block(self, name: str, x: jax.Array, width: int, size: int = 3, **more: Any) -> jax.Array:
        """Convolution, batch normalisation, nonlinearity."""
        return jax.nn.relu(self.norm(f"{name}/norm", self.conv(name, x, width, size, **more)))

    def squeeze(self, name: str, x: jax.Array) -> jax.Array:
        """Squeeze and excitation."""
        pooled = jax.nn.relu(self.dense(f"{name}/down", x.mean((1, 2)), 3))
        gate: jax.Array = jax.nn.sigmoid(self.dense(f"{name}/up", pooled, x.shape[-1]))
        return x * gate[:, None, None]

    def layer_norm(self, name: str, x: jax.Array) -> jax.Array:
        """As PyTorch, Equinox and Haiku compute it, in two passes."""
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return centred * scale * self.get(f"{name}/scale", x.shape[-1]) + self.get(
            f"{name}/shift", x.shape[-1]
        )

    def rms_norm(self, name: str, x: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return x * scale * self.get(f"{name}/scale", x.shape[-1])

    def attention(self, name: str, x: jax.Array, *, causal: bool = False, bias: bool = False) -> jax.Array:
        """Heads are split off a fused projection by reshapes; ``bias``: one per pair of places, as in Swin."""
        b, t, width = x.shape
        parts = jnp.split(self.dense(f"{name}/qkv", x, 3 * width), 3, -1)
        q, k, v = (z.reshape(b, t, HEADS, -1).transpose(0, 2, 1, 3) for z in parts)
        scores = q @ k.transpose(0, 1, 3, 2) / (width // HEADS) ** 0.5
        if bias:
            scores = scores + self.get(f"{name}/places", HEADS, t, t)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
        heads = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(b, t, width)
        return self.dense(f"{name}/out", heads, width)

    def mlp(self, name: str, x: jax.Array) -> jax.Array:
        return self.dense(
            f"{name}/down", jax.nn.gelu(self.dense(f"{name}/up", x, 3 * x.shape[-1])), x.shape[-1]
        )


def pool(x: jax.Array) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def bigger(x: jax.Array) -> Any:
    """Bilinear interpolation to twice the size."""
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "bilinear")


def classified(net: Net, x: jax.Array) -> jax.Array:
    return net.dense("head", x.mean((1, 2)), 3)


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


def _image(seed: int = 0, channels: int = 3) -> Any:
    return np.random.default_rng(seed).normal(size=(BATCH, SIDE, SIDE, channels)).astype(np.float32)


WORDS = np.random.default_rng(0).integers(0, 11, (BATCH, TOKENS))
SERIES = np.random.default_rng(0).normal(size=(BATCH, TOKENS, 4)).astype(np.float32)
COUNTED = {"keep_counts": True}
# The network, its input, options of find_groups, and what Torch-Pruning says of the kind.
LISTED, NOT = "yes", "no"
KINDS: dict[str, tuple[Callable[[Net, Any], Any], Any, dict[str, bool], str]] = {
    "AlexNet, VGG": (vgg, _image(), {}, LISTED),
    "ResNet, Wide ResNet": (resnet, _image(), {}, LISTED),
    "ResNeXt, RegNet (whole groups)": (grouped, _image(), {}, LISTED),
    "ResNeXt, RegNet (channels of every group)": (grouped, _image(), {"equal_channels": True}, LISTED),
    "DenseNet": (densenet, _image(), {}, LISTED),
    "SqueezeNet": (squeezenet, _image(), {}, LISTED),
    "GoogLeNet, Inception": (inception, _image(), {}, LISTED),
    "MNASNet, MobileNet v2": (mobilenet, _image(), {}, LISTED),
    "MobileNet v3, EfficientNet": (efficientnet, _image(), {}, LISTED),
    "ShuffleNet v2": (shufflenet, _image(), {}, LISTED),
    "ConvNeXt": (convnext, _image(), {}, LISTED),
    "ViT": (vit, _image(), {}, LISTED),
    "Swin": (swin, _image(), {}, "HF's; not Torchvision's"),
    "FCN, DeepLab v3, LR-ASPP": (segmentation, _image(), {}, LISTED),
    "Faster and Mask R-CNN, FCOS, RetinaNet (pyramid and heads)": (pyramid, _image(), {}, LISTED),
    "YOLO v7, v8": (yolo, _image(), {}, LISTED),
    "RAFT": (raft, np.stack([_image(), _image(1)]), {}, NOT),
    "U-Net": (unet, _image(), {}, "not listed"),
    "Diffusion U-Net": (diffusion, _image(), {}, LISTED),
    "GPT": (gpt, WORDS, {}, "not listed"),
    "Llama": (llama, WORDS, COUNTED, LISTED),
    "BERT": (bert, WORDS, {}, LISTED),
    "GRU": (gru, SERIES, {}, LISTED),
}


def row(kind: str) -> dict[str, Any]:
    """What is found in one kind: sizes, shares, the error of compaction, and what stays whole."""
    forward, x, options, theirs = KINDS[kind]
    net = Net(forward, x)
    params = net.made
    groups = prune_rl.find_groups(net, params, x, **options)
    rng = np.random.default_rng(1)
    masks = {name: rng.permutation(group.size) >= group.size // 2 for name, group in groups.items()}
    small = prune_rl.compact(groups, params, masks)
    small_fn = prune_rl.compact_function(net, groups, params, masks)
    ours, expected = jax.jit(
        lambda: (small_fn(small, x), net(prune_rl.apply_masks(groups, params, masks), x)),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True))
    scale = max(float(jnp.abs(b).max()) for _, b in pairs)
    whole = {reason.split(" (as in")[0] for _, reason in groups.rejected} - {"is an output of fn"}
    return {
        "groups": len(groups),
        "neurons": sum(group.size for group in groups.values()),
        "weights left": prune_rl.count(groups, params, masks).weights,
        "error": max(float(jnp.abs(a - b).max()) for a, b in pairs) / scale,
        "whole": whole,
        "rejected": groups.rejected,
        "theirs": theirs,
    }


def table() -> str:
    """The rows in Markdown."""
    columns = (
        "kind",
        "Torch-Pruning",
        "groups",
        "neurons",
        "weights left",
        "relative error",
        "what stays whole",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---|---:|---:|---:|---:|---|"]
    for kind in KINDS:
        found = row(kind)
        left, whole = found["weights left"], "; ".join(sorted(found["whole"]))
        cells = (
            kind,
            found["theirs"],
            found["groups"],
            found["neurons"],
            f"{100 * left.kept / left.total:.0f} %",
            f"{found['error']:.0e}",
            whole,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
