"""A function's jaxpr as one flat program, and which axes of its values are tied together.

`trace` inlines nested jit calls, so that every value of the program has one number. `link` then walks the
program once with a rule per primitive and joins axes that must keep the same length in a union-find. A rule
is a pure function of shapes (`LINKS`); a primitive without a rule blocks every axis it touches, so nothing is
ever guessed. Whole axes are tied here; a rule that ties single indices would be another table of this kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

INLINED = {"jit", "pjit", "closed_call", "core_call", "core_closed_call"}
KEPT_CALLS = {"custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2"}

make_struct: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct  # which has no types in jax

AxisOf = tuple[int, int]  # (position of the operand or input, its axis)
Sources = tuple[frozenset[AxisOf], ...]  # by axis of a value: the input axes that it comes from


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to numbered values.

    `body` holds the equations inside a function with a custom derivative or a rematerialised block, over the
    same numbers, so that the call can be taken apart or kept whole.
    """

    source: Any  # the JaxprEqn: primitive, params and context to bind it again
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    body: tuple[Equation, ...] | None = None

    @property
    def name(self) -> str:
        return str(self.source.primitive.name)

    @property
    def params(self) -> Mapping[str, Any]:
        return dict(self.source.params)


@dataclasses.dataclass(eq=False)
class Program:
    """A traced function: `avals` by value number, constants by number, equations in order."""

    avals: list[Any] = dataclasses.field(default_factory=list)
    constants: dict[int, Any] = dataclasses.field(default_factory=dict)
    equations: tuple[Equation, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def shape(self, value: int) -> tuple[int, ...]:
        return tuple(getattr(self.avals[value], "shape", ()))

    def constant(self, aval: Any, array: Any) -> int:
        value = self.new(aval)
        self.constants[value] = array
        return value


def flatten_jaxpr(closed: Any) -> Program:
    """The program of a ClosedJaxpr, with nested jit calls inlined."""
    program = Program()
    program.inputs = tuple(program.new(v.aval) for v in closed.jaxpr.invars)
    outputs, equations = _inline(program, closed.jaxpr, closed.consts, program.inputs)
    program.outputs, program.equations = tuple(outputs), tuple(equations)
    return program


def _inline(
    program: Program, jaxpr: Any, consts: Sequence[Any], ins: Sequence[int]
) -> tuple[list[int], list[Equation]]:
    number: dict[Any, int] = dict(zip(jaxpr.invars, ins, strict=True))
    for var, array in zip(jaxpr.constvars, consts, strict=True):
        number[var] = program.constant(var.aval, array)

    def read(atom: Any) -> int:
        if isinstance(atom, jex.Literal):
            return program.constant(atom.aval, atom.val)
        return number[atom]

    equations: list[Equation] = []
    for eqn in jaxpr.eqns:
        args = tuple(read(atom) for atom in eqn.invars)
        inner = _inner_jaxpr(eqn)
        if inner is None:
            outs = [program.new(v.aval) for v in eqn.outvars]
            equations.append(Equation(eqn, args, tuple(outs)))
        else:
            outs, body = _inline(program, *inner, args)
            if eqn.primitive.name in INLINED:
                equations.extend(body)
            else:
                equations.append(Equation(eqn, args, tuple(outs), tuple(body)))
        number.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], equations


def _inner_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    if eqn.primitive.name not in INLINED | KEPT_CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        if inner is not None:
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    return None


# --- what one primitive does to axes ---


@dataclasses.dataclass(frozen=True)
class Links:
    """What a primitive does to the axes of its operands.

    outs[k][i]: operand axes that axis i of output k is tied to (none: a new axis). contracted: pairs of
    operand axes summed against each other. batch: operand axes that index independent products. blocked:
    operand axes used in a way that fixes their length. fixed: output axes (output, axis) of a fixed length.
    opaque: the primitive has no rule.
    """

    outs: tuple[tuple[tuple[AxisOf, ...], ...], ...]
    contracted: tuple[tuple[AxisOf, AxisOf], ...] = ()
    batch: tuple[AxisOf, ...] = ()
    blocked: tuple[AxisOf, ...] = ()
    fixed: tuple[AxisOf, ...] = ()
    opaque: bool = False


Shape = tuple[int, ...]
Rule = Callable[[list[Shape], list[Shape], Mapping[str, Any]], "Links | None"]


def _elementwise(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    out = outs[0]
    axes: list[list[AxisOf]] = [[] for _ in out]
    blocked: list[AxisOf] = []
    for k, shape in enumerate(ins):
        if not shape:
            continue
        if len(shape) != len(out):
            return None
        for i, size in enumerate(shape):
            # A length-1 axis against a longer one is repeated: its length is fixed to 1.
            (axes[i] if size == out[i] else blocked).append((k, i))
    linked = tuple(tuple(a) for a in axes)
    return Links(tuple(linked for _ in outs), blocked=tuple(blocked))


def _broadcast_in_dim(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    axes: list[tuple[AxisOf, ...]] = [() for _ in outs[0]]
    blocked: list[AxisOf] = []
    for i, target in enumerate(params["broadcast_dimensions"]):
        if ins[0][i] == outs[0][target]:
            axes[target] = ((0, i),)
        else:
            blocked.append((0, i))
    return Links((tuple(axes),), blocked=tuple(blocked))


def _reshape(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Axes that a row-major reshape leaves alone: the equal ones at the end, then the equal ones in front."""
    old, new = ins[0], outs[0]
    if params.get("dimensions") is not None or (0 in old and old != new):
        return None
    axes: list[tuple[AxisOf, ...]] = [() for _ in new]
    kept: set[int] = set()
    tail = 0
    while tail < min(len(old), len(new)) and old[-1 - tail] == new[-1 - tail]:
        tail += 1
        axes[len(new) - tail], kept = ((0, len(old) - tail),), kept | {len(old) - tail}
    head = 0
    while head < min(len(old), len(new)) - tail and old[head] == new[head]:
        axes[head], kept = ((0, head),), kept | {head}
        head += 1
    # Which of several length-1 axes is which is only certain when ones are added or removed in front.
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    extra = len(longer) - len(shorter)
    if longer[:extra] != (1,) * extra or longer[extra:] != shorter:
        kept -= {i for i, size in enumerate(old) if size == 1}
        axes = [a if n != 1 else () for a, n in zip(axes, new, strict=True)]
    blocked = tuple((0, i) for i in range(len(old)) if i not in kept)
    fixed = tuple((0, i) for i, tied in enumerate(axes) if not tied)
    return Links((tuple(axes),), blocked=blocked, fixed=fixed)


def _transpose(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    return Links((tuple(((0, i),) for i in params["permutation"]),))


def _without(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    """Squeeze and reductions: the named axes go, and whatever had length n there is used up."""
    gone = params["axes"] if "axes" in params else params["dimensions"]
    kept = tuple(((0, i),) for i in range(len(ins[0])) if i not in gone)
    return Links(tuple(kept for _ in outs), blocked=tuple((0, int(i)) for i in gone))


def _dot_general(ins: list[Shape], outs: list[Shape], params: Mapping[str, Any]) -> Links | None:
    (left_c, right_c), (left_b, right_b) = params["dimension_numbers"]
    out: list[tuple[AxisOf, ...]] = [((0, a), (1, b)) for a, b in zip(left_b, right_b, strict=True)]
    for k, used in ((0, {*left_c, *left_b}), (1, {*right_c, *right_b})):
        out += [((k, i),) for i in range(len(ins[k])) if i not in used]
    contracted = tuple(((0, a), (1, b)) for a, b in zip(left_c, right_c, strict=True))
    return Links((tuple(out),), contracted, batch=tuple((0, a) for a in left_b))


# fmt: off
ELEMENTWISE = frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
        "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma",
        "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
        "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
        "mul", "name", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
        "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
        "xor",
    )
)
# fmt: on
REDUCTIONS = frozenset(("reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"))
MOVES = frozenset(("broadcast_in_dim", "reshape", "squeeze", "transpose"))  # no arithmetic
LINKS: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS | {"squeeze"}, _without),
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": _transpose,
    "dot_general": _dot_general,
}


def links_of(program: Program, equation: Equation) -> Links:
    """The links of one equation; opaque where no rule applies."""
    ins, outs = ([program.shape(v) for v in values] for values in (equation.ins, equation.outs))
    rule = LINKS.get(equation.name)
    links = rule(ins, outs, equation.params) if rule is not None else None
    if links is not None:
        return links
    every = tuple((k, i) for k, shape in enumerate(ins) for i in range(len(shape)))
    made = tuple((k, i) for k, shape in enumerate(outs) for i in range(len(shape)))
    free = tuple(tuple(() for _ in shape) for shape in outs)
    return Links(free, blocked=every, fixed=made, opaque=True)


# --- the axes of a whole program ---


class Axes:
    """A union-find over the axes of a program's values, with the reasons that block a class of axes.

    `order` lists the equations that did the work, kept calls taken apart; `sources[v][i]` names the input
    axes that axis i of a value made of parameters (and constants) alone comes from, None for other values.
    """

    def __init__(self, program: Program, parameters: int) -> None:
        self.program = program
        self.order: list[tuple[Equation, Links]] = []
        self.sources: dict[int, Sources | None] = {}
        self._parent: list[int] = []
        self._labels: dict[int, tuple[int, ...]] = {}
        self._blocked: dict[int, dict[str, None]] = {}
        for k, value in enumerate(program.inputs):
            rank = len(self._define(value))
            self.sources[value] = tuple(frozenset({(k, i)}) for i in range(rank)) if k < parameters else None
        for value, array in program.constants.items():
            self._define(value)
            self.sources[value] = tuple(frozenset() for _ in program.shape(value))
            for i in range(np.ndim(array)):
                self.block(value, i, "joined with a constant array")

    def of(self, value: int) -> tuple[int, ...]:
        """The class of each axis of a value."""
        return tuple(self.find(label) for label in self._labels[value])

    def find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def block(self, value: int, axis: int, reason: str) -> None:
        self.block_class(self.of(value)[axis], reason)

    def block_class(self, root: int, reason: str) -> None:
        self._blocked.setdefault(root, {})[reason] = None

    def reasons(self, root: int) -> tuple[str, ...]:
        """Why a class of axes cannot change its length; empty where it can."""
        return tuple(self._blocked.get(root, {}))

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self._parent[b] = a
            self._blocked.setdefault(a, {}).update(self._blocked.pop(b, {}))

    def _define(self, value: int) -> tuple[int, ...]:
        """New labels for a value that has none yet."""
        if value not in self._labels:
            first = len(self._parent)
            self._labels[value] = tuple(range(first, first + len(self.program.shape(value))))
            self._parent.extend(self._labels[value])
        return self._labels[value]

    def walk(self, equations: Sequence[Equation]) -> None:
        for equation in equations:
            if equation.body is not None:
                self.walk(equation.body)
                continue
            links = links_of(self.program, equation)
            self.order.append((equation, links))
            self._apply(equation, links)

    def _apply(self, equation: Equation, links: Links) -> None:
        ins = equation.ins
        for value, axes in zip(equation.outs, links.outs, strict=True):
            labels = self._define(value)
            for label, tied in zip(labels, axes, strict=True):
                for k, i in tied:
                    self.union(self._labels[ins[k]][i], label)
            self.sources[value] = _sources(axes, [self.sources[v] for v in ins])
        for (j, a), (k, b) in links.contracted:
            self.union(self._labels[ins[j]][a], self._labels[ins[k]][b])
        reason = f"goes through {equation.name!r}" + (", which has no rule" if links.opaque else "")
        for k, i in links.blocked:
            self.block(ins[k], i, reason)
        for k, i in links.batch:
            self.block(ins[k], i, "is a batch axis of 'dot_general'")
        for k, i in links.fixed:
            self.block(equation.outs[k], i, reason)


def _sources(axes: Sequence[Sequence[AxisOf]], operands: Sequence[Sources | None]) -> Sources | None:
    known = [sources for sources in operands if sources is not None]
    if len(known) < len(operands):
        return None
    return tuple(frozenset[AxisOf]().union(*(known[k][i] for k, i in tied)) for tied in axes)


def link(program: Program, parameters: int = 0) -> Axes:
    """Tie the axes of a program whose first `parameters` inputs are parameter leaves."""
    axes = Axes(program, parameters)
    axes.walk(program.equations)
    return axes


# --- tracing a function ---


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """fn(params, *inputs) as a program; the first len(paths) of its inputs are the leaves of params."""

    program: Program
    paths: tuple[tuple[Any, ...], ...]
    out_tree: Any


def shape_struct(leaf: Any, what: str) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, tracer, scalar or ShapeDtypeStruct.

    Raises:
      ValueError: the leaf is none of these.
    """
    if isinstance(leaf, (bool, int, float, complex)):
        leaf = jax.typeof(leaf)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise ValueError(
            f"{what} must be an array, a scalar or a jax.ShapeDtypeStruct, got {type(leaf).__name__}; "
            "bind settings that are not arrays with functools.partial"
        )
    return make_struct(tuple(leaf.shape), leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


def shape_structs(tree: Any, what: str) -> Any:
    """`shape_struct` of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: shape_struct(leaf, f"{what}{jax.tree_util.keystr(path)}"), tree
    )


def trace(fn: Callable[..., Any], params: Any, *inputs: Any) -> Traced:
    """Trace fn on the shapes of params and inputs (arrays, tracers, ShapeDtypeStructs); it is not run.

    Raises:
      ValueError: params or an input holds something that is not an array.
    """
    params = shape_structs(params, "params")
    arguments = [shape_structs(x, f"inputs[{i}]") for i, x in enumerate(inputs)]
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(params, *arguments)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = tuple(path for path, _ in leaves)
    return Traced(flatten_jaxpr(closed), paths, jax.tree_util.tree_structure(out_shape))
