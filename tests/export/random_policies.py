"""Random policies of every kind, hostile observations for them, and what counts as the same action."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete

INFINITY = float("inf")
# `make proof` tests 200; what fits into the tests of every day is a tenth of it.
COUNT = int(os.environ.get("PRUNE_RL_RANDOM_POLICIES", "24"))
OBSERVATIONS = 1000
TOLERANCE = 1e-6  # of the width of the bounds

WIDTHS: list[tuple[int, ...]] = [
    (17, 17),
    (7, 7),
    (),
    (1,),
    (5, 0),
    (1, 1, 1),
    (16,),
    (3, 33),
    (0,),
    (64, 64),
]
ACTIONS: list[tuple[Discrete | Box, bool]] = [
    (Box((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (3,)), False),
    (Discrete(4), False),
    (Box((-0.4, 0.0, -2.0, 1.0), (0.4, 1.0, 2.0, 9.0), (2, 2)), True),
    (Discrete(2, start=-1), False),
    (Box((-INFINITY, 0.25), (0.5, INFINITY), (2,), "float64"), False),
    (Box((-3,) * 5, (200,) * 5, (5,), "int16"), False),
    (Box((-1.0,), (1.0,), ()), True),
    (Discrete(1, start=2**40), False),
    (Box((-INFINITY,) * 2, (INFINITY,) * 2, (2,)), False),
    (Box((2**53 + 1, -7), (2**62 + 3, 7), (2,), "int64"), False),
    (Box((-0.1,) * 3, (0.1,) * 3, (3,), "float16"), True),
    (Box((0, 0), (255, 2**64 - 1), (2,), "uint64"), False),
    (Discrete(9, start=10), False),
    (Box((0,) * 3, (1,) * 3, (3,), "bool"), False),
]


def random_policy(index: int) -> Policy:
    """The same for the same index; any 24 in a row have every activation, action and width."""
    rng = np.random.default_rng([17, index])
    action, squash = ACTIONS[index % len(ACTIONS)]
    activation = list(ACTIVATIONS)[index % len(ACTIVATIONS)]
    widths = WIDTHS[(index + index // len(WIDTHS)) % len(WIDTHS)]
    size = int(rng.integers(1, 20))
    sizes = [size, *widths, action.num_outputs]
    layers: list[Any] = [
        (rng.standard_normal((a, b)) / np.sqrt(max(a, 1)), 0.3 * rng.standard_normal(b))
        for a, b in itertools.pairwise(sizes)
    ]
    skip: Any = 0.3 * rng.standard_normal((size, action.num_outputs)) if index % 3 == 0 else None
    if isinstance(action, Box) and not squash:
        # Outputs of the size of the bounds.
        centre, half = _middle(action)
        kernel, bias = layers[-1]
        layers[-1] = (kernel * half, bias * half + centre)
        skip = None if skip is None else skip * half
    statistics: dict[str, Any] = {}
    if index % 4 != 3:
        statistics = {"obs_mean": rng.normal(size=size), "obs_std": rng.uniform(0.1, 3.0, size)}
        statistics["obs_clip"] = (10.0, 5.0, INFINITY)[index % 5 % 3]
    return Policy(tuple(layers), activation, action, squash=squash, skip=skip, **statistics)


def _middle(action: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = np.array(action.low, np.float64), np.array(action.high, np.float64)
    finite = np.isfinite(high - low)
    low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
    return (low + high) / 2, (high - low) / 2


def observations(policy: Policy, index: int, count: int = OBSERVATIONS) -> Array:
    """float32[count, D]: most of them as the statistics say, some hostile in all or a few components."""
    rng = np.random.default_rng([18, index])
    x = 2.0 * rng.standard_normal((count, policy.observation_size))
    if policy.normalisation is not None:
        mean, std, _ = policy.normalisation
        x = x * std + mean
    hostile = np.array([0.0, -0.0, 1e30, -1e30, 1e-40, -1e-45, INFINITY, -INFINITY])
    rows = np.arange(0, count, 5)
    chosen = rng.choice(hostile, (len(rows), policy.observation_size))
    kept = rng.random((len(rows), policy.observation_size)) < rng.choice([0.0, 0.5, 0.9], (len(rows), 1))
    x[rows] = np.where(kept, x[rows], chosen)
    return x.astype(np.float32)


def assert_same_actions(actions: Any, policy: Policy, obs: Array) -> None:
    """Fails where ``actions`` are not those of NumPy: within `TOLERANCE`, or on the other side of a tie."""
    expected = policy(obs)
    actions = np.asarray(actions)
    assert (actions.shape, actions.dtype) == (expected.shape, expected.dtype)
    outputs = policy.outputs(obs).astype(np.float64)
    if isinstance(policy.action, Discrete):
        rows = np.arange(len(obs))
        lost = outputs[rows, expected - policy.action.start] - outputs[rows, actions - policy.action.start]
        assert (lost <= 1e-5 * (1.0 + np.abs(outputs).max(-1))).all()
        assert np.mean(actions != expected) < 0.01
        return
    low, high = np.array(policy.action.low, np.float64), np.array(policy.action.high, np.float64)
    width = high - low
    flat, wanted = (x.reshape(len(obs), -1).astype(np.float64) for x in (actions, expected))
    # Without bounds there is only the magnitude of what was summed up.
    allowed = np.where(np.isfinite(width), width, 1.0 + _magnitude(policy, obs)) * TOLERANCE
    kind = np.dtype(policy.action.dtype)
    if kind.kind in "iub":
        assert (flat == np.rint(flat)).all()
        near = np.abs(np.abs(outputs - np.floor(outputs)) - 0.5) <= allowed
        allowed = np.where(np.abs(outputs) < 2.0**23, near, allowed)
    elif kind == np.float16:
        allowed = allowed + np.spacing(np.abs(expected)).astype(np.float64).reshape(len(obs), -1)
    difference = np.abs(flat - wanted)
    assert (difference <= allowed).all(), (difference - allowed).max()


def _magnitude(policy: Policy, obs: Array) -> Array:
    """The largest number on the way to each row's outputs."""
    x = np.minimum(np.abs(obs.astype(np.float64)), 3.4e38)
    if policy.normalisation is not None:
        mean, std, clip = policy.normalisation
        x = np.minimum((x + np.abs(mean)) / std, clip)
    largest = x.max(-1, keepdims=True)
    for kernel, bias in policy.layers:
        largest = largest * max(1.0, float(np.abs(kernel).sum(0).max(initial=0.0))) + np.abs(bias).max(
            initial=0.0
        )
    return largest
