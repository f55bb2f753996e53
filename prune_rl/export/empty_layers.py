"""Constant folding of hidden layers that lost all their neurons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_rl.export.activations import ACTIVATIONS, Array

Layer = tuple[Array, Array]


def fold_empty_layers(
    layers: Sequence[Layer], skip: Array | None, activation: str
) -> tuple[tuple[Layer, ...], Array | None]:
    """The same function without hidden layers of no neuron: ``layers`` and ``skip`` as a `Policy` has them.

    What follows the last empty layer sees nothing of the observation, so that the head puts out a constant. The linear
    path alone is left, with this constant as its bias: one layer, and no ``skip``. Without a linear path the kernel of
    that layer is 0.
    """
    empty = [i for i, (_, bias) in enumerate(layers[:-1]) if len(bias) == 0]
    if not empty:
        return tuple(layers), skip
    x = np.zeros(0, np.float32)
    for kernel, bias in layers[empty[-1] + 1 : -1]:
        x = ACTIVATIONS[activation](x @ kernel + bias)
    head_kernel, head_bias = layers[-1]
    constant = x @ head_kernel + head_bias
    linear = np.zeros((layers[0][0].shape[0], len(constant)), np.float32) if skip is None else skip
    return ((linear, constant.astype(np.float32)),), None
