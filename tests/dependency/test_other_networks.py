"""What networks of other projects are made of, one small input per kind: its groups, and that each can be removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from prune_rl.dependency.compaction import compact, compact_carry, compact_function
from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import path_string
from prune_rl.pruning.masks import apply_masks
from tests.compilation import quick_jit
from tests.dependency.small_networks import (
    Case,
    Params,
    assert_each_removable,
    assert_removable,
    error,
    normal,
    random_masks,
)

P: Params = {"a": normal(4, 16), "c": normal(16, 2), "d": normal(4, 16, seed=1), "e": normal(16, 1)}
P |= {"u": normal(4), "v": normal(16)}  # singular vectors, as a state that is not trained
X = jnp.asarray(normal(8, 4))
LEFT = normal(4)
KEY = jax.random.key(0)
n = jnp.tanh


def both(p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An actor and a critic."""
    return n(x @ p["a"]) @ p["c"], n(x @ p["d"]) @ p["e"]


@jax.custom_jvp
def both_with_jvp(p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return both(p, x)


both_with_jvp.defjvp(lambda primals, tangents: jax.jvp(both, primals, tangents))


def both_in_scan(p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    start = (jnp.zeros((8, 2)), jnp.zeros((8, 1)))
    return lax.scan(lambda c, _: (jax.tree.map(jnp.add, c, both(p, x)), None), start, None, 2)[0]


def both_in_cond(p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return lax.cond(x.sum() > 0, both, lambda p, x: jax.tree.map(jnp.sin, both(p, x)), p, x)


def rms_norm(h: jax.Array) -> jax.Array:
    return h * lax.rsqrt((h * h).sum(-1, keepdims=True) / 16 + 1e-6)


def one_pass_norm(h: jax.Array) -> jax.Array:
    mean, square = h.sum(-1, keepdims=True) / 16, (h * h).sum(-1, keepdims=True) / 16
    return (h - mean) * lax.rsqrt(jnp.maximum(square - mean * mean, 0) + 1e-6)


def batch_norm(p: Params, y: jax.Array) -> jax.Array:
    """Under vmap, as Equinox writes it."""
    h = y @ p["a"]
    return n(h - lax.pmean(h, "b")) @ p["c"]


def dropout(p: Params, x: jax.Array, key: jax.Array = KEY) -> jax.Array:
    return n(x @ p["a"]) * jax.random.bernoulli(key, 0.9, (8, 16)) @ p["c"]


def noisy(p: Params, x: jax.Array, key: jax.Array = KEY) -> jax.Array:
    return n(x @ (p["a"] + p["d"] * jax.random.normal(key, (4, 16)))) @ p["c"]


def spectral(p: Params, x: jax.Array) -> jax.Array:
    """Miyato et al. 2018: a kernel over its largest singular value, uᵀ W v."""
    return n(x @ (p["a"] / (p["u"] @ p["a"] @ p["v"]))) @ p["c"]


def power_iteration(p: Params, x: jax.Array) -> jax.Array:
    v = p["a"].T @ p["u"]
    v = v / jnp.sqrt((v * v).sum() + 1e-12)
    u = p["a"] @ v
    return spectral({**p, **lax.stop_gradient({"u": u / jnp.sqrt((u * u).sum() + 1e-12), "v": v})}, x)


MESH = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
STATISTICS = np.linspace(0.5, 2.0, 16, dtype=np.float32)

# The function, its inputs after the params, and its groups: {name: the leaves it takes positions of}.
KINDS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, set[str]]]] = {
    "unused code": (lambda p, x: both(p, x)[0], (X,), {"a": {"a", "c"}}),
    "unused in jit": (lambda p, x: jax.jit(both)(p, x)[0], (X,), {"a": {"a", "c"}}),
    "unused in a custom derivative": (lambda p, x: both_with_jvp(p, x)[0], (X,), {"a": {"a", "c"}}),
    "unused in checkpoint": (lambda p, x: jax.checkpoint(both)(p, x)[1], (X,), {"d": {"d", "e"}}),
    "unused in scan": (lambda p, x: both_in_scan(p, x)[0], (X,), {"a": {"a", "c"}}),
    "unused in cond": (lambda p, x: both_in_cond(p, x)[1], (X,), {"d": {"d", "e"}}),
    "root mean square": (lambda p, x: n(rms_norm(x @ p["a"])) @ p["c"], (X,), {"a": {"a", "c"}}),
    "one-pass variance": (lambda p, x: n(one_pass_norm(x @ p["a"])) @ p["c"], (X,), {"a": {"a", "c"}}),
    "array per neuron": (lambda p, x: n(x @ p["a"] * jnp.arange(1.0, 17)[None]) @ p["c"], (X,), {"a": {"a", "c"}}),
    "statistics": (
        lambda p, x: n((x @ p["a"] - STATISTICS[None]) / STATISTICS[None]) @ p["c"], (X,), {"a": {"a", "c"}}
    ),
    "one array, two layers": (
        lambda p, x: (n(x @ p["a"] * STATISTICS[None]) @ p["c"], n(x @ p["d"] * STATISTICS[None]) @ p["e"]),
        (X,),
        {"a": {"a", "c"}, "d": {"d", "e"}},
    ),
    "dropout": (dropout, (X,), {"a": {"a", "c"}}),
    "dropout by an argument": (dropout, (X, KEY), {"a": {"a", "c"}}),
    "dropout by an old key": (dropout, (X, jax.random.PRNGKey(1)), {"a": {"a", "c"}}),
    "noise on a kernel": (noisy, (X,), {"a": {"a", "c", "d"}}),
    "noise by an argument": (noisy, (X, KEY), {"a": {"a", "c", "d"}}),
    "mean over a named axis": (
        lambda p, x: jax.vmap(lambda y: batch_norm(p, y), axis_name="b")(x), (X,), {"a": {"a", "c"}}
    ),
    "largest over a named axis": (
        lambda p, x: jax.vmap(lambda y: (y @ p["a"] - lax.pmax(y @ p["a"], "b")) @ p["c"], axis_name="b")(x),
        (X,),
        {"a": {"a", "c"}},
    ),
    "sharding constraint": (
        lambda p, x: lax.with_sharding_constraint(
            n(x @ p["a"]), jax.sharding.NamedSharding(MESH, jax.P("batch", None))
        )
        @ p["c"],
        (X,),
        {"a": {"a", "c"}},
    ),
    "shards": (
        lambda p, x: jax.shard_map(
            lambda p, x: n(x @ p["a"] - lax.pmean(x @ p["a"], "batch").mean(0, keepdims=True)) @ p["c"],
            mesh=MESH,
            in_specs=(jax.P(), jax.P("batch")),
            out_specs=jax.P("batch"),
        )(p, x),
        (X,),
        {"a": {"a", "c"}},
    ),
    "device_put": (lambda p, x: jax.device_put(n(x @ p["a"])) @ p["c"], (X,), {"a": {"a", "c"}}),
    "scatter along the batch": (
        lambda p, x: n(x @ p["a"]).at[jnp.array([1, 5])].multiply(2.0) @ p["c"], (X,), {"a": {"a", "c"}}
    ),
    "scatter into zeros": (
        lambda p, x: jnp.zeros((3, 16)).at[(jnp.arange(8) * 2) % 3].add(n(x @ p["a"])) @ p["c"],
        (X,),
        {"a": {"a", "c"}},
    ),
    "stack": (
        lambda p, x: jnp.stack([n(x @ p["a"]), jnp.cos(x @ p["a"])], 1).max(1) @ p["c"], (X,), {"a": {"a", "c"}}
    ),
    "unstack": (
        lambda p, x: sum(jnp.unstack(n(x @ p["a"]).reshape(2, 4, 16))) @ p["c"], (X,), {"a": {"a", "c"}}
    ),
    "spectral norm, vectors closed over": (
        lambda p, x: n(x @ (p["a"] / (LEFT @ p["a"] @ STATISTICS))) @ p["c"], (X,), {"a": {"a", "c"}}
    ),
    "spectral norm, vectors in the state": (spectral, (X,), {"a": {"a", "c", "v"}}),
    "spectral norm with a step of the power iteration": (power_iteration, (X,), {"a": {"a", "c"}}),
    "two towers": (
        lambda p, x: jnp.einsum("bi,bi->b", x @ p["a"], n(x @ p["d"])), (X,), {"a": {"a", "d"}}
    ),
    "two towers and a head": (
        lambda p, x: (jnp.einsum("bi,bi->b", x @ p["a"], n(x @ p["d"])), n(x @ p["d"]) @ p["e"]),
        (X,),
        {"a": {"a", "d", "e"}},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The groups of every kind, each checked for removal."""
    cases = [
        Case(fn, P, inputs, seed, gradients="largest" not in kind)  # lax.pmax has no derivative
        for seed, (kind, (fn, inputs, _)) in enumerate(KINDS.items())
    ]
    return dict(zip(KINDS, assert_each_removable(cases), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_groups_and_they_can_be_removed(found: dict[str, Any], kind: str) -> None:
    leaves = {name: {path_string(s.path) for s in group.slices} for name, group in found[kind].items()}
    assert leaves == KINDS[kind][2], found[kind].rejected


def test_a_smaller_network_trains_on_with_the_same_randomness() -> None:
    groups = find_groups(dropout, P, X, KEY)
    masks = random_masks(groups)
    small_fn = compact_function(dropout, groups, P, masks)
    other = jax.random.key(7)
    ours, expected, same = quick_jit(
        lambda: (
            small_fn(compact(groups, P, masks), X, other),
            dropout({**P, "a": P["a"] * masks["a"][None]}, X, other),
            dropout({**P, "a": P["a"] * masks["a"][None]}, X, KEY),
        )
    )()
    assert error(ours, expected) <= 1e-5
    assert error(same, expected) > 0.01


def test_a_kernel_that_an_input_is_part_of_is_listed() -> None:
    groups = find_groups(lambda p, x, noise: n(x @ (p["a"] + p["d"] * noise)) @ p["c"], P, X, normal(4, 16))
    assert len(groups) == 0
    assert dict(groups.rejected)["a axis 1, d axis 1"] == "is an input of fn"


@pytest.mark.parametrize(
    "norm",
    [
        lambda h: h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6),
        lambda h: h * lax.rsqrt((h * h).sum(-1, keepdims=True) / h.shape[-1] + 1e-6),
    ],
)
def test_a_mean_that_is_counted_anew_is_refused_or_kept(norm: Callable[[jax.Array], jax.Array]) -> None:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        return n(norm(x @ p["a"])) @ p["c"]

    refused = find_groups(fn, P, X)
    assert len(refused) == 0
    assert "keep_counts=True" in dict(refused.rejected)["a axis 1"]
    assert list(assert_removable(fn, P, X, keep_counts=True)) == ["a"]
    # Where the widths are fixed, fn cannot run on smaller arrays, and there is nothing to mistake.
    fixed = assert_removable(lambda p, x: fn({**p, "a": p["a"].reshape(4, 16)}, x), P, X)
    assert list(fixed) == ["a"]


def attention(p: Params, x: jax.Array, features: int | None) -> jax.Array:
    """One head of which query, key and value are one projection; features that are None are counted anew."""
    query, key, value = jnp.split(x @ p["qkv"], 3, -1)
    scores = query @ key.T / (query.shape[-1] if features is None else features) ** 0.5
    return jax.nn.softmax(scores) @ value @ p["out"]


def test_features_counted_anew_where_only_equal_parts_of_a_fused_projection_can_go_are_refused() -> None:
    params = {"qkv": normal(4, 48), "out": normal(16, 2)}
    refused = find_groups(lambda p, x: attention(p, x, None), params, X)
    assert [group.slices[0].indices(16).size for group in refused.values()] == [16]  # the values alone
    assert "keep_counts=True" in dict(refused.rejected)["qkv axis 1 [0:32]"]
    assert len(assert_removable(lambda p, x: attention(p, x, None), params, X, keep_counts=True)) == 2
    assert len(assert_removable(lambda p, x: attention(p, x, 16), params, X)) == 2


def test_a_ratio_of_two_widths_is_counted_by_both() -> None:
    """It stays as it is where both lose equal shares."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        return n(n(x @ p["a"]) @ p["b"] * (p["b"].shape[0] / p["b"].shape[1])) @ p["c"]

    params = {"a": normal(4, 16), "b": normal(16, 16), "c": normal(16, 2)}
    groups = find_groups(fn, params, X)
    assert [what for what, why in groups.rejected if "keep_counts=True" in why] == ["a axis 1", "b axis 1"]
    assert list(assert_removable(fn, params, X, keep_counts=True)) == ["a", "b"]


@pytest.mark.parametrize(
    "scaled",
    [
        lambda h, c: h @ c / c.shape[0] ** 0.5,
        lambda h, c: h @ (c * c.shape[0] ** -0.5),
        lambda h, c: h * (1 / c.shape[0]) @ c,
        lambda h, c: h / jnp.asarray(c.shape[0]) @ c,
        lambda h, c: (h * jnp.full((1, c.shape[0]), 1 / c.shape[0])) @ c,
        lambda h, c: (h * np.full((1, c.shape[0]), 1 / c.shape[0], np.float32)) @ c,
        lambda h, c: (h * np.linspace(1, 2, c.shape[0], dtype=np.float32)[None]) @ c,
        lambda h, c: (h * jnp.arange(1.0, 1 + c.shape[0])[None]) @ c,
    ],
)
def test_a_layer_that_is_scaled_by_the_number_or_the_places_of_its_inputs_is_refused_or_kept(
    scaled: Callable[[jax.Array, jax.Array], jax.Array],
) -> None:
    """As in the parametrisation of neural tangent kernels, and of networks with equal learning rates."""

    def fn(p: Params, x: jax.Array) -> jax.Array:
        return scaled(n(x @ p["a"]), p["c"])

    refused = find_groups(fn, P, X)
    assert len(refused) == 0
    assert "keep_counts=True" in dict(refused.rejected)["a axis 1"]
    assert list(assert_removable(fn, P, X, keep_counts=True)) == ["a"]


@pytest.mark.parametrize("kind", ["any width", "counts anew", "fixed width"])
def test_how_often_a_function_is_traced_does_not_depend_on_how_many_groups_it_has(kind: str) -> None:
    def traces(layers: int) -> int:
        params = {"qkv": [normal(4, 48)] * layers, "out": [normal(16, 4)] * layers}
        calls = []

        def fn(p: Any, x: jax.Array) -> jax.Array:
            calls.append(1)
            for qkv, out in zip(p["qkv"], p["out"], strict=True):
                wide = qkv.reshape(4, 48) if kind == "fixed width" else qkv
                features = None if kind == "counts anew" else 16
                x = x + attention({"qkv": wide, "out": out}, x, features)
            return x

        groups = find_groups(fn, params, X)
        assert len(groups) == (1 if kind == "counts anew" else 2) * layers
        return len(calls)

    assert traces(6) == traces(3)


@pytest.mark.parametrize("fixed", [(0,), (4,), (0, 4), (0, 1, 2), (1, 2, 3, 4)])
def test_layers_of_one_loop_of_which_some_fix_their_width_are_each_tried(fixed: tuple[int, ...]) -> None:
    params = {"a": [normal(4, 16)] * 5, "c": [normal(16, 4)] * 5}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        for i, (a, c) in enumerate(zip(p["a"], p["c"], strict=True)):
            h = n(x @ a).reshape(-1, 16 if i in fixed else a.shape[1])
            x = x + h @ c / c.shape[0]
        return x

    assert list(find_groups(fn, params, X)) == [f"a/{i}" for i in fixed]


def test_groups_whose_parameters_the_same_code_uses_in_other_places_are_tried_apart() -> None:
    params = {
        name: normal(*shape)
        for name, shape in (("a", (4, 16)), ("c", (16, 4)), ("d", (4, 16)), ("e", (16, 4)))
    }

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = x + (n(x @ p["a"]) / 16).reshape(8, 16) @ p["c"]
        return (n(x @ p["d"]) / p["d"].shape[1]).reshape(8, p["d"].shape[1]) @ p["e"]

    assert list(find_groups(fn, params, X)) == ["a"]


# --- outputs of any type ---


@jax.tree_util.register_pytree_node_class
class Normal:
    """A distribution that checks its arguments, as those of tfp and distrax do."""

    def __init__(self, mean: jax.Array, scale: jax.Array, name: str = "Normal") -> None:
        self.mean, self.scale, self.name = jnp.asarray(mean), jnp.exp(scale), name

    def tree_flatten(self) -> tuple[tuple[Any, ...], str]:
        return (self.mean, self.scale), self.name

    @classmethod
    def tree_unflatten(cls, name: str, leaves: tuple[Any, ...]) -> Normal:
        mean, scale = leaves
        return cls(mean, jnp.log(scale), name)


def test_outputs_are_whatever_pytree_they_are() -> None:
    def policy(p: Params, x: jax.Array) -> Any:
        return Normal(n(x @ p["a"]) @ p["c"], x.sum(-1, keepdims=True), "policy")

    groups = find_groups(policy, P, X)
    assert list(groups) == ["a"]
    masks = random_masks(groups)
    small = compact_function(policy, groups, P, masks, X)(compact(groups, P, masks), X)
    assert isinstance(small, Normal)
    assert small.name == "policy"
    # Leaves that are no arrays are returned as they are.
    named = compact_function(lambda p, x: {"mean": policy(p, x).mean, "name": "policy"}, groups, P, masks)
    assert named(compact(groups, P, masks), X)["name"] == "policy"
    masked = policy({**P, "a": P["a"] * masks["a"][None]}, X)
    assert error((small.mean, small.scale), (masked.mean, masked.scale)) <= 1e-5


# --- grouped convolutions ---


def grouped(x: jax.Array, kernel: jax.Array, count: int = 1) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=count
    )


@pytest.mark.parametrize(
    ("channels", "features", "groups"), [(6, 6, 3), (6, 9, 3), (4, 8, 2), (3, 6, 3), (3, 3, 3), (6, 3, 3)]
)
def test_whole_groups_of_a_convolution_go_or_equally_many_channels_of_each(
    channels: int, features: int, groups: int
) -> None:
    params = {
        "a": normal(1, 1, 2, channels),
        "g": normal(3, 3, channels // groups, features),
        "c": normal(features, 2),
    }

    def fn(p: Params, x: jax.Array) -> jax.Array:
        return n(grouped(n(grouped(x, p["a"])), p["g"], groups)).sum((1, 2)) @ p["c"]

    case = Case(fn, params, (normal(2, 4, 4, 2),), 1)
    whole, equal = assert_each_removable([case, case._replace(equal_channels=True)])
    assert [group.size for group in whole.values()] == [groups]
    assert {name: group.size for name, group in equal.items()} == {
        "a": channels // groups,
        "g": features // groups,
    }
    # The channels at one place in each group.
    into, _ = equal["a"].slices
    assert into.indices(channels // groups).T.tolist() == np.arange(channels).reshape(groups, -1).tolist()


def test_what_whole_groups_cannot_do_equal_channels_can() -> None:
    """The groups of a convolution of the input have to stay."""
    params = {"g": normal(3, 3, 1, 6), "c": normal(6, 2)}
    groups = assert_removable(
        lambda p, x: n(grouped(x, p["g"], 2)).sum((1, 2)) @ p["c"], params, normal(2, 4, 4, 2)
    )
    assert groups["g"].slices[0].indices(3).tolist() == [[0, 3], [1, 4], [2, 5]]


# --- attention ---

HEADS, TOKENS = 3, normal(2, 5, 6)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention; the heads are split off and joined again by reshapes."""
    q, k, v = (z.reshape(2, 5, HEADS, -1).transpose(0, 2, 1, 3) for z in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / 2
    masked = jnp.where(jnp.tril(jnp.ones((5, 5), bool))[None, None], scores, -jnp.inf)
    return (jax.nn.softmax(masked, -1) @ v).transpose(0, 2, 1, 3).reshape(2, 5, -1)


def separate(p: Params, x: jax.Array) -> jax.Array:
    return attend(x @ p["q"] + p["b"][None, None], x @ p["k"], x @ p["v"]) @ p["o"]


def fused(p: Params, x: jax.Array) -> jax.Array:
    q, k, v = jnp.split(x @ p["qkv"], 3, -1)
    return attend(q, k, v) @ p["o"]


SEPARATE = {
    "q": normal(6, 12),
    "b": normal(12),
    "k": normal(6, 12, seed=1),
    "v": normal(6, 12, seed=2),
    "o": normal(12, 2),
}
FUSED = {"qkv": normal(6, 36), "o": normal(12, 2)}


@pytest.mark.parametrize(("fn", "params"), [(separate, SEPARATE), (fused, FUSED)])
def test_what_heads_compare_and_what_they_carry(fn: Callable[..., Any], params: Params) -> None:
    groups = assert_removable(fn, params, TOKENS, seed=1)
    assert [group.size for group in groups.values()] == [4, 4]
    assert groups["qkv[0:24]" if fn is fused else "q"].slices[0].indices(4).shape == (
        4,
        HEADS * (2 if fn is fused else 1),
    )


@pytest.mark.parametrize(("fn", "params"), [(separate, SEPARATE), (fused, FUSED)])
def test_whole_heads(fn: Callable[..., Any], params: Params) -> None:
    groups = assert_removable(fn, params, TOKENS, seed=4, whole_heads=True)
    assert [group.size for group in groups.values()] == [HEADS]


# --- a step that carries a state ---


def gru(p: Params, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The acting step of a recurrent policy: h, x -> h, y."""
    gates = jax.nn.sigmoid(x @ p["xg"] + h @ p["hg"] + p["b"][None])
    z, r = jnp.split(gates, 2, -1)
    h = (1 - z) * jnp.tanh(x @ p["xn"] + r * (h @ p["hn"])) + z * h
    return h, h @ p["c"]


def lstm(p: Params, state: Any, x: jax.Array) -> Any:
    h, cell = state
    i, f, g, o = jnp.split(x @ p["x"] + h @ p["h"], 4, -1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return (h, cell), n(h @ p["a"]) @ p["c"]


GRU = {
    "xg": normal(4, 12), "hg": normal(6, 12), "b": normal(12), "xn": normal(4, 6), "hn": normal(6, 6),
    "c": normal(6, 2),
}  # fmt: skip
LSTM = {"x": normal(4, 20), "h": normal(5, 20), "a": normal(5, 7), "c": normal(7, 2)}
ZEROS = np.zeros((8, 5), np.float32)
STEPS: list[tuple[Callable[..., Any], Params, Any, list[int]]] = [
    (gru, GRU, np.zeros((8, 6), np.float32), [6]),
    (lstm, LSTM, (ZEROS, ZEROS), [5, 7]),
]


@pytest.mark.parametrize(("fn", "params", "start", "sizes"), STEPS)
def test_a_step_on_the_small_state(
    fn: Callable[..., Any], params: Params, start: Any, sizes: list[int]
) -> None:
    inputs = normal(3, 8, 4)
    assert not {"b"} & set(find_groups(fn, params, start, X))  # the state is an input and an output
    groups = find_groups(fn, params, start, X, carry=True)
    assert sorted(group.size for group in groups.values()) == sizes
    masks = random_masks(groups, 1)
    small = compact(groups, params, masks)
    small_fn = compact_function(fn, groups, params, masks, start, X, carry=True)
    small_start = compact_carry(fn, groups, params, masks, start, X)
    masked = apply_masks(groups, params, masks)

    def play(step: Callable[..., Any], params: Params, state: Any) -> Any:
        return jax.lax.scan(lambda state, x: step(params, state, x), state, inputs)

    (_, expected), (end, ours), one = quick_jit(
        lambda: (
            play(fn, masked, start),
            play(small_fn, small, small_start),
            small_fn(small, jax.tree.map(lambda leaf: leaf[:1], small_start), X[:1])[1],
        )
    )()
    assert error(ours, expected) <= 1e-5
    assert error(one, fn(masked, jax.tree.map(lambda leaf: leaf[:1], start), X[:1])[1]) <= 1e-5
    assert [leaf.shape for leaf in jax.tree.leaves(end)] == [
        leaf.shape for leaf in jax.tree.leaves(small_start)
    ]
    assert jax.tree.leaves(small_start)[0].shape[-1] < jax.tree.leaves(start)[0].shape[-1]


def test_a_state_that_is_summed_up_must_stay_0() -> None:
    def fn(p: Params, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(x @ p["a"]) + jnp.cos(h) * h.sum(-1, keepdims=True)
        return h, h @ p["c"]

    refused = find_groups(fn, P, np.zeros((8, 16), np.float32), X, carry=True)
    assert len(refused) == 0
    assert "reduce_sum" in dict(refused.rejected)["a axis 1"]
    with pytest.raises(ValueError, match="first output of fn must be like its first input"):
        find_groups(lambda p, h, x: (h[:1], x), P, np.zeros((8, 16), np.float32), X, carry=True)
    with pytest.raises(ValueError, match="needs the inputs"):
        compact_function(gru, find_groups(gru, GRU, STEPS[0][2], X, carry=True), GRU, {}, carry=True)


def test_neurons_that_are_split_over_devices_are_refused() -> None:
    def fn(p: Params, x: jax.Array) -> jax.Array:
        return jax.shard_map(
            lambda a, c, x: lax.psum(n(x @ a) @ c, "batch"),
            mesh=MESH,
            in_specs=(jax.P(None, "batch"), jax.P("batch"), jax.P()),
            out_specs=jax.P(),
        )(p["a"], p["c"], x)

    refused = find_groups(fn, P, X)
    assert len(refused) == 0
    assert any("is split over devices" in reason for _, reason in refused.rejected)
