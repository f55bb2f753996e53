"""Multilayer perceptrons as pure functions: shapes come from the params, so wide and compacted params run alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import Params
from prune_rl.spaces import Discrete, Spec

Activation = Callable[[jax.Array], jax.Array]

# Layers with at most so many outputs, an actor's head as a rule, go through `_narrow_product`.
NARROW = 16
_barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier  # which has no types in jax

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}


def init_mlp(
    key: jax.Array, sizes: Sequence[int], head_scale: float, *, skip: bool = False, layer_norm: bool = False
) -> Params:
    """Orthogonal kernels (√2 in hidden layers, ``head_scale`` in the last) and zero biases, float32.

    ``sizes``: inputs, hidden widths, outputs. Returns {"layer_0": {"kernel": [in, out], "bias": [out]}, …, "head": …},
    with ``skip`` and a hidden layer also {"skip": {"kernel": [in, out]}}, a linear path beside the layers, 0 at first.
    With ``layer_norm``, hidden layers also have a "scale" [out], 1 at first: what they receive is normalised.
    """
    params: Params = {}
    last = len(sizes) - 2
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        scale = head_scale if i == last else 2.0**0.5
        kernel = jax.nn.initializers.orthogonal(scale)(
            jax.random.fold_in(key, i), (fan_in, fan_out), jnp.float32
        )
        params["head" if i == last else f"layer_{i}"] = {
            "kernel": kernel,
            "bias": jnp.zeros(fan_out, jnp.float32),
        }
        if layer_norm and i < last:
            params[f"layer_{i}"]["scale"] = jnp.ones(fan_out, jnp.float32)
    if skip and last > 0:
        params["skip"] = {"kernel": jnp.zeros((sizes[0], sizes[-1]), jnp.float32)}
    return params


def num_hidden(params: Params) -> int:
    """Number of hidden layers of an MLP's params."""
    return sum(name.startswith("layer_") for name in params)


def input_size(params: Params) -> int:
    """Inputs of an MLP, or of each member of an ensemble."""
    first = params["layer_0"] if "layer_0" in params else params["head"]
    size: int = first["kernel"].shape[-2]
    return size


def apply_mlp(params: Params, x: jax.Array, activation: str) -> jax.Array:
    """Outputs of the last layer for ``x`` […, in], and of the linear path if there is one: float32[…, out]."""
    act, inputs = ACTIVATIONS[activation], x
    for i in range(num_hidden(params)):
        layer = params[f"layer_{i}"]
        x = act(_dense(layer, x))
    outputs = _dense(params["head"], x)
    return outputs + _matmul(inputs, params["skip"]["kernel"]) if "skip" in params else outputs


def init_ensemble(
    key: jax.Array, size: int, sizes: Sequence[int], head_scale: float, *, layer_norm: bool = False
) -> Params:
    """Params of ``size`` independent MLPs in one tree, every leaf with a leading axis [size, …]."""
    keys = jax.random.split(key, size)
    members = [init_mlp(member_key, sizes, head_scale, layer_norm=layer_norm) for member_key in keys]
    stacked: Params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return stacked


def is_ensemble(params: Params) -> bool:
    """Whether params are those of an ensemble rather than of one MLP."""
    axes: int = params["head"]["bias"].ndim
    return axes > 1


def apply_ensemble(params: Params, x: jax.Array, activation: str) -> jax.Array:
    """Outputs of every member for the same ``x`` […, in]: float32[size, …, out]."""
    size = params["head"]["bias"].shape[0]
    # One copy of x per member: the product of a shared x with all members at once would be transposed afterwards.
    each = jnp.broadcast_to(x, (size, *x.shape))
    outputs: jax.Array = jax.vmap(lambda member, x: apply_mlp(member, x, activation))(params, each)
    return outputs


def _dense(layer: Params, x: jax.Array) -> jax.Array:
    y = _matmul(x, layer["kernel"])
    if "scale" in layer:
        y = _normalized(y) * jnp.broadcast_to(layer["scale"], y.shape)
    biased: jax.Array = y + jnp.broadcast_to(layer["bias"], y.shape)
    return biased


def _normalized(y: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the neurons (Ba, Kiros and Hinton 2016, `arXiv 1607.06450`, equation 3)."""
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # XLA's CPU backend alone is slow at the plain gradient, see below.
    narrow = 1 < kernel.shape[-1] <= NARROW and jax.default_backend() == "cpu"
    return _narrow_product(x, kernel) if narrow else x @ kernel


@jax.custom_jvp
def _narrow_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel`` for a kernel [in, out] of few columns, whose gradient is computed as (gᵀ x)ᵀ.

    On a CPU XLA computes xᵀ g, with its short rows, five times slower: 3 % of a gradient step of SAC. The barrier keeps
    XLA from rewriting the one as the other.
    """
    return x @ kernel


@_narrow_product.defjvp
def _narrow_product_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    rows = x.reshape(-1, x.shape[-1])
    along_kernel = jax.lax.dot_general(_barrier(kernel_dot.T), rows, (((1,), (1,)), ((), ()))).T
    return x @ kernel, x_dot @ kernel + along_kernel.reshape(*x.shape[:-1], kernel.shape[-1])


def init_actor_critic(
    key: jax.Array,
    spec: Spec,
    hidden: Sequence[int],
    critic_hidden: Sequence[int],
    *,
    skip: bool = False,
    layer_norm: bool = False,
) -> Params:
    """Params of a separate actor and critic of these hidden widths; of the options of ``init_mlp``, ``skip`` is for the
    actor, ``layer_norm`` for the critic.

    The actor's head starts near zero (an almost uniform policy, Andrychowicz et al. 2021, section 3.2). With a ``Box``
    the actor also has a state-independent ``log_std`` [size], which starts at 0.
    """
    actor_key, critic_key = jax.random.split(key)
    sizes = [spec.observation_size, *hidden, spec.action.num_outputs]
    actor = init_mlp(actor_key, sizes, 0.01, skip=skip)
    if not isinstance(spec.action, Discrete):
        actor["log_std"] = jnp.zeros(spec.action.size, jnp.float32)
    sizes = [spec.observation_size, *critic_hidden, 1]
    return {"actor": actor, "critic": init_mlp(critic_key, sizes, 1.0, layer_norm=layer_norm)}


def init_actor_q_critics(
    keys: tuple[jax.Array, jax.Array],
    spec: Spec,
    hidden: Sequence[int],
    critic_hidden: Sequence[int],
    *,
    num_critics: int = 2,
    skip: bool = False,
    layer_norm: bool = False,
) -> Params:
    """Params of an actor with a state-dependent spread, and of an ensemble of action-value critics; a key for each.

    With a ``Box`` the actor puts out mean and log standard deviation of each component, and the critics read the action
    beside the observation; with ``Discrete`` actions both put out a number per action. The actor's head starts near 0.
    """
    outputs, inputs = spec.action.num_outputs, spec.observation_size
    actor_outputs, critic_inputs, critic_outputs = outputs, inputs, outputs
    if not isinstance(spec.action, Discrete):
        actor_outputs, critic_inputs, critic_outputs = 2 * outputs, inputs + outputs, 1
    critic_sizes = [critic_inputs, *critic_hidden, critic_outputs]
    return {
        "actor": init_mlp(keys[0], [inputs, *hidden, actor_outputs], 0.01, skip=skip),
        "critic": init_ensemble(keys[1], num_critics, critic_sizes, 1.0, layer_norm=layer_norm),
    }
