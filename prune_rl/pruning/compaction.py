"""From masked parameters to physically smaller ones, and the function that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.pruning.groups import KeyPath, NeuronGroups, path_string
from prune_rl.pruning.masks import Masks, axis_groups, concrete_masks
from prune_rl.pruning.tracing import (
    Axes,
    Equation,
    Program,
    flatten_jaxpr,
    link,
    make_struct,
    shape_struct,
    shape_structs,
    trace,
)

Survivors = Mapping[str, np.ndarray[Any, Any]]  # indices of the kept neurons, by group


def compact(groups: NeuronGroups, params: Any, masks: Masks) -> Any:
    """The same tree with the slices of masked neurons gathered out of every leaf.

    Args:
      groups: from `find_groups`.
      params: the full-size tree (or one of its structure, such as gradients). NumPy leaves stay NumPy.
      masks: {group name: bool[size]}, concrete; groups without a mask are kept whole.

    Raises:
      ValueError: a mask is traced (shapes depend on it) or not bool[size], or the groups do not fit the tree.
    """
    survivors = _survivors(groups, masks)
    table = axis_groups(groups, params)

    def gather(path: KeyPath, leaf: Any) -> Any:
        for axis, name in table.get(path, {}).items():
            if name in survivors:
                leaf = leaf.take(survivors[name], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(gather, params)


def expand(groups: NeuronGroups, small: Any, masks: Masks) -> Any:
    """The full-size tree of a compacted one, with zeros at masked neurons: the inverse of `compact` on masked
    parameters.

    Raises:
      ValueError: a mask is traced or not bool[size], or `small` is not a tree compacted with these masks.
    """
    survivors = _survivors(groups, masks)
    shapes, table = _full_shapes(groups, small, survivors), _axis_names(groups)

    def spread(path: KeyPath, leaf: Any) -> Any:
        if path not in table:
            return leaf
        full = shapes[path]
        kept = [survivors.get(table[path].get(i, ""), np.arange(size)) for i, size in enumerate(full)]
        if isinstance(leaf, np.ndarray):
            array = np.zeros(full, leaf.dtype)
            array[np.ix_(*kept)] = leaf
            return array
        return jnp.zeros(full, leaf.dtype).at[np.ix_(*kept)].set(leaf)

    return jax.tree_util.tree_map_with_path(spread, small)


def compact_function(
    fn: Callable[..., Any], groups: NeuronGroups, params: Any, masks: Masks, *inputs: Any
) -> Callable[..., Any]:
    """Adapt fn to compacted parameters, also where it fixes the widths (flax.linen.Dense(features=64)).

    small_fn(compact(groups, params, masks), *inputs) equals fn(apply_masks(groups, params, masks), *inputs).
    It traces fn at full size for the inputs of each call, so other batch sizes work, and runs the same
    primitives on the small arrays. It works under jit, grad and vmap, and keeps custom derivative rules.

    Args:
      fn: the function the groups were found in.
      groups: from `find_groups`.
      params: the full-size parameters; only shapes are used.
      masks: {group name: bool[size]}, concrete.
      *inputs: arguments of fn, to check now rather than at the first call that fn can be adapted.

    Raises:
      ValueError: a mask is traced or not bool[size], the groups do not fit the tree, or a masked axis goes
        through a primitive that cannot be adapted.
    """
    survivors = _survivors(groups, masks)
    axis_groups(groups, params)

    def small_fn(small: Any, *inputs: Any) -> Any:
        shapes = _full_shapes(groups, small, survivors)
        full = jax.tree_util.tree_map_with_path(lambda path, leaf: _struct(leaf, shapes[path]), small)
        traced = trace(fn, full, *inputs)
        lengths = Lengths(link(traced.program, len(traced.paths)))
        table = _axis_names(groups)
        for path, value in zip(traced.paths, traced.program.inputs, strict=False):
            for axis, name in table.get(path, {}).items():
                if name in survivors:
                    lengths.set(value, axis, len(survivors[name]))
        lengths.check()
        values = evaluate(traced.program, jax.tree_util.tree_leaves((small, inputs)), lengths)
        return jax.tree_util.tree_unflatten(traced.out_tree, [values[v] for v in traced.program.outputs])

    if inputs:
        small = jax.eval_shape(lambda tree: compact(groups, tree, masks), shape_structs(params, "params"))
        jax.eval_shape(small_fn, small, *inputs)
    return small_fn


def _survivors(groups: NeuronGroups, masks: Masks) -> Survivors:
    return {name: np.flatnonzero(mask) for name, mask in concrete_masks(groups, masks).items()}


def _axis_names(groups: NeuronGroups) -> dict[KeyPath, dict[int, str]]:
    table: dict[KeyPath, dict[int, str]] = {}
    for group in groups.values():
        for piece in group.slices:
            table.setdefault(piece.path, {})[piece.axis] = group.name
    return table


def _full_shapes(groups: NeuronGroups, small: Any, survivors: Survivors) -> dict[KeyPath, tuple[int, ...]]:
    """The full-size shape of every leaf of a compacted tree, which is checked on the way."""
    shapes = {path: list(np.shape(leaf)) for path, leaf in jax.tree_util.tree_flatten_with_path(small)[0]}
    for path, axes in _axis_names(groups).items():
        for axis, name in axes.items():
            width = len(survivors[name]) if name in survivors else groups[name].size
            shape = shapes.get(path, [])
            if axis >= len(shape) or shape[axis] != width:
                got = f"shape {tuple(shape)}" if path in shapes else "no such leaf"
                raise ValueError(
                    f"the compacted tree should hold {width} neurons of group {name!r} along axis {axis} of "
                    f"{path_string(path)!r}, got {got}: "
                    "use the tree that compact gives for the same masks"
                )
    for path, axes in _axis_names(groups).items():
        for axis, name in axes.items():
            shapes[path][axis] = groups[name].size
    return {path: tuple(shape) for path, shape in shapes.items()}


def _struct(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    small = shape_struct(leaf, "params")
    return make_struct(shape, small.dtype, weak_type=small.weak_type)


# --- running a program on arrays that are smaller than the traced ones ---


class Lengths:
    """The present length of every axis of a program: the traced one unless its class was given another."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self._changed: dict[int, int] = {}

    def set(self, value: int, axis: int, length: int) -> None:
        if length != self.axes.program.shape(value)[axis]:
            self._changed[self.axes.of(value)[axis]] = length

    def shape(self, value: int) -> tuple[int, ...]:
        roots, traced = self.axes.of(value), self.axes.program.shape(value)
        return tuple(self._changed.get(root, n) for root, n in zip(roots, traced, strict=True))

    def changed(self, value: int) -> bool:
        return self.shape(value) != self.axes.program.shape(value)

    def check(self) -> None:
        """Raise ValueError where `find_groups` would have refused the axis."""
        for root in self._changed:
            if self.axes.reasons(root):
                raise ValueError(
                    f"this function cannot run on fewer neurons, because their axis "
                    f"{'; '.join(self.axes.reasons(root))}. Find the groups in this same function."
                )


def evaluate(
    program: Program, leaves: Sequence[Any], lengths: Lengths | None = None, watched: Iterable[int] = ()
) -> dict[int, Any]:
    """Run a program; with `lengths`, on arrays of those shapes instead of the traced ones.

    Returns the values of the program's outputs and of `watched`, by number. Calls with a custom derivative
    rule keep it, except those that compute a watched value inside.
    """
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    values = {**program.constants, **dict(zip(program.inputs, arrays, strict=True))}
    watched = frozenset(watched)
    _run(program, program.equations, values, lengths, watched)
    return {v: values[v] for v in {*program.outputs, *watched}}


def _run(
    program: Program,
    equations: Sequence[Equation],
    values: dict[int, Any],
    lengths: Lengths | None,
    watched: frozenset[int] = frozenset(),
) -> None:
    for equation in equations:
        if equation.body is not None and _computes(equation.body, watched.difference(equation.outs)):
            _run(program, equation.body, values, lengths, watched)
            continue
        arguments = [values[v] for v in equation.ins]
        with equation.source.ctx.manager:
            if lengths is None or not any(map(lengths.changed, (*equation.ins, *equation.outs))):
                results = _bind(equation, arguments, equation.params)
            elif equation.body is not None:
                results = _resized_call(program, equation, values, lengths)
            else:
                results = _bind(equation, arguments, _resized_params(equation, lengths))
        values.update(zip(equation.outs, results, strict=True))


def _computes(equations: Sequence[Equation], watched: frozenset[int]) -> bool:
    return any(not watched.isdisjoint(e.outs) or _computes(e.body or (), watched) for e in equations)


def _bind(equation: Equation, arguments: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    primitive = equation.source.primitive
    bound = primitive.get_bind_params(params)
    # Some versions of jax give (functions, params), others params alone.
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *arguments, **bound)
    return list(results) if primitive.multiple_results else [results]


def _resized_params(equation: Equation, lengths: Lengths) -> dict[str, Any]:
    """The parameters that name an output shape, with the present one."""
    shape_of = {"broadcast_in_dim": "shape", "reshape": "new_sizes"}
    params = dict(equation.params)
    if equation.name in shape_of:
        params[shape_of[equation.name]] = lengths.shape(equation.outs[0])
    return params


# --- calls with a derivative rule or a rematerialisation policy of their own ---


def _resized_call(
    program: Program, equation: Equation, values: dict[int, Any], lengths: Lengths
) -> list[Any]:
    """Run a kept call on resized arrays. Its derivative rule is traced at full size and resized in turn."""
    ins = tuple(
        dict.fromkeys(equation.ins)
    )  # each value once: a repeated one would get a share of its gradient

    def primal(*arguments: Any) -> list[Any]:
        inner = {**program.constants, **dict(zip(ins, arguments, strict=True))}
        _run(program, equation.body or (), inner, lengths)
        return [inner[v] for v in equation.outs]

    arguments = [jnp.asarray(values[v]) for v in ins]
    if equation.name == "custom_jvp_call":
        return list(_with_jvp(program, equation, ins, primal, lengths)(*arguments))
    if equation.name == "custom_vjp_call":
        return list(_with_vjp(program, equation, ins, primal, lengths)(*arguments))
    policy, prevent_cse = equation.params.get("policy"), equation.params.get("prevent_cse", True)
    return list(jax.checkpoint(primal, policy=policy, prevent_cse=prevent_cse)(*arguments))


def _with_jvp(
    program: Program,
    equation: Equation,
    ins: tuple[int, ...],
    primal: Callable[..., list[Any]],
    lengths: Lengths,
) -> Callable[..., Any]:
    real_ins, real_outs = _real(program, ins), _real(program, equation.outs)
    full = _differentiable(equation, ins, real_ins, real_outs)

    def full_rule(primals: list[Any], tangents: list[Any]) -> list[Any]:
        moving = [primals[i] for i in real_ins]
        out, out_tangents = jax.jvp(lambda *xs: full(primals, xs), tuple(moving), tuple(tangents))
        return [*out, *out_tangents]

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        numbers = (*ins, *(ins[i] for i in real_ins))
        outs = tuple(equation.outs[i] for i in real_outs)
        given = [list(primals), [tangents[i] for i in real_ins]]
        results = _resized_rule(program, full_rule, numbers, given, (*outs, *outs), lengths)
        out, out_tangents = (
            primal(*primals),
            [np.zeros(lengths.shape(v), jax.dtypes.float0) for v in equation.outs],
        )
        for k, i in enumerate(real_outs):
            out[i], out_tangents[i] = results[k], results[len(outs) + k]
        return out, out_tangents

    function = jax.custom_jvp(primal)
    function.defjvp(rule)
    return function


def _with_vjp(
    program: Program,
    equation: Equation,
    ins: tuple[int, ...],
    primal: Callable[..., list[Any]],
    lengths: Lengths,
) -> Callable[..., Any]:
    real_ins, real_outs = _real(program, ins), _real(program, equation.outs)
    full = _differentiable(equation, ins, real_ins, real_outs)

    def full_rule(primals: list[Any], cotangents: list[Any]) -> list[Any]:
        _, pull = jax.vjp(lambda *xs: full(primals, xs), *(primals[i] for i in real_ins))
        return list(pull(cotangents))

    def forward(*primals: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return primal(*primals), primals

    def backward(primals: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
        numbers = (*ins, *(equation.outs[i] for i in real_outs))
        given = [list(primals), [cotangents[i] for i in real_outs]]
        made = _resized_rule(program, full_rule, numbers, given, tuple(ins[i] for i in real_ins), lengths)
        by_position = dict(zip(real_ins, made, strict=True))
        return tuple(by_position.get(i) for i in range(len(ins)))

    function = jax.custom_vjp(primal)
    function.defvjp(forward, backward)
    return function


def _real(program: Program, values: Sequence[int]) -> list[int]:
    """Positions of the values that have derivatives."""
    return [i for i, v in enumerate(values) if jnp.issubdtype(program.avals[v].dtype, jnp.inexact)]


def _differentiable(
    equation: Equation, ins: tuple[int, ...], real_ins: list[int], real_outs: list[int]
) -> Callable[[list[Any], Sequence[Any]], list[Any]]:
    """The call, at full size and with its own rule, as a function of its real-valued arguments."""

    def call(primals: list[Any], moving: Sequence[Any]) -> list[Any]:
        values = dict(zip(ins, primals, strict=True)) | {
            ins[i]: x for i, x in zip(real_ins, moving, strict=True)
        }
        out = _bind(equation, [values[v] for v in equation.ins], equation.params)
        return [out[i] for i in real_outs]

    return call


def _resized_rule(
    program: Program,
    full_rule: Callable[..., list[Any]],
    numbers: tuple[int, ...],
    arguments: list[list[Any]],
    outs: tuple[int, ...],
    lengths: Lengths,
) -> list[Any]:
    """Run a derivative rule, traced at full size, on arrays shaped like the values `numbers`.

    Its results are shaped like the values `outs`.
    """
    structs = iter([shape_struct(program.avals[v], "value") for v in numbers])
    closed = jax.make_jaxpr(full_rule)(*[[next(structs) for _ in part] for part in arguments])
    rule = flatten_jaxpr(closed)
    inner = Lengths(link(rule))
    for mine, theirs in zip((*rule.inputs, *rule.outputs), (*numbers, *outs), strict=True):
        for axis, length in enumerate(lengths.shape(theirs)):
            inner.set(mine, axis, length)
    inner.check()
    results = evaluate(rule, jax.tree_util.tree_leaves(arguments), inner)
    return [results[v] for v in rule.outputs]
