"""The activation functions of a compact policy, in NumPy: elementwise, float32 to float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def _sigmoid(x: Array) -> Array:
    y: Array = np.tanh(0.5 * x)  # unlike 1 / (1 + exp(-x)) it cannot overflow
    return 0.5 * y + 0.5


def _gelu(x: Array) -> Array:
    """The tanh approximation (Hendrycks and Gimpel 2016, section 2), as `jax.nn.gelu` has it by default."""
    y: Array = np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x)))
    return 0.5 * x * (1.0 + y)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x >= 0.0, x, 0.01 * x),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "softplus": lambda x: np.logaddexp(x, np.float32(0.0)),
    "sigmoid": _sigmoid,
}
