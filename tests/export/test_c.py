"""The exported C code: the same actions as NumPy's, compiled with every warning an error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.export import tanh
from prune_rl.export.c.actions import action_type
from prune_rl.export.c.library import FLAGS, CPolicy, compile_library
from prune_rl.export.c.source import c_source
from tests.export.random_policies import COUNT, assert_same_actions, observations, random_policy

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler, cc")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[CPolicy]:
    """All random policies, compiled in one go."""
    policies = [random_policy(index) for index in range(COUNT)]
    sources = [c_source(policy, f"policy_{index}") for index, policy in enumerate(policies)]
    library = compile_library(sources, tmp_path_factory.mktemp("c"))
    return [
        CPolicy(policy, source.name, action_type(policy.action), library)
        for policy, source in zip(policies, sources, strict=True)
    ]


@needs_compiler
@pytest.mark.parametrize("index", range(COUNT))
def test_actions_are_numpy_s(compiled: list[CPolicy], index: int) -> None:
    policy = random_policy(index)
    obs = observations(policy, index)
    assert_same_actions(compiled[index](obs), policy, obs)
