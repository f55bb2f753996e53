"""Policies in 8-bit integers: what they compute is defined once, and has the same bits in NumPy and in C."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import numpy as np
import pytest

from prune_rl.export.activations import ACTIVATIONS, Array
from prune_rl.export.c.int8 import c_int8_source
from prune_rl.export.c.library import CPolicy, compile_library
from prune_rl.export.policy import Policy
from prune_rl.export.quantize import QuantizedPolicy, integer_tanh, quantize
from prune_rl.spaces import Box
from tests.export.random_policies import COUNT, observations, random_policy

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler, cc: install gcc"
)


def typical(policy: Policy, count: int = 300) -> Array:
    x = np.random.default_rng(3).standard_normal((count, policy.observation_size))
    if policy.normalisation is not None:
        mean, std, _ = policy.normalisation
        x = x * std + mean
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def quantized() -> list[QuantizedPolicy]:
    policies = [random_policy(index) for index in range(COUNT)]
    return [quantize(policy, typical(policy)) for policy in policies]


@pytest.fixture(scope="module")
def compiled(quantized: list[QuantizedPolicy], tmp_path_factory: pytest.TempPathFactory) -> list[CPolicy]:
    sources = [c_int8_source(each, f"policy_{index}") for index, each in enumerate(quantized)]
    library = compile_library(sources, tmp_path_factory.mktemp("int8"))
    return [CPolicy(q.policy, each.name, library) for q, each in zip(quantized, sources, strict=True)]


@needs_compiler
@pytest.mark.parametrize("index", range(COUNT))
def test_c_gives_the_bits_of_numpy(
    quantized: list[QuantizedPolicy], compiled: list[CPolicy], index: int
) -> None:
    obs = observations(quantized[index].policy, index)
    np.testing.assert_array_equal(compiled[index](obs), quantized[index](obs), strict=True)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("skip", [False, True])
def test_outputs_are_near_those_of_the_float_policy(activation: str, skip: bool) -> None:
    rng = np.random.default_rng(4)
    sizes = [6, 17, 9, 3]
    layers: Any = tuple(
        (rng.standard_normal((a, b)) / np.sqrt(a), 0.3 * rng.standard_normal(b))
        for a, b in itertools.pairwise(sizes)
    )
    path: Any = 0.3 * rng.standard_normal((6, 3)) if skip else None
    policy = Policy(layers, activation, Box((-9.0,) * 3, (9.0,) * 3, (3,)), skip=path)
    x = typical(policy)
    exact, rounded = policy.outputs(x), quantize(policy, x).outputs(x)
    error = np.sqrt(np.mean((exact - rounded) ** 2)) / np.std(exact)
    assert 0.0 < error < 0.04


def test_the_integer_tanh_is_within_its_bound() -> None:
    z = np.arange(50_000)
    assert np.abs(integer_tanh(z) - 2048 * np.tanh(z / 2048)).max() <= 3
    assert (np.diff(integer_tanh(z)) >= 0).all()


def test_rounding_keeps_the_sums_on_what_calibration_shows() -> None:
    """Inputs that move together leave room for rounding: errors of one weight are made up for by the others."""
    rng = np.random.default_rng(5)
    sizes = [8, 16, 3]
    layers: Any = tuple(
        (rng.standard_normal((a, b)) / np.sqrt(a), 0.3 * rng.standard_normal(b))
        for a, b in itertools.pairwise(sizes)
    )
    policy = Policy(layers, "tanh", Box((-9.0,) * 3, (9.0,) * 3, (3,)))
    x = (rng.standard_normal((500, 3)) @ rng.standard_normal((3, 8))).astype(np.float32)
    other = (100 * rng.standard_normal((500, 8))).astype(np.float32)
    errors = [
        np.sqrt(np.mean((policy.outputs(x[250:]) - quantize(policy, seen).outputs(x[250:])) ** 2))
        for seen in (
            x[:250],
            np.concatenate([x[:250], -x[:250]]),
            np.clip(other, -np.abs(x).max(0), np.abs(x).max(0)),
        )
    ]
    assert max(errors[:2]) < 0.6 * errors[2]
    assert errors[0] < 0.003


def test_what_was_never_seen_is_clipped_and_an_input_that_is_always_zero_counts() -> None:
    policy = random_policy(0)
    x = np.zeros_like(typical(policy))
    x[:, 1:] = typical(policy)[:, 1:]
    q = quantize(policy, x)
    far, farther = (q.outputs(np.full(policy.observation_size, value, np.float32)) for value in (1e6, np.inf))
    np.testing.assert_array_equal(far, farther)
    with pytest.raises(ValueError, match="NaN"):
        q(np.full(policy.observation_size, np.nan))


def test_what_cannot_be_quantised_is_refused() -> None:
    policy = random_policy(0)
    with pytest.raises(ValueError, match="calibration needs observations without NaN, at least one, got 0"):
        quantize(policy, np.zeros((0, policy.observation_size)))
    with pytest.raises(ValueError, match="without NaN"):
        quantize(policy, np.full((2, policy.observation_size), np.nan))
    (kernel, bias), *rest = policy.layers
    huge = Policy(((1e9 * kernel, bias), *rest), policy.activation, policy.action)
    with pytest.raises(ValueError, match="too large for 8 bits"):
        quantize(huge, typical(huge))


def test_a_policy_of_hopper_s_size_takes_at_most_800_bytes() -> None:
    rng = np.random.default_rng(0)
    sizes = [11, 17, 17, 3]
    layers: Any = tuple(
        (rng.standard_normal((a, b)), rng.standard_normal(b)) for a, b in itertools.pairwise(sizes)
    )
    skip: Any = rng.standard_normal((11, 3))
    statistics: dict[str, Any] = {"obs_mean": rng.normal(size=11), "obs_std": np.ones(11)}
    policy = Policy(layers, "tanh", Box((-1.0,) * 3, (1.0,) * 3, (3,)), skip=skip, **statistics)
    assert quantize(policy, typical(policy)).nbytes <= 800
