"""Checks of the arrays that a policy is made of."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from prune_rl.export.actions import Spread
from prune_rl.export.activations import Array
from prune_rl.spaces import Box, Discrete

Layer = tuple[Array, Array]


def checked_layers(layers: tuple[Layer, ...], num_outputs: int) -> tuple[Layer, ...]:
    """Read-only copies of kernels and biases that chain; raises ``ValueError`` where they do not."""
    if not layers:
        raise ValueError("a policy needs at least one layer, the head")
    checked = tuple(
        (finite_tensor(x[0], f"kernel {i}"), finite_tensor(x[1], f"bias {i}")) for i, x in enumerate(layers)
    )
    width = checked[0][0].shape[0] if checked[0][0].ndim else 0
    if width < 1:
        raise ValueError("the first kernel must be [observation size, width] with a size of at least 1")
    for i, (kernel, bias) in enumerate(checked):
        if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"layer {i} does not chain: it has {width} inputs, a kernel {kernel.shape} and a bias {bias.shape}"
            )
        width = kernel.shape[1]
    if width != num_outputs or width < 1:
        raise ValueError(f"the head has {width} outputs where the action space needs {num_outputs}")
    return checked


def checked_spread(spread: Spread, action: Discrete | Box, width: int, size: int) -> Spread:
    """``spread`` with read-only copies of its arrays; raises ``ValueError`` where they do not fit.

    ``width`` is that of the last hidden layer, ``size`` that of an observation.
    """
    if isinstance(action, Discrete):
        raise ValueError("a spread is for Box actions only")
    if not spread.low <= spread.high:
        raise ValueError(f"the spread's bounds must be ordered, got {spread.low} and {spread.high}")

    def checked(name: str, value: Array, shape: tuple[int, ...]) -> Array:
        array = finite_tensor(value, f"the spread's {name}")
        if array.shape != shape:
            raise ValueError(f"the spread's {name} has shape {array.shape}, not {shape}")
        return array

    n, kernel, skip = action.size, spread.kernel, spread.skip
    return dataclasses.replace(
        spread,
        bias=checked("bias", spread.bias, (n,)),
        kernel=None if kernel is None else checked("kernel", kernel, (width, n)),
        skip=None if skip is None else checked("skip", skip, (size, n)),
    )


def finite_tensor(value: ArrayLike, name: str) -> Array:
    """A read-only float32 copy; raises ``ValueError`` for NaN and infinity."""
    with np.errstate(over="ignore"):
        array = np.array(value, np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    array.setflags(write=False)
    return array
