"""`prune_rl.export_policy` and `prune-rl export`: from the policy file alone, without JAX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.export.export_policy import FORMATS
from prune_rl.export.metadata import metadata_of
from prune_rl.export.policy import Policy, save_policy
from prune_rl.spaces import Box, Discrete
from tests.export.random_policies import random_policy
from tests.export.test_quantize import typical

ROOT = Path(prune_rl.__file__).parents[1]


def test_the_files_of_each_format(tmp_path: Path) -> None:
    policy = random_policy(2)
    save_policy(tmp_path / "policy", policy)
    assert [path.name for path in prune_rl.export_policy(tmp_path, tmp_path / "out", "onnx")] == [
        "policy.onnx"
    ]
    header, source = prune_rl.export_policy(policy, tmp_path / "out" / "walk.c", "c", metadata={"robot": "x"})
    assert (header.name, source.name) == ("walk.h", "walk.c")
    assert "walk_act(const float observation[" in header.read_text()
    assert " * robot: x\n" in header.read_text()
    assert '#include "walk.h"' in source.read_text()
    calibration = typical(policy)
    for kind, names in (("c", ["policy_int8.h", "policy_int8.c"]), ("onnx", ["policy_int8.onnx"])):
        paths = prune_rl.export_policy(policy, tmp_path, kind, int8=True, calibration=calibration)
        assert [path.name for path in paths] == names
    (program,) = prune_rl.export_policy(policy, tmp_path, "stablehlo")
    assert program.stat().st_size > 1000
    assert set(FORMATS) == {"onnx", "c", "stablehlo"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "format must be one of onnx, c, stablehlo, got 'tflite'"),
        ({"format": "c", "int8": True}, "int8 needs calibration"),
        ({"format": "stablehlo", "int8": True}, "int8 is for the formats onnx and c"),
        ({"format": "c", "path": "a-b.c"}, "the name of a C export"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = tmp_path / arguments.pop("path", "out")
    with pytest.raises(ValueError, match=message):
        prune_rl.export_policy(random_policy(0), path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_what_a_robot_s_code_needs() -> None:
    layers: Any = ((np.zeros((2, 1)), np.zeros(1)),)
    policy = Policy(
        layers, "tanh", Box((-1.0,), (float("inf"),), (1,)), metadata={"env": "E-v0", "algo": "ppo"}
    )
    found = metadata_of(policy, {"step_seconds": 0.02, "action_size": "one"})
    assert found == {
        "observation_size": "2",
        "observation_shape": "[2]",
        "action_type": "box",
        "action_size": "one",
        "action_shape": "[1]",
        "action_dtype": "float32",
        "action_low": "[-1.0]",
        "action_high": "[null]",
        "normalised": "false",
        "environment": "E-v0",
        "algorithm": "ppo",
        "prune_rl_version": prune_rl.__version__,
        "step_seconds": "0.02",
    }
    assert metadata_of(random_policy(3))["action_start"] == "-1"


def run_blocked(blocked: list[str], code: str, *arguments: object) -> str:
    start = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_needs_no_jax_for_onnx_and_c(tmp_path: Path) -> None:
    layers: Any = ((np.eye(4, 3), np.zeros(3)), (np.eye(3, 2), np.zeros(2)))
    policy = Policy(layers, "tanh", Discrete(2), metadata={"env": "CartPole-v1"})
    save_policy(tmp_path / "policy", policy)
    command = ["export", str(tmp_path), "--to", "onnx", "c", "--int8", "--calibration-episodes", "1"]
    code = "from prune_rl.cli import main; sys.exit(main(sys.argv[1:]))"
    heavy = [
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "chex",
        "orbax",
        "matplotlib",
        "scipy",
        "tensorboardX",
        "flashbax",
    ]
    output = run_blocked(heavy, code, *command, "--meta", "robot=x", "gain=2")
    names = ["policy.c", "policy.h", "policy.onnx", "policy_int8.c", "policy_int8.h", "policy_int8.onnx"]
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == names
    assert all(name in output for name in names)
    header = (tmp_path / "export" / "policy.h").read_text()
    for line in ("robot: x", "gain: 2", "environment: CartPole-v1", "step_seconds: 0.02"):
        assert f" * {line}\n" in header


def test_a_policy_loads_and_acts_with_numpy_and_two_small_packages(tmp_path: Path) -> None:
    """Of everything that the package depends on only NumPy, safetensors and lazy_loader are there."""
    policy = random_policy(0)
    save_policy(tmp_path, policy)
    code = (
        "import importlib.abc, importlib.metadata, numpy, prune_rl\n"
        "policy = prune_rl.load_policy(sys.argv[1])\n"
        "print(policy(numpy.zeros(policy.observation_size)).tolist())\n"
        "there = {name.partition('.')[0] for name in sys.modules if sys.modules[name] is not None}\n"
        "owners = importlib.metadata.packages_distributions()\n"
        "print(*sorted({owner for name in there for owner in owners.get(name, [])}))\n"
    )
    action, packages = run_blocked(["jax", "gymnasium", "tyro", "rich"], code, tmp_path).splitlines()
    assert json.loads(action) == policy(np.zeros(policy.observation_size)).tolist()
    third_party = {name.lower().replace("-", "_") for name in packages.split()} - {"prune_rl", "setuptools"}
    assert third_party <= {"numpy", "safetensors", "lazy_loader", "packaging"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--meta", "robot"], "--meta must be KEY=VALUE, such as robot=crawler, got 'robot'"),
        (["--int8", "--to", "stablehlo"], "--int8 is for --to onnx and --to c"),
        (["--calibration-episodes", "0"], "--calibration-episodes must be at least 1, got 0"),
        (["--to"], "--to needs at least one of onnx, c, stablehlo, hub-folder"),
        (
            ["--to", "c", "--int8"],
            "--int8 plays episodes to see how large activations are, and cannot: the policy file",
        ),
    ],
)
def test_a_command_that_cannot_work_says_so(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(tmp_path / "policy", random_policy(0))
    assert main(["export", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "export").exists()
    assert main(["export", str(tmp_path / "nothing")]) == 2
    assert "cannot load the policy file" in capsys.readouterr().err.replace("\n", " ")
