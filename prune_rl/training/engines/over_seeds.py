"""A function of one seed over a leading axis of seeds: side by side, or one seed after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Params of all seeds, in bytes, from which a processor's cache no longer holds what one update reads again and again.
IN_TURN_FROM = 8 * 2**20
# The whole state in units of the params. A replay buffer is far larger, and would be copied by every update.
LARGEST_STATE = 32


def in_turn(state: Any, params: Any) -> bool:
    """Whether seeds should be updated one after the other: on a CPU, if together they do not fit into its cache.

    There a seed then costs what it costs alone; side by side it costs more (docs/sweeps.md). Accelerators want seeds
    side by side at any size.

    Args:
        state: what an update takes, arrays or their shapes with a seed axis.
        params: its params, likewise.
    """
    size, whole = _bytes(params), _bytes(state)
    return jax.default_backend() == "cpu" and size >= IN_TURN_FROM and whole <= LARGEST_STATE * size


def over_seeds(
    fn: Callable[..., Any], num_seeds: int, in_axes: Any = 0, out_axes: Any = 0, *, turns: bool = False
) -> Callable[..., Any]:
    """``jax.vmap`` of ``fn`` over a leading axis of ``num_seeds``; with ``turns`` ``jax.lax.map``.

    One seed is taken out and put back instead: XLA makes slower programs of arrays with a leading axis of 1. What
    ``out_axes`` says is the same for all seeds is then that of the first.
    """
    if num_seeds > 1 and not turns:
        return jax.vmap(fn, in_axes=in_axes, out_axes=out_axes)

    def of(seed: Any, args: Any) -> Any:
        mine = map_with_axes(
            lambda axis, x: jax.lax.dynamic_index_in_dim(x, seed, axis, False), in_axes, args
        )
        return fn(*mine)

    def one(*args: Any) -> Any:
        return map_with_axes(lambda axis, x: jnp.expand_dims(x, axis), out_axes, of(0, args))

    def each(*args: Any) -> Any:
        results = jax.lax.map(lambda seed: of(seed, args), jnp.arange(num_seeds))
        return map_with_axes(
            lambda axis, x: jnp.moveaxis(x, 0, axis), out_axes, results, shared=lambda x: x[0]
        )

    return one if num_seeds == 1 else each


def map_with_axes(
    change: Callable[[int, jax.Array], Any], axes: Any, tree: Any, shared: Callable[[Any], Any] = lambda x: x
) -> Any:
    """``change`` of the leaves that have a seed axis, ``shared`` of those whose axis is None.

    None in the tree itself is no leaf and stays.
    """

    def is_none(axis: Any) -> bool:
        return axis is None

    def of_leaf(axis: int | None, x: Any) -> Any:
        return None if x is None else shared(x) if axis is None else change(axis, x)

    each = jax.tree.broadcast(axes, tree, is_leaf=is_none)
    return jax.tree.map(of_leaf, each, tree, is_leaf=is_none)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
