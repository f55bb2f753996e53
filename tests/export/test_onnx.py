"""The exported ONNX model, played by ONNX Runtime: the same actions as NumPy's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prune_rl.export.metadata import metadata_of
from prune_rl.export.onnx_model import onnx_int8_model, onnx_model
from prune_rl.export.onnx_runtime import OnnxPolicy
from prune_rl.export.policy import save_policy
from prune_rl.export.quantize import quantize
from prune_rl.spaces import Box
from tests.export.random_policies import COUNT, assert_same_actions, observations, random_policy
from tests.export.test_quantize import typical

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed: pip install 'prune_rl[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")


@pytest.mark.parametrize("index", range(COUNT))
def test_actions_are_numpy_s(index: int) -> None:
    policy = random_policy(index)
    obs = observations(policy, index)
    played = OnnxPolicy(policy, onnx_model(policy).SerializeToString())
    assert_same_actions(played(obs), policy, obs)
    one = played(obs[1])  # any batch size, and the type and shape of one action
    assert np.shape(one) == np.shape(policy(obs[1]))


@pytest.mark.parametrize("index", range(0, COUNT, 3))
def test_the_integers_of_a_quantised_policy(index: int) -> None:
    """Up to one step of an activation, and exactly where the model has no hidden layer."""
    policy = random_policy(index)
    x = typical(policy)
    q = quantize(policy, x)
    played = OnnxPolicy(policy, onnx_int8_model(q).SerializeToString())(x)
    expected = q(x)
    assert played.dtype == expected.dtype
    if not isinstance(policy.action, Box):
        assert np.mean(played == expected) > 0.95
        return
    span = np.ptp(expected.astype(np.float64), axis=0)
    difference = np.abs(played.astype(np.float64) - expected.astype(np.float64))
    kind = np.dtype(policy.action.dtype)
    # One step of what the dtype can tell apart.
    step = np.float64(1.0) if kind.kind in "iub" else np.spacing(np.abs(expected)).astype(np.float64)
    assert (difference <= 0.1 * span + np.maximum(step, 1e-6)).all()
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx_int8_model(q).graph.node}


@pytest.mark.parametrize("index", [0, 1, 3, 4, 5, 13])
def test_an_observation_with_nan_gives_no_action_of_the_space(index: int) -> None:
    policy = random_policy(index)
    session = OnnxPolicy(policy, onnx_model(policy).SerializeToString()).session
    obs = observations(policy, index, 3)
    obs[1, -1] = np.nan
    (actions,) = session.run(["actions"], {"obs": obs})
    rows = np.delete(obs, 1, 0)
    assert_same_actions(np.delete(actions, 1, 0), policy, rows)
    if not isinstance(policy.action, Box):
        assert actions[1] == policy.action.start - 1
    elif actions.dtype.kind == "f":
        assert np.isnan(actions[1]).all()
    else:
        np.testing.assert_array_equal(actions[1].ravel(), np.array(policy.action.low))


def test_names_opset_and_metadata() -> None:
    policy = random_policy(2)
    model = onnx_model(policy, metadata_of(policy, {"robot": "x", "gain": 2.5}))
    assert [each.version for each in model.opset_import] == [17]
    found = onnxruntime.InferenceSession(model.SerializeToString())
    (entry,), (output,) = found.get_inputs(), found.get_outputs()
    assert (entry.name, entry.shape) == ("obs", ["batch", policy.observation_size])
    assert (output.name, output.shape) == ("actions", ["batch", 2, 2])
    kept = found.get_modelmeta().custom_metadata_map
    assert kept["action_low"] == "[-0.4, 0.0, -2.0, 1.0]"
    assert (kept["robot"], kept["gain"], kept["action_dtype"]) == ("x", "2.5", "float32")


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", random_policy(1))
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from prune_rl.cli import main\n"
        "sys.exit(main(['export', sys.argv[1], '--to', 'onnx']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "prune_rl[onnx]" in done.stderr
    assert not (tmp_path / "export").exists()
