from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prune_rl
from prune_rl.export.policy import Policy, save_policy
from prune_rl.spaces import Discrete

# What other programs import, whatever else is added.
FIXED = [
    "find_groups",
    "init_masks",
    "taylor_importance",
    "update_masks",
    "apply_masks",
    "compact",
    "count",
    "compact_function",
    "group_sparse",
    "dynamic_pruning",
    "masks_of",
    "load_policy",
    "ppo",
    "sac",
]


def run_python(code: Any, *arguments: Any) -> Any:
    """A fresh interpreter; returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", sorted({*FIXED, *vars(prune_rl)["__all__"]}))
def test_a_public_name_imports_and_is_documented(name: Any) -> None:
    value = getattr(importlib.import_module("prune_rl"), name)
    assert inspect.getdoc(value)
    assert name in dir(prune_rl)
    if not inspect.ismodule(value):
        assert value.__name__ == name
        assert value.__doc__ is not None


def test_the_learners_have_what_other_programs_use() -> None:
    from prune_rl import ppo, sac

    for learner in (ppo, sac):
        for name in (
            "Config",
            "Rollout",
            "State",
            "init",
            "act",
            "action_noise",
            "update",
            "prunable_groups",
        ):
            assert inspect.getdoc(getattr(learner, name))
    assert {"params", "opt_state", "pruning", "step"} <= set(ppo.State.__dataclass_fields__)
    assert {"networks", "replay", "pruning", "step"} <= set(sac.State.__dataclass_fields__)
    assert inspect.getdoc(sac.State.params)
    for state in (ppo.State, sac.State):
        assert inspect.getdoc(state.masks)


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_learner_loads_alone(name: str) -> None:
    code = f"import prune_rl, sys; assert 'jax' not in sys.modules; print(prune_rl.{name}.Config.__module__)"
    assert run_python(code) == [f"prune_rl.learners.{name}.config"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No prune_rl attribute find_group"):
        prune_rl.find_group  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from prune_rl import find_group  # type: ignore[attr-defined]  # noqa: F401


def test_the_package_imports_nothing_heavy() -> None:
    loaded = run_python("import sys, prune_rl; dir(prune_rl); print(*sys.modules)")
    assert "prune_rl" in loaded
    assert not {"jax", "flax", "optax", "gymnasium", "numpy", "rich", "tyro"} & set(loaded)


def test_a_policy_acts_where_neither_jax_nor_gymnasium_is_installed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = tuple(
        (rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[1]).astype(np.float32))
        for shape in ((4, 5), (5, 3))
    )
    policy = Policy(layers=layers, activation="tanh", action=Discrete(3))
    save_policy(tmp_path, policy)
    blocked = [
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "chex",
        "orbax",
        "gymnasium",
        "scipy",
        "matplotlib",
        "rich",
        "tyro",
    ]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "import numpy, prune_rl\n"
        "policy = prune_rl.load_policy(sys.argv[1])\n"
        "print(*policy(numpy.eye(4, dtype=numpy.float32)).tolist())\n"
    )
    assert run_python(code, tmp_path) == [str(action) for action in policy(np.eye(4, dtype=np.float32))]


def test_the_pruning_library_needs_no_environments() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['gymnasium', 'tyro', 'matplotlib', 'tensorboardX']))\n"
        "import prune_rl\n"
        "for name in prune_rl.__all__: getattr(prune_rl, name)\n"
        "print('imported')\n"
    )
    assert run_python(code) == ["imported"]
