"""The compacted network is the masked network, to 1e-5, whatever the activation and the architecture."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_rl.dependency.compaction import compact, compact_function, expand
from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.masks import apply_masks, count, init_masks
from tests.compilation import quick_jit
from tests.dependency.small_networks import dense, random_like, random_masks

TOLERANCE = 1e-5
X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


def distance(a: Any, b: Any) -> float:
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    return max(
        float(np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32)).max(initial=0)) for x, y in pairs
    )


def init(shapes: Any, seed: int = 0) -> Any:
    """Random normal NumPy leaves, biases included, so that no zero hides a mistake."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: np.asarray(rng.normal(size=s, scale=0.7), np.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def layer(inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs), **({"bias": (outputs,)} if bias else {})}


def mlp(activation: Callable[[jax.Array], jax.Array]) -> Callable[[Any, jax.Array | np.ndarray], jax.Array]:
    def apply(params: Any, x: Any) -> jax.Array:
        for name in sorted(params):
            if name != "head":
                x = activation(dense(params[name], x))
        return dense(params["head"], x)

    return apply


def mlp_params(*widths: int, bias: bool = True, seed: int = 0) -> Any:
    sizes = list(itertools.pairwise(widths))
    shapes = {f"layer_{i}": layer(*size, bias) for i, size in enumerate(sizes[:-1])}
    return init({**shapes, "head": layer(*sizes[-1], bias)}, seed)


ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "cos": jnp.cos,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 4])
def test_masked_is_compact_for_any_activation(activation: str, depth: int) -> None:
    fn = mlp(ACTIVATIONS[activation])
    params = mlp_params(4, *range(9, 9 + depth), 2)
    groups = find_groups(fn, params, X)
    assert len(groups) == depth
    masks = random_masks(groups)
    small = compact(groups, params, masks)
    assert small["layer_0"]["kernel"].shape == (4, masks["layer_0"].sum())
    assert small["head"]["bias"].shape == (2,)
    small_fn = compact_function(fn, groups, params, masks, X)

    def outputs(params: Any, small: Any) -> Any:
        masked = apply_masks(groups, params, masks)
        return fn(masked, X), fn(small, X), small_fn(small, X), fn(params, X)

    masked, directly, compacted, full = quick_jit(outputs)(params, small)
    assert distance(directly, masked) <= TOLERANCE
    assert distance(compacted, masked) <= TOLERANCE
    assert distance(full, masked) > 0.01


class Flax(nn.Module):
    """Widths are attributes, so `apply` refuses smaller parameters."""

    widths: tuple[int, ...] = (16, 12, 8)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for activation, width in zip((nn.gelu, nn.relu, nn.softplus), self.widths, strict=True):
            x = activation(nn.Dense(width, bias_init=nn.initializers.normal(1.0))(x))
        return nn.Dense(3)(x), nn.Dense(1)(x).squeeze(-1)


class Fixed:
    """A flax module, its groups and a compacted copy."""

    def __init__(self) -> None:
        self.fn = Flax().apply
        self.params = random_like(jax.eval_shape(Flax().init, jax.random.key(1), X))
        self.groups = find_groups(self.fn, self.params, X)
        self.masks = random_masks(self.groups)
        self.masked = quick_jit(apply_masks, static_argnums=0)(self.groups, self.params, self.masks)
        self.small = compact(self.groups, self.params, self.masks)
        self.small_fn = compact_function(self.fn, self.groups, self.params, self.masks, X)


@pytest.fixture(scope="module")
def fixed() -> Fixed:
    return Fixed()


def test_a_module_of_fixed_width(fixed: Fixed) -> None:
    with pytest.raises(Exception, match="shape"):
        fixed.fn(fixed.small, X)
    small, masked = quick_jit(lambda: (fixed.small_fn(fixed.small, X), fixed.fn(fixed.masked, X)))()
    assert distance(small, masked) <= TOLERANCE


@pytest.mark.parametrize("shape", [(4,), (1, 4), (12, 4), (2, 3, 4)])
def test_other_batch_shapes(fixed: Fixed, shape: tuple[int, ...]) -> None:
    """12 and 16 are also widths of the module."""
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    small, masked = quick_jit(lambda: (fixed.small_fn(fixed.small, x), fixed.fn(fixed.masked, x)))()
    assert distance(small, masked) <= TOLERANCE


def test_nothing_of_the_full_size_is_computed(fixed: Fixed) -> None:
    jaxpr = jax.make_jaxpr(fixed.small_fn)(fixed.small, X)
    widths = {int(n) for eqn in jaxpr.eqns for var in eqn.outvars for n in var.aval.shape}
    assert not widths & {8, 12, 16}


def test_under_vmap_grad_and_second_derivatives(fixed: Fixed) -> None:
    def loss(apply: Any, params: Any, x: jax.Array | np.ndarray) -> jax.Array:
        policy, value = apply(params, x)
        return (policy**2).sum() + (value**3).sum()

    def derivatives(fn: Any, params: Any) -> Any:
        return (
            jax.vmap(fn, (None, 0))(params, X),
            jax.grad(lambda params: loss(fn, params, X))(params),
            jax.hessian(lambda x: loss(fn, params, x[None]))(X[0]),
        )

    (rows, full, curvature), (small_rows, found, small_curvature) = quick_jit(
        lambda masked, small: (derivatives(fixed.fn, masked), derivatives(fixed.small_fn, small))
    )(fixed.masked, fixed.small)
    assert distance(small_rows, rows) <= TOLERANCE
    expected = compact(fixed.groups, full, fixed.masks)
    assert distance(found, expected) <= 1e-4 * max(float(abs(g).max()) for g in jax.tree.leaves(expected))
    assert distance(small_curvature, curvature) <= 1e-4 * float(abs(curvature).max())


def test_custom_derivatives_are_kept() -> None:
    """Both functions lie about their derivative; the compacted network has to tell the same lies."""

    @jax.custom_jvp
    def jvp_lie(h: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.tanh(h) * scale

    @jvp_lie.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jvp_lie(*primals), 5 * tangents[0] + 0 * jnp.zeros(primals[0].shape)

    @jax.custom_vjp
    def vjp_lie(h: jax.Array, steps: jax.Array) -> jax.Array:
        return jnp.sin(h)

    vjp_lie.defvjp(lambda h, steps: (jnp.sin(h), h), lambda h, g: (g * jnp.full(h.shape, 3.0) + h, None))

    def activation(h: jax.Array) -> jax.Array:
        return vjp_lie(jvp_lie(h, jnp.float32(1.5)), jnp.int32(2)) + jax.checkpoint(jnp.cos)(h)

    fn = mlp(activation)
    params = mlp_params(4, 9, 8, 2)
    groups = find_groups(fn, params, X)
    masks = random_masks(groups)
    masked, small = apply_masks(groups, params, masks), compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks, X)
    true_fn = mlp(lambda h: jnp.sin(1.5 * jnp.tanh(h)) + jnp.cos(h))

    def slope(fn: Any, params: Any) -> Any:
        return jax.grad(lambda p: (fn(p, X) ** 2).sum())(params)

    full, found, honest = quick_jit(
        lambda: (slope(fn, masked), slope(small_fn, small), slope(true_fn, small))
    )()
    expected = compact(groups, full, masks)
    assert distance(found, expected) <= 1e-4 * max(float(abs(g).max()) for g in jax.tree.leaves(expected))
    assert distance(found, honest) > 0.1


def test_traced_once_under_jit(fixed: Fixed, count_traces: Callable[..., Any]) -> None:
    counted = count_traces(fixed.fn)
    step = quick_jit(compact_function(counted, fixed.groups, fixed.params, fixed.masks))
    for i in range(3):
        step(jax.tree.map(lambda leaf, i=i: leaf * i, fixed.small), X + i)
    assert counted.traces == 1


def trunk(p: Any, x: jax.Array) -> Any:
    h = jax.nn.sigmoid(dense(p["trunk"], x))
    return dense(p["pi"], h), dense(p["v"], jnp.tanh(dense(p["vh"], h)))[:, 0]


def residual(p: Any, x: jax.Array) -> jax.Array:
    h = jnp.cos(dense(p["a"], x))
    for name in ("b", "c"):
        h = h + jax.nn.softplus(dense(p[name], h))
    return dense(p["head"], h)


def tied(p: Any, x: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(x @ p["w"]) @ p["w"].T


def gated(p: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.sigmoid(dense(p["a"], x)) * dense(p["b"], x) * (1 + p["scale"][None]) + 1
    return jnp.einsum("bi,oi->bo", h, p["out"])


def two_networks(p: Any, x: jax.Array) -> Any:
    return mlp(jnp.cos)(p["actor"], x), mlp(jnp.tanh)(p["critic"], x).mean()


NETWORKS: dict[str, tuple[Callable[..., Any], Any, set[str]]] = {
    "trunk": (
        trunk,
        {"trunk": layer(4, 9), "pi": layer(9, 3), "vh": layer(9, 6), "v": layer(6, 1)},
        {"trunk", "vh"},
    ),
    "residual": (
        residual,
        {"a": layer(4, 9), "b": layer(9, 9), "c": layer(9, 9), "head": layer(9, 2)},
        {"a/kernel"},
    ),
    "tied": (tied, {"w": (4, 9)}, {"w"}),
    "gated": (gated, {"a": layer(4, 9), "b": layer(4, 9), "scale": (9,), "out": (2, 9)}, {"a/kernel"}),
    "two networks": (
        two_networks,
        {
            "actor": {"l0": layer(4, 9, False), "head": layer(9, 2)},
            "critic": {"l0": layer(4, 7), "head": layer(7, 1)},
        },
        {"actor/l0", "critic/l0"},
    ),
    "ensemble": (
        jax.vmap(mlp(jnp.cos), (0, None)),
        {"l0": {"kernel": (3, 4, 9), "bias": (3, 9)}, "head": {"kernel": (3, 9, 2), "bias": (3, 2)}},
        {"l0"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_is_compact_for_any_architecture(name: str) -> None:
    fn, shapes, expected = NETWORKS[name]
    params = init(shapes)
    groups = find_groups(fn, params, X)
    assert set(groups) == expected
    masks = random_masks(groups)
    small = compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks, X)

    def outputs(params: Any, small: Any) -> Any:
        masked = apply_masks(groups, params, masks)
        return masked, fn(masked, X), fn(small, X), small_fn(small, X)

    masked, expected_out, directly, compacted = quick_jit(outputs)(params, small)
    assert distance(directly, expected_out) <= TOLERANCE
    assert distance(compacted, expected_out) <= TOLERANCE
    assert distance(expand(groups, small, masks), masked) == 0
    assert count(groups, params, masks).weights.kept == sum(leaf.size for leaf in jax.tree.leaves(small))


@pytest.mark.parametrize("kept", [0, 1])
def test_layers_of_no_or_one_neuron(kept: int) -> None:
    fn, params = mlp(jax.nn.sigmoid), mlp_params(4, 5, 6, 2)
    groups = find_groups(fn, params, X)
    masks = {"layer_0": np.arange(5) < kept, "layer_1": np.arange(6) < kept}
    small = compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks, X)
    masked, directly, compacted = quick_jit(
        lambda: (fn(apply_masks(groups, params, masks), X), fn(small, X), small_fn(small, X))
    )()
    assert distance(directly, masked) <= TOLERANCE
    assert distance(compacted, masked) <= TOLERANCE
    if kept:  # and its groups can be found again
        assert [group.size for group in find_groups(fn, small, X).values()] == [1, 1]


@given(
    widths=st.lists(st.sampled_from([1, 4, 7]), min_size=1, max_size=4),
    batch=st.sampled_from([1, 4, 7]),
    bias=st.booleans(),
    seed=st.integers(0, 10_000),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
@settings(max_examples=8)
def test_random_widths_and_masks(widths: list[int], batch: int, bias: bool, seed: int, share: float) -> None:
    fn, params = mlp(jax.nn.softplus), mlp_params(4, *widths, 2, bias=bias, seed=seed)
    x = np.random.default_rng(seed).normal(size=(batch, 4)).astype(np.float32)
    groups = find_groups(fn, params, x)
    assert [group.size for group in groups.values()] == widths
    masks = random_masks(groups, seed, share)
    small = compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks)
    both = quick_jit(lambda: (fn(apply_masks(groups, params, masks), x), fn(small, x), small_fn(small, x)))()
    assert distance(both[1], both[0]) <= TOLERANCE
    assert distance(both[2], both[0]) <= TOLERANCE
    assert distance(compact(groups, expand(groups, small, masks), masks), small) == 0


# Batch, input, hidden layers and output are all of one width: only the program tells the axes apart.
STEPS: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {
    "dense": lambda p, h, g: dense(p, h),
    "transposed": lambda p, h, g: jnp.einsum("bi,oi->ob", h, p["kernel"]).T,
    "cos": lambda p, h, g: jnp.cos(h),
    "residual": lambda p, h, g: h + dense(p, g),
    "gate": lambda p, h, g: h * jax.nn.sigmoid(g),
    "shift": lambda p, h, g: jax.nn.relu(h) + p["bias"][None],
    "mean": lambda p, h, g: h - h.mean(1, keepdims=True),
    "batch mean": lambda p, h, g: h - h.mean(0, keepdims=True),
    "softmax": lambda p, h, g: jax.nn.softmax(h),
    "flip batch": lambda p, h, g: h.T,
    "outer": lambda p, h, g: jnp.tanh(h @ g.T),
    "kernel of kernels": lambda p, h, g: h @ (p["kernel"] @ p["other"]),
    "scaled kernel": lambda p, h, g: h @ (p["kernel"] * p["bias"][None]),
    "shifted kernel": lambda p, h, g: h @ (p["kernel"] + 1),
    "where": lambda p, h, g: jnp.where(g > 0, h, -h),
    "reshape": lambda p, h, g: jnp.tanh(h.reshape(-1)).reshape(h.shape),
    "another axis": lambda p, h, g: jnp.squeeze(jnp.sin(h[:, None] + g[:, None]), 1),
    "three axes": lambda p, h, g: jnp.sin(h.reshape(1, *h.shape) + g[None]).reshape(h.shape),
    "ambiguous ones": lambda p, h, g: jnp.sin(h.reshape(*h.shape, 1)).reshape(h.shape[0], 1, -1)[:, 0],
    "weighted": lambda p, h, g: jnp.einsum("bi,bj->bj", h, g),
    "column": lambda p, h, g: h * jnp.einsum("bi,i->b", g, p["bias"])[:, None],
    "back": lambda p, h, g: g,
}


@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=7),
    width=st.sampled_from([1, 4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_whatever_is_found_in_a_random_program_is_removable(steps: list[str], width: int, seed: int) -> None:
    """Soundness: groups may be missed, but a group that is found can always be removed exactly."""
    shapes = {f"{i}": {**layer(width, width), "other": (width, width)} for i in range(len(steps) + 2)}
    params = init(shapes, seed)
    x = np.random.default_rng(seed).normal(size=(width, width)).astype(np.float32)

    def fn(params: Any, x: Any) -> jax.Array:
        before, h = x, jnp.sin(dense(params["0"], x))
        for i, step in enumerate(steps):
            before, h = h, STEPS[step](params[f"{i + 1}"], h, before)
        return dense(params[f"{len(steps) + 1}"], h)

    groups = find_groups(fn, params, x)
    masks = random_masks(groups, seed)
    small = compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks, x)
    masked, removed = quick_jit(lambda: (fn(apply_masks(groups, params, masks), x), small_fn(small, x)))()
    assert distance(removed, masked) <= TOLERANCE * max(1.0, float(jnp.abs(masked).max()))


def test_masks_and_params_batched_over_seeds() -> None:
    """Every seed of a vmapped run compacts to what its own masks say."""
    fn = mlp(jax.nn.sigmoid)
    seeds = [mlp_params(4, 9, 8, 2, seed=seed) for seed in range(3)]
    groups = find_groups(fn, seeds[0], X)
    masks = [random_masks(groups, seed) for seed in range(3)]
    stacked, stacked_masks = (jax.tree.map(lambda *a: np.stack(a), *trees) for trees in (seeds, masks))
    one_shape = {name: np.arange(group.size) < 3 for name, group in groups.items()}
    small_fn = compact_function(fn, groups, seeds[0], one_shape)
    each = [compact(groups, *pair) for pair in zip(seeds, masks, strict=True)]

    def outputs(stacked: Any, stacked_masks: Any, each: list[Any]) -> Any:
        masked = jax.vmap(lambda p, m: fn(apply_masks(groups, p, m), X))(stacked, stacked_masks)
        small = jax.vmap(lambda p: compact(groups, p, one_shape))(stacked)
        expected = jax.vmap(lambda p: fn(apply_masks(groups, p, one_shape), X))(stacked)
        return [fn(p, X) for p in each], masked, jax.vmap(small_fn, (0, None))(small, X), expected

    found, masked, compacted, expected = quick_jit(outputs)(stacked, stacked_masks, each)
    assert all(distance(found[seed], masked[seed]) <= TOLERANCE for seed in range(3))
    assert distance(compacted, expected) <= TOLERANCE


def test_numpy_stays_numpy_and_dtypes_stay() -> None:
    fn = mlp(jnp.tanh)
    params = jax.tree.map(np.asarray, mlp_params(4, 5, 2))
    groups = find_groups(fn, params, X)
    masks = {"layer_0": np.array([True, False, True, True, False])}
    small = compact(groups, params, masks)
    assert {type(leaf) for leaf in jax.tree.leaves(small)} == {np.ndarray}
    assert {type(leaf) for leaf in jax.tree.leaves(expand(groups, small, masks))} == {np.ndarray}
    assert np.array_equal(small["layer_0"]["kernel"], params["layer_0"]["kernel"][:, [0, 2, 3]])
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    assert compact(groups, half, masks)["head"]["kernel"].dtype == jnp.bfloat16
    assert compact_function(fn, groups, half, masks)(
        compact(groups, half, masks), X.astype(jnp.bfloat16)
    ).shape == (7, 2)


def test_part_of_the_tree() -> None:
    fn, shapes, _ = NETWORKS["two networks"]
    params = init(shapes)
    groups = find_groups(fn, params, X)
    masks = random_masks(groups)
    actor = compact(groups.at("actor"), params["actor"], masks)
    assert distance(actor, compact(groups, params, masks)["actor"]) == 0


def test_errors() -> None:
    fn, params = mlp(jnp.tanh), mlp_params(4, 5, 6, 2)
    groups = find_groups(fn, params, X)
    masks = random_masks(groups)
    small = compact(groups, params, masks)
    for traced in (
        lambda m: compact(groups, params, m),
        lambda m: expand(groups, small, m),
        lambda m: compact_function(fn, groups, params, m)(small, X),
    ):
        with pytest.raises(ValueError, match="the mask of group 'layer_0' is traced"):
            jax.jit(traced)(init_masks(groups))
    with pytest.raises(ValueError, match=r"should hold \d neurons of group 'layer_0' along axis 1.*\(4, 5\)"):
        compact_function(fn, groups, params, masks)(params, X)
    with pytest.raises(ValueError, match="no such leaf"):
        expand(groups, small["layer_0"], masks)

    def normalised(p: Any, x: jax.Array) -> jax.Array:
        return mlp(lambda h: h * jnp.cos(h).sum(-1, keepdims=True))(p, x)

    with pytest.raises(
        ValueError, match=r"cannot run on fewer neurons, because their axis goes through 'reduce_sum'"
    ):
        compact_function(normalised, groups, params, masks, X)
