"""Layers of the small networks: plain JAX functions that make their parameters when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
