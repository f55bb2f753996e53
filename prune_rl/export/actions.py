"""From a network's outputs to the actions of an environment, in NumPy: greedy, or sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_rl.export.activations import Array
from prune_rl.export.description import DTYPES, SpreadDescription
from prune_rl.spaces import Box, Discrete

ToAction = Callable[[Array], Any]
# exp of more overflows float32; actions of so wide a spread are at their bounds.
_MAX_LOG_STD = 80.0


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """The log standard deviation of Box actions before they are squashed or clipped.

    It is clip(bias + h · kernel + x · skip, low, high) with h the last hidden layer and x what the network sees.

    Attributes:
        bias: float32[size].
        kernel: float32[width of the last hidden layer, size], or None.
        skip: float32[D, size], or None.
        low, high: its bounds, which may be infinite.
    """

    bias: Array
    kernel: Array | None = None
    skip: Array | None = None
    low: float = -np.inf
    high: float = np.inf

    def tensors(self) -> dict[str, Array]:
        """The arrays under their names in the file."""
        named = {"log_std/bias": self.bias, "log_std/kernel": self.kernel, "log_std/skip": self.skip}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def std(self, hidden: Array, inputs: Array) -> Array:
        """float32[..., size] for h [..., width] and x [..., D]."""
        log_std: Array = np.broadcast_to(self.bias, (*hidden.shape[:-1], len(self.bias)))
        if self.kernel is not None:
            log_std = log_std + hidden @ self.kernel
        if self.skip is not None:
            log_std = log_std + inputs @ self.skip
        bounded: Array = np.minimum(np.maximum(log_std, np.float32(self.low)), np.float32(self.high))
        std: Array = np.exp(np.minimum(bounded, np.float32(_MAX_LOG_STD)))
        return std


def describe_spread(spread: Spread | None) -> SpreadDescription | None:
    """What the file says of it."""
    if spread is None:
        return None
    return SpreadDescription(spread.kernel is not None, spread.skip is not None, spread.low, spread.high)


def spread_of(description: SpreadDescription | None, tensors: Mapping[str, Array]) -> Spread | None:
    """The inverse of `describe_spread`, with the tensors of the file."""
    if description is None:
        return None
    kernel, skip = (tensors.get(f"log_std/{name}") for name in ("kernel", "skip"))
    return Spread(tensors["log_std/bias"], kernel, skip, description.low, description.high)


def post_processing(action: Discrete | Box, squash: bool) -> ToAction:
    """The function from outputs float32[..., num_outputs], none of which is NaN, to the best actions.

    What it returns is in the action space: of its dtype, in its bounds, counted from its start.

    Raises:
        ValueError: bounds that contradict each other, an unknown dtype, or `squash` where it cannot be.
    """
    if isinstance(action, Discrete):
        if squash:
            raise ValueError("squash is for Box actions only")
        start = action.start
        return (lambda outputs: outputs.argmax(-1) + start) if start else (lambda outputs: outputs.argmax(-1))
    if action.dtype not in DTYPES:
        raise ValueError(f"the dtype of actions must be one of {', '.join(DTYPES)}, got {action.dtype!r}")
    with np.errstate(over="ignore"):
        low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
    if not (low <= high).all() or (low == np.inf).any() or (high == -np.inf).any():
        raise ValueError("each lower action bound must be at most its upper bound, and neither NaN")
    if squash and not np.isfinite([low, high]).all():
        raise ValueError("squash needs finite action bounds, and these are not")
    with np.errstate(invalid="ignore"):  # inf - inf for unbounded actions, which are not squashed
        centre, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    shape, convert = action.shape, _conversion(action)

    def to_action(outputs: Array) -> Any:
        if squash:
            outputs = centre + half * np.tanh(outputs)
        bounded: Any = np.minimum(np.maximum(outputs, low), high)
        if convert is not None:
            bounded = convert(bounded)
        return bounded if len(shape) == 1 else bounded.reshape(outputs.shape[:-1] + shape)

    return to_action


def _conversion(action: Box) -> Callable[[Array], NDArray[Any]] | None:
    """From float32[..., size] within bounds rounded to float32, to the dtype and its exact bounds; None: neither."""
    dtype = np.dtype(action.dtype)
    if dtype == np.float32:
        return None
    low, high = exact_bounds(action)
    if dtype.kind == "f":
        largest = np.finfo(dtype).max
        return lambda x: np.clip(np.clip(x, -largest, largest).astype(dtype), low, high)
    return lambda x: np.minimum(np.maximum(np.rint(x.astype(np.float64)), low), high).astype(dtype)


def exact_bounds(action: Box) -> tuple[NDArray[Any], NDArray[Any]]:
    """The bounds in the dtype itself, [size]; of integers float64, those nearest that do not lie beyond them."""
    dtype = np.dtype(action.dtype)
    if dtype.kind == "f":
        return np.array(action.low, dtype), np.array(action.high, dtype)
    least, most = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    bounds = [
        (_inner(max(low, least), np.inf), _inner(min(high, most), -np.inf))
        for low, high in zip(action.low, action.high, strict=True)
    ]
    low, high = np.array(bounds, np.float64).T
    return low, high


def _inner(bound: float, inward: float) -> float:
    """The float64 nearest to an integer bound that does not lie beyond it."""
    nearest = float(bound)
    beyond = nearest < bound if inward > 0 else nearest > bound
    return float(np.nextafter(nearest, inward)) if beyond else nearest
