"""Exported C code on an emulated Cortex-M4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.device.__main__ import random_policy, variants
from experiments.device.cortex_m4_emulator import missing, run_on_device
from prune_rl.export.c.source import c_source
from prune_rl.spaces import Box, Discrete
from tests.export.random_policies import assert_same_actions, observations
from tests.export.random_policies import random_policy as hostile_policy

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"not installed, see `make device`: {', '.join(missing())}"
)


def test_the_sizes_that_a_small_controller_allows(tmp_path: Path) -> None:
    policy = random_policy((11, 17, 17, 3), Box((-1.0,) * 3, (1.0,) * 3, (3,)))
    found = variants(policy, tmp_path)  # which fails if an action is not NumPy's
    for name, on in found.items():
        assert (on.data, on.bss) == (0, 0)
        assert 0 < on.stack < 1024
        if name.startswith("int8"):
            assert on.rodata <= 800
            assert on.text <= 2048
        assert 1000 < on.instructions < 6000
    assert variants(random_policy((8, 7, 7, 4), Discrete(4)), tmp_path)["int8, -Os"].rodata <= 300


@pytest.mark.parametrize("index", [2, 4, 5, 10])
def test_actions_of_every_dtype_on_hostile_observations(index: int, tmp_path: Path) -> None:
    policy = hostile_policy(index)
    obs = observations(policy, index, 40)
    measured = run_on_device(policy, c_source(policy), obs, tmp_path)
    shape = np.asarray(policy(obs)).shape
    actions = measured.actions.reshape(shape)
    if isinstance(policy.action, Box):
        actions = actions.astype(policy.action.dtype)
    assert_same_actions(actions, policy, obs)
