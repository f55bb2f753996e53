"""The mean of several policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.export.actions import Spread
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.export.policy_average import average_policies
from prune_rl.spaces import Box
from tests.export.random_policies import COUNT, random_policy


def with_other_numbers(policy: Policy, rng: np.random.Generator, step: int) -> Policy:
    """A policy of the same form."""

    def noisy(x: Any) -> Any:
        return None if x is None else x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)

    std = None if policy.obs_std is None else policy.obs_std * np.float32(1.5)
    spread = policy.spread
    if spread is not None:
        spread = dataclasses.replace(
            spread, bias=noisy(spread.bias), kernel=noisy(spread.kernel), skip=noisy(spread.skip)
        )
    return dataclasses.replace(
        policy,
        layers=tuple((noisy(kernel), noisy(bias)) for kernel, bias in policy.layers),
        obs_mean=noisy(policy.obs_mean),
        obs_std=std,
        skip=noisy(policy.skip),
        spread=spread,
        metadata={"steps": step, "seed": 3},
    )


def tensors(policy: Policy) -> dict[str, Any]:
    """All arrays by name."""
    named = {"mean": policy.obs_mean, "std": policy.obs_std, "skip": policy.skip}
    named |= {f"{i}/{j}": x for i, layer in enumerate(policy.layers) for j, x in enumerate(layer)}
    named |= {} if policy.spread is None else policy.spread.tensors()
    return {name: tensor for name, tensor in named.items() if tensor is not None}


@pytest.mark.parametrize("index", range(COUNT))
def test_every_array_is_the_mean_of_the_policies(index: int) -> None:
    rng = np.random.default_rng([19, index])
    first = random_policy(index)
    if isinstance(first.action, Box):
        size, width = first.action.num_outputs, first.layers[-1][0].shape[0]
        draw = [
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((width, size), (first.observation_size, size))
        ]
        kernel, skip = draw if index % 2 else (None, None)
        first = dataclasses.replace(first, spread=Spread(np.zeros(size, np.float32), kernel, skip, -5.0, 2.0))
    policies = [with_other_numbers(first, rng, step) for step in (10, 20, 30)]
    average = average_policies(policies)
    assert average.metadata == {"steps": 30, "seed": 3, "averaged": 3}
    for name, tensor in tensors(average).items():
        wanted = sum(tensors(policy)[name].astype(np.float64) for policy in policies) / 3
        np.testing.assert_allclose(tensor, wanted, rtol=1e-6, atol=1e-7)
    assert tensors(average).keys() == tensors(first).keys()
    for field in ("activation", "action", "obs_clip", "squash", "observation_shape", "temperature"):
        assert getattr(average, field) == getattr(first, field)


def test_the_mean_of_equal_policies_is_that_policy_to_the_bit(tmp_path: Path) -> None:
    policy = random_policy(0)
    average = average_policies([policy] * 7)
    for name, tensor in tensors(average).items():
        assert tensor.tobytes() == tensors(policy)[name].tobytes()
    save_policy(tmp_path / "policy", average)
    assert load_policy(tmp_path / "policy").metadata["averaged"] == 7


def test_policies_of_different_forms_have_no_mean() -> None:
    policy = random_policy(0)
    assert policy.obs_mean is not None
    others = [
        random_policy(1),
        dataclasses.replace(policy, activation="relu" if policy.activation != "relu" else "tanh"),
        dataclasses.replace(policy, obs_mean=None, obs_std=None),
        dataclasses.replace(policy, temperature=2.0),
        dataclasses.replace(policy, spread=Spread(np.zeros(policy.action.num_outputs, np.float32))),
    ]
    for other in others:
        with pytest.raises(ValueError, match="these policies have no mean"):
            average_policies([policy, other])
    with pytest.raises(ValueError, match="no policy to average"):
        average_policies([])
