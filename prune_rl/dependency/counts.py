"""Which groups a function counts: whether its constants change when it runs on smaller arrays itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroup
from prune_rl.dependency.jaxpr import Equation, Program, Traced, primitives, trace
from prune_rl.dependency.tree_paths import KeyPath, Params, make_struct, shape_struct

# Groups by the parts of them that go together, and how many neurons of each go.
Removed = Sequence[tuple[NeuronGroup, int]]


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
    constants. Where those change only without several groups, as many are named as are needed, the first ones first.

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

    def of_component(component: Sequence[NeuronGroup]) -> set[str]:
        together = changes(_shares([component]))
        if together is False:
            return set()
        if len(component) == 1:
            return {component[0].name} if together else set()
        found = {g.name for g in component if changes([(g, g.size - _half(g))])}
        rest = [g for g in component if g.name not in found]
        while together and rest and changes(_shares([rest])):
            found.add(rest.pop(0).name)
        return found

    if not any(constants for _, constants in original):
        return set()
    components = _components(groups.values())
    together = changes(_shares(components)) if components else False
    if together is False:
        return set()
    anew = set().union(*map(of_component, components))
    if not anew:
        # What only several groups change together is counted by all of them.
        return set(groups) if together else set()
    left = [rest for c in components if (rest := [g for g in c if g.name not in anew])]
    if left and changes(_shares(left)):
        anew |= {g.name for c in left for g in c}
    return anew


def _components(groups: Iterable[NeuronGroup]) -> list[list[NeuronGroup]]:
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


def _shares(components: Sequence[Sequence[NeuronGroup]]) -> Removed:
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
