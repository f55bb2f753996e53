"""Layers, masks and distances that several tests of pruning share, and the check that a removal is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.compaction import compact, compact_function, expand
from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.pruning.masks import apply_masks, count
from tests.compilation import quick_jit

TOLERANCE = 1e-5
Params = Any
Fn = Callable[..., Any]


def dense(p: Any, x: jax.Array) -> jax.Array:
    """x @ kernel, and the bias if there is one."""
    y = x @ p["kernel"]
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in p else y


def random_masks(groups: NeuronGroups, seed: int = 0, share: float = 0.5) -> dict[str, np.ndarray[Any, Any]]:
    """A mask of every group that keeps each neuron with probability ``share``."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(group.size) < share for name, group in groups.items()}


def normal(*shape: int, seed: int = 0, scale: float = 0.7) -> np.ndarray[Any, Any]:
    """A random normal array."""
    return np.random.default_rng(seed).normal(size=shape, scale=scale).astype(np.float32)


def random_like(tree: Any, seed: int = 0) -> Any:
    """Random leaves in place of a module's initial ones, biases included, so that no zero hides a mistake."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape, scale=0.5).astype(np.float32), tree)


def random_layer(inputs: int, outputs: int, seed: int = 0) -> Params:
    """A random kernel and bias."""
    return {"kernel": normal(inputs, outputs, seed=seed), "bias": normal(outputs, seed=seed + 1)}


def error(a: Any, b: Any) -> float:
    """Largest difference of two trees, relative to the scale of the second."""
    pairs = [
        (np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    assert all(x.shape == y.shape for x, y in pairs)
    scale = max(1.0, *(float(np.abs(y).max(initial=0)) for _, y in pairs))
    return max(float(np.abs(x - y).max(initial=0)) for x, y in pairs) / scale


class Case(NamedTuple):
    """A function whose neurons are removed at random, by a seed; with or without its gradient."""

    fn: Fn
    params: Params
    inputs: tuple[Any, ...]
    seed: int = 0
    gradients: bool = True
    keep_counts: bool = False
    whole_heads: bool = False
    equal_channels: bool = False


def assert_removable(
    fn: Fn, params: Params, *inputs: Any, seed: int = 0, gradients: bool = True, **options: bool
) -> NeuronGroups:
    """Masked and compacted function agree, and so do their gradients; what was taken out can be put back."""
    return assert_each_removable([Case(fn, params, inputs, seed, gradients, **options)])[0]


def assert_each_removable(cases: Sequence[Case]) -> list[NeuronGroups]:
    """`assert_removable` of several functions, compiled as one program, which takes less time."""
    found = [
        find_groups(
            c.fn,
            c.params,
            *c.inputs,
            keep_counts=c.keep_counts,
            whole_heads=c.whole_heads,
            equal_channels=c.equal_channels,
        )
        for c in cases
    ]
    masks = [random_masks(groups, case.seed) for groups, case in zip(found, cases, strict=True)]
    small = [compact(g, case.params, m) for g, case, m in zip(found, cases, masks, strict=True)]
    small_fns = [
        compact_function(case.fn, g, case.params, m) for g, case, m in zip(found, cases, masks, strict=True)
    ]

    def outputs(full: list[Params], small: list[Params]) -> list[Any]:
        results = []
        for case, groups, mask, small_fn, p, q in zip(
            cases, found, masks, small_fns, full, small, strict=True
        ):
            masked = apply_masks(groups, p, mask)

            def evaluated(fn: Fn, params: Params, case: Case = case) -> tuple[Any, Any]:
                def loss(params: Params) -> tuple[jax.Array, Any]:
                    out = fn(params, *case.inputs)
                    return sum((jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(out)), jnp.zeros(())), out

                return jax.grad(loss, has_aux=True)(params) if case.gradients else (None, loss(params)[1])

            results.append((masked, evaluated(case.fn, masked), evaluated(small_fn, q)))
        return results

    full = [case.params for case in cases]
    for case, groups, mask, tree, (masked, (slopes, expected), (ours, out)) in zip(
        cases, found, masks, small, jax.device_get(quick_jit(outputs)(full, small)), strict=True
    ):
        assert error(out, expected) <= TOLERANCE, case.seed
        assert error(expand(groups, tree, mask), masked) == 0, case.seed
        sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
        assert count(groups, case.params, mask).weights.kept == sum(sizes), case.seed
        if case.gradients:
            assert error(ours, compact(groups, slopes, mask)) <= 10 * TOLERANCE, case.seed
    return found
