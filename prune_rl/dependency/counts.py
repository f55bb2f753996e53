"""Which groups a function counts: whether its constants change when it runs on smaller arrays itself."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup, Slice
from prune_rl.dependency.jaxpr import Equation, Program, Traced, primitives, trace
from prune_rl.dependency.tree_paths import KeyPath, Params, make_struct, shape_struct

# How many neurons of each group go.
Removed = Sequence[tuple[NeuronGroup, int]]
# Groups that have axes of leaves in common, directly or through others.
Component = Sequence[NeuronGroup]


class Verdict(NamedTuple):
    """What fn does without neurons of one component.

    changed: whether it has other constants, None where it refuses the sizes. accepted: whether it also runs without
    neurons of each group alone. counted: the groups that it counts, by their place in the component.
    """

    changed: bool | None
    accepted: bool
    counted: set[int]


def counted_anew(
    fn: Callable[..., Any],
    traced: Traced,
    groups: Mapping[str, NeuronGroup],
    params: Params,
    inputs: tuple[Any, ...],
) -> set[str]:
    """The names of the groups without whose neurons fn has other constants.

    Such is the 1/N of a mean over neurons, a factor that depends on the number of inputs of a layer, and a range of
    numbers, one for each neuron. fn has them only where it runs on parameters that are smaller. It does not where it
    fixes its widths, and then refuses them. Half or three quarters of the neurons go, which fits functions that ask
    for multiples. Groups along the same axes of parameters lose equal shares, since a function that splits such an
    axis into equal parts refuses others.

    All groups are tried at once, in one trace; one after the other only where fn refuses these sizes or has other
    constants. Of groups that the same calls of fn use alike, such as those of equal layers in a loop, the first, the
    last and all others together are tried, and each only where these differ. Where constants change only without
    several groups, as many are named as are needed, the first ones first.

    Args:
      fn: as in `find_groups`.
      traced: fn on the params of full size.
      groups: all groups by name.
      params: as in `find_groups`.
      inputs: as in `find_groups`.
    """
    original = _constants(traced.program)

    def changes(removed: Removed) -> bool | None:
        """Whether fn has other constants without these neurons, None where it refuses the sizes."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                smaller = trace(fn, _smaller(removed, params), *inputs)
        except Exception:  # whatever it is: fn does not run on smaller arrays
            return None
        return _constants(smaller.program) != original

    def without(component: Component) -> Verdict:
        together = changes(_shares([component]))
        if together is False or len(component) == 1:
            return Verdict(together, together is not None, {0} if together else set())
        alone = [changes([(group, group.size - _half(group))]) for group in component]
        counted = {i for i, change in enumerate(alone) if change}
        rest = [i for i in range(len(component)) if i not in counted]
        while together and rest and changes(_shares([[component[i] for i in rest]])):
            counted.add(rest.pop(0))
        return Verdict(together, None not in (together, *alone), counted)

    def verdicts(alike: Sequence[Component]) -> list[Verdict]:
        first, between = without(alike[0]), alike[1:-1]
        agree = len(alike) == 1 or without(alike[-1]) == first
        if agree and (not between or changes(_shares(between)) == first.changed):
            return [first] * len(alike)
        return [without(component) for component in alike]

    if not any(constants for _, constants in original):
        return set()
    components = _components(groups.values())
    together = changes(_shares(components)) if components else False
    if together is False:
        return set()
    anew: set[str] = set()
    accepted: list[Component] = []
    refused: list[Component] = []
    for alike in _alike(components, traced):
        for component, verdict in zip(alike, verdicts(alike), strict=True):
            anew |= {component[k].name for k in verdict.counted}
            rest = [group for k, group in enumerate(component) if k not in verdict.counted]
            if rest:
                (accepted if verdict.accepted else refused).append(rest)
    left = [*accepted, *refused]
    change = changes(_shares(left)) if anew and left else together
    if change is None and accepted and refused:
        left, change = accepted, changes(_shares(accepted))
    if change and left:
        # What only several groups change together is counted by all of them.
        anew |= {group.name for rest in left for group in rest}
    return anew


def _alike(components: Iterable[Component], traced: Traced) -> list[list[Component]]:
    """The components by how fn uses their parameters: the same primitives, from the same calls, on equal shapes."""
    program, path_of = traced.program, dict(zip(traced.program.inputs, traced.paths, strict=False))
    uses: dict[KeyPath, list[Any]] = {path: [] for path in traced.paths}
    for equation in _equations(program.equations):
        used = [path_of[value] for value in equation.ins if value in path_of]
        call = (equation.name, _call_stack(equation)) if used else None
        for path in used:
            uses[path].append(call)
    shapes = {path: program.shape(value) for value, path in path_of.items()}

    def of_slice(piece: Slice) -> Any:
        return dataclasses.replace(piece, path=()), shapes[piece.path], tuple(uses[piece.path])

    alike: dict[Any, list[Component]] = {}
    for component in components:
        key = tuple((group.size, tuple(map(of_slice, group.slices))) for group in component)
        alike.setdefault(key, []).append(component)
    return list(alike.values())


def _equations(equations: Iterable[Equation]) -> Iterator[Equation]:
    """Every equation: calls, loops and branches, and what they run."""
    for equation in equations:
        yield equation
        yield from _equations(equation.body or ())
        for block in equation.blocks:
            yield from _equations(block.equations)


def _call_stack(equation: Equation) -> Any:
    """The places in the code, from the primitive to the call of `find_groups`; without them, like no other equation."""
    traceback = equation.source.source_info.traceback
    if traceback is None:
        return equation
    codes, instructions = traceback.raw_frames()
    return tuple(codes), tuple(instructions)


def _components(groups: Iterable[NeuronGroup]) -> list[Component]:
    """The groups, those with a leaf axis in common together."""
    components: list[tuple[set[tuple[KeyPath, int]], list[NeuronGroup]]] = []
    for group in groups:
        axes, members = {(piece.path, piece.axis) for piece in group.slices}, [group]
        apart = []
        for others, before in components:
            if others & axes:
                axes, members = axes | others, before + members
            else:
                apart.append((others, before))
        components = [*apart, (axes, members)]
    return [members for _, members in components]


def _half(group: NeuronGroup) -> int:
    """Half of the neurons; two where there are three, since axes of length 1 are broadcast."""
    return max(group.size // 2, min(group.size - 1, 2), 1)


def _shares(components: Sequence[Component]) -> Removed:
    """Half of the neurons of one component, three quarters of the next: a ratio of two widths changes too."""
    return [
        (group, group.size - (_half(group) if k % 2 == 0 else max(group.size // 4, min(_half(group), 2))))
        for k, component in enumerate(components)
        for group in component
    ]


def _smaller(removed: Removed, params: Params) -> Params:
    """Shapes of the params without so many neurons of each group."""
    lost: dict[tuple[KeyPath, int], int] = {}
    for group, gone in removed:
        for at, width in {(s.path, s.axis): s.indices(group.size).shape[1] for s in group.slices}.items():
            lost[at] = lost.get(at, 0) + width * gone

    def shape(path: KeyPath, leaf: Any) -> Any:
        full = shape_struct(leaf, "params")
        lengths = tuple(n - lost.get((path, i), 0) for i, n in enumerate(full.shape))
        return make_struct(lengths, full.dtype, weak_type=full.weak_type)

    return jax.tree_util.tree_map_with_path(shape, params)


def _constants(program: Program) -> list[tuple[str, tuple[Any, ...]]]:
    """By primitive in the order of evaluation, the constants among its operands that may be factors.

    Arrays of equal numbers count as one of them, a range by its length. Integers are factors where they are multiplied
    or converted; others are indices, or belong to a random generator.
    """

    def constants(equation: Equation) -> Iterator[Any]:
        if equation.name == "iota":
            yield equation.params["shape"][equation.params["dimension"]]
        for value in equation.ins:
            array, dtype = program.constants.get(value), program.avals[value].dtype
            converted = equation.name in ("mul", "div", "convert_element_type")
            is_factor = jnp.issubdtype(dtype, jnp.inexact) or (
                converted and jnp.issubdtype(dtype, jnp.signedinteger)
            )
            if array is None or not is_factor or isinstance(array, jax.core.Tracer) or not np.size(array):
                continue
            numbers = np.asarray(array)
            first = numbers.flat[0].tobytes()
            yield first if numbers.tobytes() == first * numbers.size else (numbers.shape, numbers.tobytes())

    return [(e.name, tuple(constants(e))) for e in primitives(program.equations)]
