"""One interpreter drives every analysis through calls, loops and branches, however they are nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency import interpreter, jaxpr
from prune_rl.dependency.interpreter import Analysis, Entry
from prune_rl.dependency.jaxpr import Equation, Program, flatten_jaxpr
from tests.dependency.small_networks import Case, assert_each_removable, normal, random_layer

# --- an analysis of its own: which inputs of the program a value depends on ---


class Inputs(Analysis):
    """The state of a value is the set of the program's inputs that it may depend on; the join is the union."""

    def __init__(self, program: Program) -> None:
        self.state: dict[int, frozenset[int]] = {value: frozenset() for value in program.constants}
        self.state |= {value: frozenset({k}) for k, value in enumerate(program.inputs)}
        self.stacked: list[tuple[str, int]] = []

    def primitive(self, equation: Equation) -> None:
        state = frozenset[int]().union(*(self.state[v] for v in equation.ins))
        self.state.update(dict.fromkeys(equation.outs, state))

    def enter(self, equation: Equation, inner: int, outer: int, entry: Entry) -> None:
        self.state[inner] = self.state[outer]

    def join(self, new: int, old: int) -> bool:
        before = self.state[old]
        self.state[old] = before | self.state[new]
        return self.state[old] != before

    def leave(self, equation: Equation, inner: int, outer: int, stacked: bool = False) -> None:
        self.state[outer] = self.state[inner]
        if stacked:
            self.stacked.append((equation.name, outer))


def dependencies(fn: Callable[..., Any], *inputs: Any) -> list[set[int]]:
    program = flatten_jaxpr(jax.make_jaxpr(fn)(*inputs))
    analysis = Inputs(program)
    analysis.interpret(program.equations)
    return [set(analysis.state[v]) for v in program.outputs]


A = np.float32(1.5)


def shifted_by_scan(a: Any, b: Any, c: Any, d: Any) -> Any:
    """It takes three rounds until what is carried first depends on d."""
    (x, y, z), ys = jax.lax.scan(lambda s, _: ((s[1], s[2], d), s[0]), (a, b, c), None, 4)
    return x, y, z, ys


def shifted_by_while(a: Any, b: Any, c: Any, d: Any) -> Any:
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[2], s[3], d), (0, a, b, c))[1:]


def by_branch(a: Any, b: Any, c: Any, d: Any) -> Any:
    return jax.lax.cond(a > 0, lambda b, c: (b, c, b), lambda b, c: (b, b, c + d), b, c)


def sliced(a: Any, b: Any, c: Any, d: Any) -> Any:
    total, ys = jax.lax.scan(lambda s, x: (s + x, x * c), a, jnp.stack([b, d]))
    return total, ys


def nested(a: Any, b: Any, c: Any, d: Any) -> Any:
    """The inner loop moves what the outer one carries, one place in each round."""

    def step(s: Any, _: Any) -> Any:
        return jax.lax.fori_loop(
            0, 2, lambda i, s: jax.lax.cond(i > 0, lambda s: s, lambda s: (s[1], s[2], d), s), s
        ), None

    return jax.lax.scan(step, (a, b, c), None, 3)[0]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (shifted_by_scan, [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}, {0, 1, 2, 3}]),
        (shifted_by_while, [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}]),
        (by_branch, [{1}, {1, 2}, {1, 2, 3}]),
        (sliced, [{0, 1, 3}, {1, 2, 3}]),
        (nested, [{0, 1, 2, 3}, {1, 2, 3}, {2, 3}]),
        (jax.checkpoint(lambda a, b, c, d: (a + c, jax.nn.relu(b))), [{0, 2}, {1}]),
    ],
)
def test_a_new_analysis_says_only_what_primitives_do(
    fn: Callable[..., Any], expected: list[set[int]]
) -> None:
    assert dependencies(fn, A, A, A, A) == expected


def test_what_a_scan_stacks_is_told_apart_from_what_it_carries() -> None:
    program = flatten_jaxpr(jax.make_jaxpr(shifted_by_scan)(A, A, A, A))
    analysis = Inputs(program)
    analysis.interpret(program.equations)
    assert analysis.stacked == [("scan", program.outputs[3])]


def test_every_primitive_of_control_flow_has_its_rule() -> None:
    assert set(interpreter.CONTROL_FLOW) == set(jaxpr.CONTROL_FLOW)


# --- the analyses of the package, on random programs ---

Step = Callable[[jax.Array, Any], jax.Array]
WIDTH = 4


@jax.custom_jvp
def doubled_tanh(h: jax.Array) -> jax.Array:
    """With a derivative that is not its own."""
    return 2 * jnp.tanh(h)


doubled_tanh.defjvp(lambda primals, tangents: (doubled_tanh(*primals), 3 * tangents[0]))

SIMPLE: list[Callable[[jax.Array], jax.Array]] = [
    jnp.tanh,
    jnp.sin,
    jax.nn.relu,
    jnp.cos,
    doubled_tanh,
    lambda h: jnp.sin(h + 1),
    lambda h: h[:, ::-1],
    lambda h: jnp.concatenate([h[:, 2:], h[:, :2]], -1),
    lambda h: jnp.tanh(h * h.sum(-1, keepdims=True)),
    lambda h: h - h.mean(-1, keepdims=True),  # not removable
    lambda h: jnp.tanh(h * h.max(-1, keepdims=True)),  # neither
]
OFTEN = np.array([6, 6, 6, 4, 6, 2, 2, 2, 2, 0.5, 0.5])


def random_step(rng: np.random.Generator, depth: int) -> Step:
    """A step h -> h of a random kind, with loops, branches and calls nested up to a depth."""
    kind = int(rng.integers(13)) if depth else int(rng.integers(5))
    simple = SIMPLE[int(rng.choice(len(SIMPLE), p=OFTEN / OFTEN.sum()))]
    if kind < 2:
        return lambda h, p: simple(h)
    if kind == 2:
        return lambda h, p: jnp.tanh(h @ p["square"])
    if kind == 3:
        return lambda h, p: h * p["scale"][None]
    if kind == 4:
        return lambda h, p: jnp.tanh(h @ p["wide"]["kernel"] + p["wide"]["bias"][None]) @ p["narrow"]
    first, second, third = (random_step(rng, depth - 1) for _ in range(3))
    if kind == 5:
        return lambda h, p: jax.lax.cond(
            h[0, 0] > 0, lambda h: first(jnp.sin(h), p), lambda h: second(jnp.tanh(h), p), h
        )
    if kind == 6:
        branches = [first, second, third]
        return lambda h, p: jax.lax.switch(1, [lambda h, f=f: jnp.sin(f(h, p)) for f in branches], h)
    if kind == 7:  # the layers of a stack, one per step
        return lambda h, p: jax.lax.scan(lambda c, w: (first(jnp.tanh(c @ w), p), None), h, p["stack"])[0]
    if kind == 8:  # what is stacked is used
        return lambda h, p: jax.lax.scan(lambda c, _: (first(c, p), second(c, p)), h, None, 2, reverse=True)[
            1
        ].sum(0)
    if kind == 9:
        return lambda h, p: jax.lax.fori_loop(0, 2, lambda _, c: first(second(c, p), p), h)
    if kind == 10:  # a condition that reads the neurons

        def loop(h: jax.Array, p: Any) -> jax.Array:
            start = (0, h, second(h, p))
            return jax.lax.while_loop(
                lambda c: (c[0] < 2) & (jnp.sum(third(c[1], p)) < 100.0),
                lambda c: (c[0] + 1, jnp.sin(first(c[1], p)), c[1]),
                start,
            )[2]

        return loop
    if kind == 11:
        return lambda h, p: jax.checkpoint(lambda h, p: first(second(h, p), p))(h, p)
    return lambda h, p: h + first(h, p)


def random_program(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    steps = [random_step(rng, 3) for _ in range(int(rng.integers(1, 4)))]
    params = {
        "first": random_layer(3, WIDTH, seed=seed),
        "square": normal(WIDTH, WIDTH, seed=seed + 2, scale=0.5),
        "scale": normal(WIDTH, seed=seed + 3),
        "wide": random_layer(WIDTH, 5, seed=seed + 4),
        "narrow": normal(5, WIDTH, seed=seed + 6, scale=0.4),
        "stack": normal(2, WIDTH, WIDTH, seed=seed + 7, scale=0.5),
        "head": normal(WIDTH, 2, seed=seed + 8),
    }

    def fn(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.sin(x @ params["first"]["kernel"] + params["first"]["bias"][None])
        for step in steps:
            h = step(h, params)
        return h @ params["head"]

    # Reverse-mode differentiation does not go through while loops.
    x = normal(3, 3, seed=seed + 1)
    looped = "while[" in str(jax.make_jaxpr(fn)(params, x))
    return Case(fn, params, (x,), seed, gradients=not looped and seed % 4 == 0)


@pytest.mark.parametrize("chunk", range(4))
def test_whatever_is_found_in_nested_loops_and_branches_is_removable(chunk: int) -> None:
    """Propagation, constant folding and evaluation agree on what the same nested blocks do."""
    programs = [random_program(seed) for seed in range(10 * chunk, 10 * chunk + 10)]
    found = assert_each_removable(programs)
    assert sum(group.size for groups in found for group in groups.values()) > 10
