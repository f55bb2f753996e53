"""Which neurons can be removed exactly, by constant folding: those whose zeros make no difference to any output."""

from __future__ import annotations

from typing import Any

import numpy as np

from prune_rl.dependency.constant_folding import ConstantFolding, map_ids
from prune_rl.dependency.jaxpr import Equation, primitives
from prune_rl.dependency.propagation import Positions
from prune_rl.dependency.tree_paths import Indices

# The neutral element of each reduction: a removed neuron that holds it makes no difference.
NEUTRAL = {
    "reduce_sum": 0.0,
    "reduce_prod": 1.0,
    "reduce_max": -np.inf,
    "reduce_min": np.inf,
    "reduce_and": True,
    "reduce_or": False,
    "reduce_xor": 0,
    "psum": 0.0,
    "psum_invariant": 0.0,
    "pmax": -np.inf,
    "pmin": np.inf,
}
VARIANCE = (
    " (as in a variance in two passes, of which the differences from the mean are summed: normalise with "
    "prune_rl.layer_norm, or take the mean of the squares minus the square of the mean)"
)


def check_removable(positions: Positions, candidates: Indices) -> Indices:
    """Block every candidate set of positions whose removal would not be exact, with the reason.

    Returns those that two activations are contracted over, so that no kernel need read them.

    By constant folding at removed neurons. A contraction over the neurons is exact when the product at a removed neuron
    is 0; a reduction is when it holds the neutral element there.
    """
    folding = ConstantFolding(positions, candidates)
    folding.run()
    products = [np.empty(0, np.int64)]
    for equation in primitives(positions.program.equations):
        links, ins = positions.links[id(equation)], equation.ins
        for (_, a), (_, b) in links.contracted:
            _check_contraction(folding, equation, a, b)
            if all(positions.sources[v] is None for v in ins[:2]):
                products.append(positions.of(ins[0], a))
        for k, axis in links.summed:
            changes = _differ(folding, ins[k], axis, NEUTRAL[equation.name])
            neutral = f"goes through {equation.name!r}, where a removed neuron would not be {NEUTRAL[equation.name]}"
            advice = VARIANCE if equation.name == "reduce_sum" else ""
            _block(folding, ins[k], axis, changes, neutral + advice)
    return np.concatenate(products)


def _differ(folding: ConstantFolding, value: int, axis: int, neutral: Any) -> Any:
    """Which positions along an axis may not hold the neutral element; a single flag where all are the same."""
    return np.logical_not(
        map_ids([folding.at(value, axis)], lambda ids: folding.scalars.equals(ids[0], neutral))
    )


def _block(folding: ConstantFolding, value: int, axis: int, where: Any, reason: str) -> None:
    """Block the candidates among the positions `where` along an axis."""
    mine = folding.removable(value, axis) & where
    if mine.any():
        folding.positions.block(folding.positions.labels[value][axis][mine], reason)


def _check_contraction(folding: ConstantFolding, equation: Equation, a: int, b: int) -> None:
    left, right = equation.ins[:2]
    if not folding.removable(left, a).any():
        return
    reasons = [""]

    def reason_of(ids: tuple[int, ...]) -> int:
        reasons.append(folding.scalars.contraction_obstacle(ids))
        return len(reasons) - 1

    mine, theirs = folding.at(left, a), folding.at(right, b)
    if isinstance(theirs, np.ndarray):  # a grouped convolution reads its kernel once per group
        theirs = np.resize(theirs, folding.positions.program.shape(left)[a])
    which = map_ids([mine, theirs], reason_of)
    for k, reason in enumerate(reasons):
        if reason:
            _block(folding, left, a, np.equal(which, k), reason)
