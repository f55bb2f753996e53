"""What counts as a neuron, by name, size, order and role; and what is refused, with the reason."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroup, NeuronGroups, Slice, path_string
from prune_rl.dependency.jaxpr import trace
from prune_rl.dependency.propagation import link

X = jax.ShapeDtypeStruct((7, 4), jnp.float32)


def shape(*size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, jnp.float32)


def layer(inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"kernel": shape(inputs, outputs), "bias": shape(outputs)}


def dense(params: Any, x: jax.Array) -> jax.Array:
    y = x @ params["kernel"]
    return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def mlp(params: Any, x: jax.Array) -> jax.Array:
    hidden = [name for name in sorted(params) if name.startswith("layer_")]
    for name in hidden:
        x = jnp.tanh(dense(params[name], x))
    return dense(params["head"], x)


def mlp_params(*widths: int) -> dict[str, Any]:
    sizes = list(itertools.pairwise(widths))
    params = {f"layer_{i}": layer(*size) for i, size in enumerate(sizes[:-1])}
    return {**params, "head": layer(*sizes[-1])}


def slices(group: NeuronGroup) -> list[tuple[str, int, str]]:
    return [(path_string(s.path), s.axis, s.role) for s in group.slices]


def sizes(groups: NeuronGroups) -> dict[str, int]:
    return {name: group.size for name, group in groups.items()}


def test_nested_dict_names_sizes_order_and_slices() -> None:
    groups = find_groups(mlp, mlp_params(4, 5, 6, 2), X)
    assert list(sizes(groups).items()) == [("layer_0", 5), ("layer_1", 6)]
    assert slices(groups["layer_1"]) == [
        ("layer_1/kernel", 1, "in"),
        ("layer_1/bias", 0, "bias"),
        ("head/kernel", 0, "out"),
    ]
    assert [s.role for s in groups["layer_0"].incoming] == ["in", "bias"]
    assert [s.role for s in groups["layer_0"].outgoing] == ["out"]
    assert groups.rejected == (("head/kernel axis 1", "is an output of fn"),)


def test_two_networks_and_an_output_side_parameter() -> None:
    params = {
        "actor": {**mlp_params(4, 5, 6, 2), "log_std": shape(2)},
        "critic": mlp_params(4, 8, 1),
    }

    def fn(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return mlp(params["actor"], x), params["actor"]["log_std"], mlp(params["critic"], x)[:, 0]

    groups = find_groups(fn, params, X)
    assert list(sizes(groups).items()) == [("actor/layer_0", 5), ("actor/layer_1", 6), ("critic/layer_0", 8)]
    touched = {(path, axis) for group in groups.values() for path, axis, _ in slices(group)}
    outputs = {
        ("actor/head/kernel", 1),
        ("actor/head/bias", 0),
        ("actor/log_std", 0),
        ("critic/head/kernel", 1),
    }
    assert not touched & outputs
    assert ("actor/layer_0/kernel", 0) not in touched  # observations

    actor = groups.at("actor")
    assert list(actor) == ["actor/layer_0", "actor/layer_1"]
    assert slices(actor["actor/layer_0"])[0] == ("layer_0/kernel", 1, "in")
    assert tuple(actor.values()) != tuple(groups.at("critic").values())


def test_a_layer_of_the_width_of_input_batch_and_output() -> None:
    """Axes are told apart by where they go, not by their length."""
    groups = find_groups(mlp, mlp_params(4, 4, 4, 4), shape(4, 4))
    assert sizes(groups) == {"layer_0": 4, "layer_1": 4}
    assert slices(groups["layer_0"])[-1] == ("layer_1/kernel", 0, "out")


@pytest.mark.parametrize("batch", [(), (1,), (7,), (3, 7)])
@pytest.mark.parametrize("width", [1, 5])
def test_any_number_of_batch_axes(batch: tuple[int, ...], width: int) -> None:
    groups = find_groups(mlp, mlp_params(4, width, width, 2), shape(*batch, 4))
    assert sizes(groups) == {"layer_0": width, "layer_1": width}


def test_list_of_tuples_flat_dict_and_no_bias() -> None:
    def fn(params: list[tuple[Any, Any]], x: jax.Array) -> jax.Array:
        (w0, b0), (w1, b1) = params
        return jax.nn.relu(x @ w0 + b0[None]) @ w1 + b1[None]

    assert sizes(find_groups(fn, [(shape(4, 5), shape(5)), (shape(5, 2), shape(2))], X)) == {"0": 5}

    flat = {"w0": shape(4, 5), "b0": shape(5), "w1": shape(5, 6), "b1": shape(6), "w2": shape(6, 2)}
    groups = find_groups(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w0"] + p["b0"][None]) @ p["w1"] + p["b1"][None]) @ p["w2"],
        flat,
        X,
    )
    assert sizes(groups) == {"w0": 5, "w1": 6}  # all layers share the empty path

    bare = find_groups(lambda p, x: jax.nn.silu(x @ p[0]) @ p[1], [shape(4, 5), shape(5, 2)], X)
    assert {name: slices(group) for name, group in bare.items()} == {"0": [("0", 1, "in"), ("1", 0, "out")]}


def test_a_shared_prefix_that_is_no_layer_falls_back_to_the_leaf() -> None:
    params = {"net": {"w0": shape(4, 5), "b0": shape(5), "w1": shape(5, 2)}}
    groups = find_groups(
        lambda p, x: jnp.tanh(x @ p["net"]["w0"] + p["net"]["b0"][None]) @ p["net"]["w1"], params, X
    )
    assert sizes(groups) == {"net/w0": 5}


@pytest.mark.parametrize(
    "spec", ["bi,io->bo", "bi,oi->bo", "ib,oi->bo", "bi,io->ob", "tbi,io->tbo", "i,oi->o"]
)
def test_dot_general_in_any_layout(spec: str) -> None:
    left, right = spec.split("->")[0].split(",")
    lengths = {"t": 2, "b": 7, "i": 4, "o": 5}
    x, kernel = (shape(*(lengths[c] for c in term)) for term in (left, right))
    out = spec.split("->")[1]

    def fn(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.gelu(jnp.einsum(spec, x, params["first"]))
        return jnp.tensordot(h, params["second"], axes=([out.index("o")], [1]))

    groups = find_groups(fn, {"first": kernel, "second": shape(3, 5)}, x)
    assert {n: slices(g) for n, g in groups.items()} == {
        "first": [("first", right.index("o"), "in"), ("second", 1, "out")]
    }


class Flax(nn.Module):
    widths: tuple[int, ...]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = nn.softplus(nn.Dense(width, use_bias=self.use_bias)(x))
        return nn.Dense(2)(x)


@pytest.mark.parametrize("use_bias", [True, False])
def test_flax_linen(use_bias: bool) -> None:
    module = Flax((5, 6), use_bias)
    params = jax.eval_shape(module.init, jax.random.key(0), X)
    groups = find_groups(module.apply, params, X)
    assert list(sizes(groups).items()) == [("params/Dense_0", 5), ("params/Dense_1", 6)]
    assert len(groups["params/Dense_0"].slices) == 2 + use_bias


def test_a_trunk_with_two_heads_has_two_outgoing_slices() -> None:
    params = {"trunk": layer(4, 5), "pi": layer(5, 3), "v": layer(5, 1)}

    def fn(params: Any, x: jax.Array) -> Any:
        h = jnp.tanh(dense(params["trunk"], x))
        return dense(params["pi"], h), dense(params["v"], h)

    groups = find_groups(fn, params, X)
    assert [path_string(s.path) for s in groups["trunk"].outgoing] == ["pi/kernel", "v/kernel"]
    with pytest.raises(ValueError, match=r"group 'trunk' has slices inside and outside params\['pi'\]"):
        groups.at("pi")
    assert len(groups.select([]).at("pi")) == 0


def test_residual_connections_tie_two_kernels() -> None:
    params = {"a": layer(4, 5), "b": layer(5, 5), "head": layer(5, 2)}

    def fn(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(dense(params["a"], x))
        return dense(params["head"], h + jnp.tanh(dense(params["b"], h)))

    groups = find_groups(fn, params, X)
    (group,) = groups.values()
    assert group.name == "a/kernel"  # the layers a and b have no common path
    assert set(slices(group)) == {
        ("a/kernel", 1, "in"),
        ("b/kernel", 1, "in"),
        ("a/bias", 0, "bias"),
        ("b/bias", 0, "bias"),
        ("b/kernel", 0, "out"),
        ("head/kernel", 0, "out"),
    }


def test_tied_weights_are_both_incoming_and_outgoing() -> None:
    groups = find_groups(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": shape(4, 5)}, X)
    assert {n: slices(g) for n, g in groups.items()} == {"w": [("w", 1, "in"), ("w", 1, "out")]}


def test_scales_gates_and_several_uses_of_one_layer() -> None:
    params = {"a": layer(4, 5), "scale": shape(5), "gate": layer(4, 5), "head": layer(5, 2)}

    def fn(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def net(x: jax.Array) -> jax.Array:
            h = jax.nn.relu(dense(params["a"], x) * (1 + params["scale"][None]))
            return dense(params["head"], h * jax.nn.sigmoid(dense(params["gate"], x)))

        return net(x), net(y)

    (group,) = find_groups(fn, params, X, shape(3, 4)).values()
    assert ("scale", 0, "bias") in slices(group)
    assert len(group.slices) == len(set(group.slices)) == 6


ACTIVATIONS = [
    jax.nn.relu,
    jax.nn.gelu,
    functools.partial(jax.nn.gelu, approximate=False),
    jax.nn.silu,
    jax.nn.elu,
    jax.nn.selu,
    jax.nn.softplus,
    jax.nn.sigmoid,
    jax.nn.leaky_relu,
    jax.nn.mish,
    jax.nn.hard_tanh,
    jax.nn.relu6,
    jax.nn.log_sigmoid,
    jnp.sin,
    jax.jit(jnp.tanh),
    jax.checkpoint(jnp.tanh),
    lambda h: jnp.where(h > 0, h, 0.01 * h),
    lambda h: jnp.clip(h, -1.0, 1.0) ** 3,
    lambda h: jnp.where(h == 0, 0.0, 1 / h),  # the branch not taken is inf, the result is not
    lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
    lambda h: jnp.squeeze(h.T.T[:, None], 1),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_elementwise_activation(activation: Callable[[jax.Array], jax.Array]) -> None:
    params = {"a": layer(4, 5), "head": layer(5, 2)}
    groups = find_groups(lambda p, x: dense(p["head"], activation(dense(p["a"], x))), params, X)
    assert sizes(groups) == {"a": 5}, groups.rejected


CONSTANT = np.arange(5, dtype=np.float32).reshape(1, 5)
REFUSED: dict[str, tuple[Callable[[jax.Array], jax.Array], str]] = {
    "mean": (lambda h: h - h.mean(-1, keepdims=True), "counts neurons, as the 1/N of a mean"),
    "sum of what is not 0": (lambda h: h * jnp.cos(h).sum(-1, keepdims=True), "goes through 'reduce_sum'"),
    "maximum": (lambda h: h * h.max(-1, keepdims=True), "reduce_max"),
    "argmax": (lambda h: h * h.argmax(-1, keepdims=True), "argmax"),
    "top": (lambda h: h * jax.lax.top_k(h, 1)[0], "top_k"),
    "softmax": (jax.nn.softmax, "reduce_max"),
    "layer norm": (lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True), "layer_norm"),
    "sort": (lambda h: jnp.sort(h, -1), "sort"),
    "cumulative sum": (lambda h: jnp.cumsum(h, -1), "cumsum"),
    "quotient by a constant with zeros": (lambda h: h / jnp.eye(7, 5), "would be nan"),
    "constant that is not finite": (lambda h: h * (1 / jnp.eye(7, 5)), "would be nan"),
    "either 0 or 1": (lambda h: 1 / jnp.where(h.sum(-1, keepdims=True) > 0, h, 1), "would be nan"),
    "reciprocal": (lambda h: 1 / h, "would be inf"),
    "logarithm": (lambda h: jnp.log(jax.nn.relu(h)), "would be -inf"),
    "quotient": (lambda h: h.sum(0, keepdims=True) * 0 + 1 / (h * h[:1]), "would be inf"),
    "unknown over zero": (lambda h: jnp.cos(h) * h.sum(-1, keepdims=True) / h, "would be nan"),
    "loop that shifts": (lambda h: jax.lax.fori_loop(0, 3, lambda _, c: c + 1, h) / h, "would be nan"),
    "position that is computed": (
        lambda h: h * jax.lax.dynamic_slice_in_dim(h, (h.sum() > 0).astype(jnp.int32), 1, 1),
        "dynamic_slice",
    ),
    "position that is written": (
        lambda h: jax.lax.dynamic_update_slice_in_dim(
            h, h.sum(1)[:, None], (h.sum() > 0).astype(jnp.int32), 1
        ),
        "dynamic_update_slice",
    ),
    "positions that a loop changes": (
        lambda h: jax.lax.fori_loop(0, 3, lambda _, c: ((c[0] + 1) % 5, h[:, c[0]]), (jnp.arange(5), h))[1],
        "gather",
    ),
    "loop that shifts late": (
        lambda h: (
            h
            * jax.lax.fori_loop(0, 3, lambda _, c: (c[0] + 1, jnp.abs(c[0])), (h, h))[1].sum(
                -1, keepdims=True
            )
        ),
        "goes through 'reduce_sum'",
    ),
    "loop over the neurons": (
        lambda h: jax.lax.scan(lambda c, x: (c, x + c), jnp.zeros(7), h.T)[1].T,
        "scan",
    ),
    "branch": (lambda h: 1 / jax.lax.cond(h.sum() > 0, jnp.sin, jnp.tanh, h), "would be inf"),
    "branches that differ": (
        lambda h: 1 / jax.lax.cond(h.sum() > 0, jnp.cos, jnp.exp, h) / h,
        "would be inf",
    ),
    "reshape across": (lambda h: jnp.tanh(h.reshape(5, 7)).reshape(7, 5), "reshape"),
    "scatter": (lambda h: h.at[:, 1].set(0.0), "scatter"),
    "product that is not 0": (lambda h: (jnp.cos(h) @ jnp.cos(h).T) @ h, "does not become 0"),
    "product with ones": (lambda h: h @ jnp.ones((5, 5)), "is read by no kernel"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_removed_is_refused_with_its_reason(what: str) -> None:
    between, reason = REFUSED[what]
    params = {"a": layer(4, 5), "b": layer(5, 6), "head": layer(6, 2)}

    def fn(params: Any, x: jax.Array) -> jax.Array:
        h = between(jnp.sin(dense(params["a"], x)))
        return dense(params["head"], jnp.tanh(dense(params["b"], h)))

    groups = find_groups(fn, params, X)
    assert sizes(groups) == {"b": 6}  # the neighbour is found all the same
    assert any(reason in why for where, why in groups.rejected if where.startswith("a/kernel axis 1"))


def test_a_constant_decides_for_each_neuron() -> None:
    params = {"a": layer(4, 5), "head": layer(5, 2)}
    groups = find_groups(lambda p, x: dense(p["head"], dense(p["a"], x) / CONSTANT), params, X)
    assert sizes(groups) == {"a": 4}
    assert groups["a"].slices[0].positions == ((1,), (2,), (3,), (4,))
    assert "would be nan" in dict(groups.rejected)["a/kernel axis 1 [0:1]"]


def test_what_reaches_an_output_or_a_nonzero_kernel_is_refused() -> None:
    params = {"a": shape(4, 5), "b": shape(5, 6), "c": shape(6, 2)}

    def features(p: Any, x: jax.Array) -> Any:
        h = jnp.tanh(x @ p["a"])
        return jnp.tanh(h @ p["b"]) @ p["c"], h

    groups = find_groups(features, params, X)
    assert sizes(groups) == {"b": 6}
    assert dict(groups.rejected)["a axis 1"] == "is an output of fn"

    shifted = find_groups(lambda p, x: jnp.cos(x @ p["a"]) @ (p["b"] + 1), params, X)
    assert len(shifted) == 0
    assert "does not become 0" in dict(shifted.rejected)["a axis 1"]

    normed = find_groups(
        lambda p, x: jnp.tanh(x @ (p["a"] / jnp.linalg.norm(p["a"], axis=0)[None])) @ p["b"], params, X
    )
    assert len(normed) == 0  # 0 / 0 at a removed neuron
    assert "would be nan" in dict(normed.rejected)["a axis 1"]

    low_rank = find_groups(lambda p, x: jnp.tanh(x @ (p["a"] @ p["b"])) @ p["c"], params, X)
    assert {n: slices(g) for n, g in low_rank.items()} == {"b": [("b", 1, "in"), ("c", 0, "out")]}


@pytest.mark.parametrize("width", [1, 5])
def test_data_reshaped_to_the_hidden_layer_fixes_its_width(width: int) -> None:
    params = {"a": shape(4, width), "b": shape(width, 2)}
    groups = find_groups(
        lambda p, x, z: (jnp.tanh(x @ p["a"]) * z.reshape(7, width)) @ p["b"], params, X, shape(7 * width)
    )
    assert dict(groups.rejected)["a axis 1"] == "goes through 'reshape'"


def test_a_penalty_on_the_kernel_inside_fn_is_removable_unless_it_is_a_mean() -> None:
    params = mlp_params(4, 5, 6, 2)
    groups = find_groups(lambda p, x: (mlp(p, x), (p["layer_0"]["kernel"] ** 2).sum()), params, X)
    assert sizes(groups) == {"layer_0": 5, "layer_1": 6}
    groups = find_groups(lambda p, x: (mlp(p, x), (p["layer_0"]["kernel"] ** 2).mean()), params, X)
    assert sizes(groups) == {"layer_1": 6}


def test_an_ensemble_by_vmap_over_params_shares_its_neurons() -> None:
    params = jax.tree.map(lambda s: shape(3, *s.shape), mlp_params(4, 5, 2))
    groups = find_groups(jax.vmap(mlp, (0, None)), params, X)
    assert {n: slices(g) for n, g in groups.items()} == {
        "layer_0": [("layer_0/kernel", 2, "in"), ("layer_0/bias", 1, "bias"), ("head/kernel", 1, "out")]
    }
    assert sizes(find_groups(jax.vmap(mlp, (None, 0)), mlp_params(4, 5, 2), shape(3, 7, 4))) == {"layer_0": 5}


def test_only_shapes_are_used_also_of_tracers() -> None:
    abstract = mlp_params(4, 5, 6, 2)
    concrete = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan), abstract)
    expected = find_groups(mlp, abstract, X)
    seen = []

    @jax.jit
    def step(params: Any, x: jax.Array) -> jax.Array:
        seen.append(find_groups(mlp, params, x))
        return jnp.zeros(())

    step(concrete, jnp.ones(X.shape))
    jax.vmap(lambda x: step(concrete, x))(jnp.ones((2, *X.shape)))
    assert seen == [expected] * len(seen)
    assert seen
    assert find_groups(mlp, concrete, np.ones(X.shape)) == expected


def test_groups_are_hashable_comparable_and_static_under_jit(
    count_traces: Callable[[Callable[..., Any]], Any],
) -> None:
    def fresh() -> NeuronGroups:
        return find_groups(mlp, mlp_params(4, 5, 6, 2), X)

    assert fresh() == fresh()
    assert hash(fresh()) == hash(fresh())
    assert fresh() != fresh().select(["layer_1"])
    total = count_traces(lambda groups, x: x * sum(g.size for g in groups.values()))
    step = jax.jit(total, static_argnums=0)
    assert step(fresh(), 2.0) == step(fresh(), 2.0) == 22.0
    assert total.traces == 1
    with pytest.raises(TypeError):
        fresh()["layer_0"] = fresh()["layer_1"]  # type: ignore[index]


def test_select() -> None:
    groups = find_groups(mlp, mlp_params(4, 5, 6, 2), X)
    assert list(groups.select(lambda group: group.size > 5)) == ["layer_1"]
    assert list(groups.select(["layer_1", "layer_0"])) == ["layer_0", "layer_1"]
    with pytest.raises(ValueError, match=r"no neuron group named \['layer_7'\]; the groups are"):
        groups.select(["layer_7"])


@pytest.mark.parametrize(
    ("params", "inputs", "message"),
    [
        ({"a": "kernel"}, (X,), r"params\['a'\] must be an array.*got str"),
        (mlp_params(4, 5, 2), (object(),), r"inputs\[0\] must be an array.*functools.partial"),
    ],
)
def test_what_is_not_an_array_is_named(params: Any, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_groups(mlp, params, *inputs)


def test_scalars_keys_and_unused_leaves_are_ignored() -> None:
    params = {
        **mlp_params(4, 5, 2),
        "scale": 2.0,
        "key": jax.random.key(0),
        "unused": shape(5, 5),
        "none": None,
    }
    key = jax.random.key(1)
    groups = find_groups(lambda p, x: p["scale"] * mlp(p, x) + jax.random.normal(key, (7, 2)), params, X)
    assert sizes(groups) == {"layer_0": 5}


def test_constants_of_an_outer_trace_are_allowed() -> None:
    def outer(shift: jax.Array) -> jax.Array:
        found.append(find_groups(lambda p, x: mlp(p, x + shift), mlp_params(4, 5, 2), X))
        return shift

    found: list[NeuronGroups] = []
    jax.jit(outer)(1.0)
    assert [sizes(groups) for groups in found] == [{"layer_0": 5}]


def test_wide_layers_take_work_in_proportion_to_their_width() -> None:
    def positions(width: int) -> int:
        """How many positions the analysis numbers; it goes through each a fixed number of times."""
        module = Flax((width,) * 4)
        params = jax.eval_shape(module.init, jax.random.key(0), X)
        groups = find_groups(module.apply, params, X)
        assert sizes(groups) == {f"params/Dense_{i}": width for i in range(4)}
        traced = trace(module.apply, params, X)
        return link(traced.program, len(traced.paths)).size

    narrow, wide = positions(256), positions(1024)
    assert wide < 4 * narrow
    assert wide < 50 * 4 * 1024


def test_slice_is_a_value() -> None:
    path = (jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(0))
    assert Slice(path, 0, "in") == Slice(tuple(path), 0, "in")
    assert path_string(path) == "a/0"
