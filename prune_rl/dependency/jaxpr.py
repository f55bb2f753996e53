"""A function's jaxpr as one flat program: nested jit calls are inlined, so that every value has one number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import partial_eval

from prune_rl.dependency.tree_paths import KeyPath, shape_structs

INLINED = {"jit", "pjit", "closed_call", "core_call", "core_closed_call", "composite", "custom_vmap_call"}
KEPT_CALLS = {"custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2"}
# The primitives of control flow, with the parameters that hold the jaxprs they run; `interpreter` has their rules.
CONTROL_FLOW = {
    "scan": ("jaxpr",),
    "while": ("body_jaxpr", "cond_jaxpr"),
    "cond": ("branches",),
    "shard_map": ("jaxpr",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """What a loop or a branch runs, on numbers of its own."""

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    equations: tuple[Equation, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to numbered values.

    `body` holds the equations inside a function with a custom derivative or a rematerialised block, over the
    same numbers, so that the call can be taken apart or kept whole. `blocks` holds what a loop or a branch runs:
    of scan the body, of while the body and the condition, of cond every branch.
    """

    source: Any  # the JaxprEqn: primitive, params and context to bind it again
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    body: tuple[Equation, ...] | None = None
    blocks: tuple[Block, ...] = ()

    def bind(self, arguments: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[Any]:
        """The outputs for these arguments, with other parameters of the primitive where they are given."""
        primitive = self.source.primitive
        bound = primitive.get_bind_params(self.params if params is None else params)
        # Some versions of jax give (functions, params), others params alone.
        functions, bound = bound if isinstance(bound, tuple) else ((), bound)
        results = primitive.bind(*functions, *arguments, **bound)
        return list(results) if primitive.multiple_results else [results]

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
    arrays = dict(zip(jaxpr.constvars, consts, strict=True))

    def read(atom: Any) -> int:
        # A constant has a number at each of its uses, which need not lose the same positions.
        if isinstance(atom, jex.Literal):
            return program.constant(atom.aval, atom.val)
        return program.constant(atom.aval, arrays[atom]) if atom in arrays else number[atom]

    equations: list[Equation] = []
    for eqn in jaxpr.eqns:
        args = tuple(read(atom) for atom in eqn.invars)
        inner = _inner_jaxpr(eqn)
        if eqn.primitive.name in CONTROL_FLOW:
            outs = [program.new(v.aval) for v in eqn.outvars]
            blocks = tuple(_block(program, closed) for closed in _controlled(eqn))
            equations.append(Equation(eqn, args, tuple(outs), blocks=blocks))
        elif inner is None:
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


def _controlled(eqn: Any) -> list[Any]:
    """The closed jaxprs of a loop or a branch."""
    found = [eqn.params[name] for name in CONTROL_FLOW[eqn.primitive.name]]
    return [closed for each in found for closed in (each if isinstance(each, (tuple, list)) else (each,))]


def _block(program: Program, closed: Any) -> Block:
    jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, ())
    ins = tuple(program.new(v.aval) for v in jaxpr.invars)
    outs, equations = _inline(program, jaxpr, consts, ins)
    return Block(ins, tuple(outs), tuple(equations))


def _inner_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    if eqn.primitive.name not in INLINED | KEPT_CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        inner = eqn.params.get(key)
        if inner is not None:
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    return None


def primitives(equations: Sequence[Equation]) -> Iterator[Equation]:
    """Every primitive, those inside calls, loops and branches included."""
    for equation in equations:
        if equation.body is not None:
            yield from primitives(equation.body)
        elif equation.blocks:
            for block in equation.blocks:
                yield from primitives(block.equations)
        else:
            yield equation


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """fn(params, *inputs) as a program; the first len(paths) of its inputs are the leaves of params.

    out_tree is the tree of what fn returns. Its leaves are the program's outputs, but for those in `static`, by their
    position: leaves that are no arrays, such as the name of a distribution. carried: (input, output) of every leaf of a
    state that the first input and the first output are.
    """

    program: Program
    paths: tuple[KeyPath, ...]
    out_tree: Any
    static: Mapping[int, Any]
    carried: tuple[tuple[int, int], ...] = ()

    def returned(self, values: Mapping[int, Any]) -> Any:
        """What fn returns, given the values of the program's outputs by number."""
        outputs = iter([values[v] for v in self.program.outputs])
        leaves = [
            self.static[i] if i in self.static else next(outputs) for i in range(self.out_tree.num_leaves)
        ]
        return jax.tree_util.tree_unflatten(self.out_tree, leaves)


def trace(fn: Callable[..., Any], params: Any, *inputs: Any, carry: bool = False) -> Traced:
    """Trace fn on the shapes of params and inputs (arrays, tracers, ShapeDtypeStructs); it is not run.

    What no output depends on is left out. Outputs may be any pytree: it is not rebuilt from shapes, which the types of
    some libraries (distributions) refuse.

    Raises:
      ValueError: params or an input holds something that is not an array; with `carry`, the first output is not like
        the first input.
    """
    params = shape_structs(params, "params")
    arguments = [shape_structs(x, f"inputs[{i}]") for i, x in enumerate(inputs)]
    out_trees: list[Any] = []
    static: dict[int, Any] = {}

    def flat_outputs(params: Any, *inputs: Any) -> list[Any]:
        returned = fn(params, *inputs)
        if carry:
            _check_carry(inputs, returned)
        leaves, out_tree = jax.tree_util.tree_flatten(returned)
        out_trees.append(out_tree)
        static.clear()
        static.update((i, leaf) for i, leaf in enumerate(leaves) if not _is_array(leaf))
        return [leaf for leaf in leaves if _is_array(leaf)]

    closed = jax.make_jaxpr(flat_outputs)(params, *arguments)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, True, instantiate=True)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = tuple(path for path, _ in leaves)
    program = flatten_jaxpr(jex.ClosedJaxpr(used, closed.consts))
    states = len(jax.tree_util.tree_leaves(inputs[:1])) if carry else 0
    carried = zip(program.inputs[len(paths) :][:states], program.outputs[:states], strict=True)
    return Traced(program, paths, out_trees[-1], static, tuple(carried))


def _check_carry(inputs: Sequence[Any], returned: Any) -> None:
    def kind(tree: Any) -> Any:
        leaves, structure = jax.tree_util.tree_flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in map(jnp.asarray, leaves)]

    if not (inputs and isinstance(returned, tuple | list) and returned):
        raise ValueError("with carry=True fn must be fn(params, carry, *inputs) -> (carry, outputs)")
    given, made = kind(inputs[0]), kind(returned[0])
    if given != made:
        raise ValueError(
            f"with carry=True the first output of fn must be like its first input after the params, {given}, got {made}"
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex)) or (
        hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    )
