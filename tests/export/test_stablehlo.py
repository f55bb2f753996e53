"""The StableHLO program of a policy: the same actions as NumPy's, for any batch size."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from prune_rl.export.stablehlo import stablehlo
from tests.export.random_policies import COUNT, assert_same_actions, observations, random_policy

# Tracing and compiling takes most of a second each; `make proof` takes every policy.
INDICES = range(COUNT) if COUNT >= 100 else (0, 2, 3, 4, 11)


@pytest.mark.parametrize("index", INDICES)
def test_actions_are_numpy_s(index: int) -> None:
    policy = random_policy(index)
    obs = observations(policy, index)
    program = jax.export.deserialize(bytearray(stablehlo(policy)))
    with jax.enable_x64(True):
        assert_same_actions(np.asarray(program.call(obs)), policy, obs)
    (shape,) = program.in_avals
    assert str(shape.shape[0]) == "batch"
    assert {"cpu", "cuda", "tpu"} <= set(program.platforms)
