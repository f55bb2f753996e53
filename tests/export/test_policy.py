"""The compact policy: what it computes, how fast, and that no file can make loading it crash or lie."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_rl.export import files
from prune_rl.export.activations import ACTIVATIONS
from prune_rl.export.files import PolicyFileError
from prune_rl.export.latency import measure_latency
from prune_rl.export.policy import Policy, load_policy, save_policy
from prune_rl.learners import networks
from prune_rl.spaces import Box, Discrete

BOX = Box((-1.0, -2.0, 0.0, -1.0), (1.0, 2.0, 0.5, float("inf")), (2, 2))


def make(
    sizes: tuple[int, ...] = (8, 17, 17, 4),
    activation: str = "tanh",
    action: Discrete | Box | None = None,
    normalise: bool = True,
    **kwargs: Any,
) -> Policy:
    rng = np.random.default_rng(sum(sizes))
    layers = tuple(
        (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    )
    if normalise:
        kwargs |= {"obs_mean": rng.normal(size=sizes[0]), "obs_std": rng.uniform(0.5, 2.0, size=sizes[0])}
    return Policy(layers, activation, action or Discrete(sizes[-1]), **kwargs)


def observations(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(scale=3.0, size=shape).astype(np.float32)


def assert_equal(a: Policy, b: Policy) -> None:
    fields = ("activation", "action", "obs_clip", "squash", "metadata", "widths")
    assert [getattr(a, f) for f in fields] == [getattr(b, f) for f in fields]
    assert a.tensors().keys() == b.tensors().keys()
    for name, tensor in a.tensors().items():
        np.testing.assert_array_equal(tensor, b.tensors()[name])


# --- what it computes


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_are_jax_s(activation: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 2001), [-1e4, -90.0, 0.0, 90.0, 1e4]]).astype(np.float32)
    reference = getattr(jnp, activation, None) or getattr(jax.nn, activation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = ACTIVATIONS[activation](x.copy())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(x), rtol=2e-6, atol=1e-6)


def test_every_activation_of_the_learners_is_known() -> None:
    assert networks.ACTIVATIONS.keys() <= ACTIVATIONS.keys()


@pytest.mark.parametrize("activation", list(networks.ACTIVATIONS))
def test_outputs_are_those_of_the_jax_network(activation: str) -> None:
    params = networks.init_mlp(jax.random.key(0), [6, 13, 9, 3], head_scale=1.0)
    names = ["layer_0", "layer_1", "head"]
    policy = Policy(tuple((params[n]["kernel"], params[n]["bias"]) for n in names), activation, Discrete(3))
    obs = observations(40, 6)
    expected = networks.apply_mlp(params, jnp.asarray(obs), activation)
    np.testing.assert_allclose(policy.outputs(obs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(policy(obs), np.argmax(policy.outputs(obs), -1))


def test_normalisation_clips_after_standardising() -> None:
    statistics: dict[str, Any] = {"obs_mean": [1.0, 1.0], "obs_std": [2.0, 0.1]}  # lists are converted
    policy = Policy(
        ((np.eye(2, dtype=np.float32), np.zeros(2, np.float32)),),
        "tanh",
        Discrete(2),
        **statistics,
        obs_clip=3.0,
    )
    np.testing.assert_allclose(policy.outputs([2.0, 2.0]), [0.5, 3.0])
    np.testing.assert_allclose(policy.outputs([-np.inf, 1.0]), [-3.0, 0.0])
    assert policy([2.0, 2.0]) == 1
    unlimited = Policy(policy.layers, "tanh", Discrete(2), policy.obs_mean, policy.obs_std, np.inf)
    np.testing.assert_allclose(unlimited.outputs([2.0, 2.0]), [0.5, 10.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "activation", "action"),
    [
        ((8, 17, 17, 4), "tanh", None),
        ((4, 1, 2), "relu", None),
        ((1, 3, 1), "elu", Box((-1.0,), (1.0,), (1,))),
        ((11, 256, 33, 4), "gelu", BOX),
        ((5, 0, 3), "tanh", None),
        ((5, 3), "silu", None),
        ((11, 6, 4), "tanh", BOX),
    ],
)
@pytest.mark.parametrize("with_skip", [False, True])
def test_a_batch_gives_the_bits_of_its_rows(
    sizes: Any, activation: str, action: Any, with_skip: bool
) -> None:
    skip = np.random.default_rng(2).normal(size=(sizes[0], sizes[-1])) if with_skip else None
    policy = make(sizes, activation, action, skip=skip)
    obs = observations(3, 7, sizes[0])
    rows = [[policy(row) for row in block] for block in obs]
    np.testing.assert_array_equal(policy(obs), rows, strict=False)
    outputs = np.array([[policy.outputs(row) for row in block] for block in obs])
    np.testing.assert_array_equal(policy.outputs(obs), outputs, strict=True)
    assert policy.outputs(obs[:0]).shape == (0, 7, sizes[-1])


def test_types_and_shapes_of_actions() -> None:
    discrete, box = make(), make(action=BOX)
    obs = observations(5, 8)
    assert type(discrete(obs[0])) is np.int64
    assert discrete(obs).dtype == np.int64
    assert discrete(obs).shape == (5,)
    assert box(obs[0]).dtype == np.float32
    assert box(obs[0]).shape == (2, 2)
    assert box(obs).shape == (5, 2, 2)
    scalar = make((3, 1), action=Box((-1.0,), (1.0,), ()))
    assert scalar(observations(3)).shape == ()
    assert scalar(observations(6, 3)).shape == (6,)


def test_observations_in_the_environment_s_own_shape() -> None:
    policy, obs = make(), observations(8)
    for same in (obs.reshape(2, 4), obs.reshape(2, 2, 2), obs.astype(np.float64), obs.tolist()):
        np.testing.assert_array_equal(policy.outputs(same), policy.outputs(obs))
    one = make((1, 3))
    assert one(0.5) == one([0.5])
    for wrong in (observations(7), observations(2, 3), 1.0):
        with pytest.raises(ValueError, match="observations of 8 elements"):
            policy(wrong)


def test_the_observation_is_not_written_to() -> None:
    policy, obs = make(), observations(8)
    before = obs.copy()
    policy(obs)
    policy(obs[None])
    np.testing.assert_array_equal(obs, before)


def test_box_actions_are_clipped_to_the_bounds() -> None:
    outputs = np.array([5.0, -5.0, 0.25, 1e6], np.float32)
    policy = Policy(((np.zeros((1, 4), np.float32), outputs),), "tanh", BOX)
    np.testing.assert_array_equal(policy([0.0]), np.array([[1.0, -2.0], [0.25, 1e6]], np.float32))


def test_without_bounds_actions_are_the_outputs() -> None:
    """And nothing is computed of the bounds that NumPy would warn of; its warnings are errors here."""
    infinity = float("inf")
    layers: Any = ((np.zeros((1, 2)), [-1e9, 3.0]),)  # converted to float32 arrays
    policy = Policy(layers, "tanh", Box((-infinity,) * 2, (infinity,) * 2, (2,)))
    np.testing.assert_array_equal(policy([0.0]), np.array([-1e9, 3.0], np.float32))


def test_squashed_actions_are_rescaled_to_the_bounds() -> None:
    box = Box((-1.0, 0.0, -3.0), (1.0, 4.0, 5.0), (3,))
    layer = np.zeros((1, 3), np.float32), np.array([0.5, 0.0, 50.0], np.float32)
    policy = Policy((layer,), "tanh", box, squash=True)
    np.testing.assert_allclose(policy([0.0]), [np.tanh(0.5), 2.0, 5.0], rtol=1e-6)
    with pytest.raises(ValueError, match="finite"):
        make(action=BOX, squash=True)


def test_sizes() -> None:
    policy = make((8, 17, 5, 4))
    assert (policy.observation_size, policy.widths, policy.num_neurons) == (8, (17, 5), 22)
    assert policy.macs == 8 * 17 + 17 * 5 + 5 * 4
    assert policy.num_weights == policy.macs + 17 + 5 + 4
    assert policy.nbytes == 4 * (policy.num_weights + 16)


def test_arrays_are_private_and_read_only() -> None:
    kernel = np.ones((2, 2), np.float32)
    policy = Policy(((kernel, np.zeros(2, np.float32)),), "tanh", Discrete(2))
    kernel[:] = 7.0
    assert policy.outputs([1.0, 1.0]).tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        policy.layers[0][0][0, 0] = 3.0


def test_copies_and_pickles_act_alike() -> None:
    policy = make(action=BOX, metadata={"env": "x"})
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert_equal(twin, policy)
        np.testing.assert_array_equal(twin(observations(8)), policy(observations(8)))


K, B = np.ones((2, 3), np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": ((K, B), (np.ones((4, 3)), B))}, "layer 1 does not chain"),
        ({"layers": ((K, B[:2]),)}, "layer 0 does not chain"),
        ({"layers": ((B, B),)}, "layer 0 does not chain"),
        ({"layers": ((np.float32(1.0), B),)}, "first kernel"),
        ({"layers": ((np.ones((0, 3)), B),)}, "first kernel"),
        ({"layers": ((K * np.nan, B),)}, "kernel 0 holds NaN"),
        ({"layers": ((K, [1e300] * 3),)}, "bias 0 holds NaN or infinity"),
        ({"action": Discrete(4)}, "3 outputs where the action space needs 4"),
        ({"activation": "sin"}, "unknown activation 'sin'; known are tanh"),
        ({"obs_mean": B[:2]}, "together"),
        ({"obs_mean": B[:2], "obs_std": B[:2]}, "positive"),
        ({"obs_mean": B, "obs_std": B + 1}, "shape"),
        ({"obs_clip": 0.0}, "obs_clip"),
        ({"obs_clip": float("nan")}, "obs_clip"),
        ({"action": Box((0.0,) * 3, (-1.0,) * 3, (3,))}, "lower action bound"),
        ({"action": Box((np.nan,) * 3, (1.0,) * 3, (3,))}, "lower action bound"),
        ({"squash": True}, "Box"),
        ({"skip": K[:1]}, "skip has shape"),
        ({"skip": K * np.inf}, "skip holds NaN or infinity"),
    ],
)
def test_inconsistent_policies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**{"layers": ((K, B),), "activation": "tanh", "action": Discrete(3), **changes})


def test_latency_is_measured_on_single_observations() -> None:
    shapes = []

    class Watched(Policy):
        def __call__(self, obs: Any) -> Any:
            shapes.append(np.shape(obs))
            return super().__call__(obs)

    policy = make()
    latency = measure_latency(Watched(policy.layers, policy.activation, policy.action), repeats=7)
    assert shapes == [(8,)] * 14, "7 to warm up, 7 measured"
    assert latency > 0.0
    with pytest.raises(ValueError, match="repeats"):
        measure_latency(make(), repeats=0)


# --- the files


@pytest.mark.parametrize(
    "policy",
    [
        make(metadata={"env": "CartPole-v1", "é": [1, 2.5, None, {"deep": True}], "tiny": 5e-324}),
        make(action=BOX, activation="relu", obs_clip=float("inf")),
        make((11, 5, 3), action=Box((-1.0,) * 3, (1.0,) * 3, (3,)), squash=True, normalise=False),
        make((3, 1), action=Box((-0.5,), (0.5,), ()), normalise=False),
        make((5, 0, 3)),
        make((5, 4, 3), skip=np.random.default_rng(2).normal(size=(5, 3))),
    ],
)
def test_round_trip(tmp_path: Path, policy: Policy) -> None:
    directory = tmp_path / "run" / "policy"
    save_policy(directory, policy)
    assert sorted(p.name for p in directory.iterdir()) == ["policy.json", "policy.safetensors"]
    obs = observations(20, policy.observation_size)
    for path in (directory, str(directory), directory.parent, directory / "policy.json"):
        loaded = load_policy(path)
        assert_equal(loaded, policy)
        np.testing.assert_array_equal(loaded(obs), policy(obs))


def test_the_description_says_what_the_policy_is(tmp_path: Path) -> None:
    save_policy(tmp_path, make(action=BOX, metadata={"seed": 3, "hidden": (256, 256), 10: "a", 9: "b"}))
    document = json.loads((tmp_path / "policy.json").read_text())
    assert (document["format"], document["version"]) == ("prune_rl.policy", 2)
    assert (document["observation_size"], document["widths"], document["activation"]) == (8, [17, 17], "tanh")
    assert document["action"] == {
        "type": "box",
        "shape": [2, 2],
        "low": [-1.0, -2.0, 0.0, -1.0],
        "high": [1.0, 2.0, 0.5, None],
        "dtype": "float32",
    }
    sha256 = hashlib.sha256((tmp_path / "policy.safetensors").read_bytes()).hexdigest()
    assert document["tensors_sha256"] == sha256
    metadata = load_policy(tmp_path).metadata
    assert metadata == {"seed": 3, "hidden": [256, 256], "10": "a", "9": "b"}


def test_saving_the_same_policy_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_policy(tmp_path / name, make(metadata={"seed": 1}))
    for name in ("policy.json", "policy.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "metadata", [{"x": float("nan")}, {"x": object()}, {"x": "y" * (1 << 20)}, {(1, 2): 3}]
)
def test_metadata_that_could_not_be_loaded_is_not_saved(tmp_path: Path, metadata: dict[Any, Any]) -> None:
    save_policy(tmp_path, make())
    with pytest.raises(ValueError, match="metadata"):
        save_policy(tmp_path, make(metadata=metadata))
    assert_equal(load_policy(tmp_path), make())


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("replaces", [0, 1, 2])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_save_cut_short_leaves_the_old_policy_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: int, earlier: bool
) -> None:
    old, new = make(metadata={"which": "old"}), make((8, 3, 4), "relu", metadata={"which": "new"})
    if earlier:
        save_policy(tmp_path, old)
    done = 0

    def replace_and_die(source: Path, target: Path) -> None:
        nonlocal done
        if done == replaces:
            raise Killed
        done += 1
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_die)
        if replaces < 2:
            with pytest.raises(Killed):
                save_policy(tmp_path, new)
        else:
            save_policy(tmp_path, new)
    if replaces == 0 and not earlier:
        with pytest.raises(PolicyFileError, match="No such file"):
            load_policy(tmp_path)
    else:
        assert_equal(load_policy(tmp_path), old if replaces == 0 else new)
    save_policy(tmp_path, new)
    assert_equal(load_policy(tmp_path), new)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("first", range(5))
@pytest.mark.parametrize("second", range(5))
def test_two_saves_in_a_row_cut_short_leave_one_complete_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    """Each dies before its n-th write to the disk or rename; a third save and its reader find all in order."""
    versions = [make(metadata={"which": which}) for which in ("old", "new", "newest")]
    save_policy(tmp_path, versions[0])
    fsync, replace = os.fsync, os.replace
    for number, dies_at in ((1, first), (2, second)):
        done = 0

        def or_die(function: Any, *arguments: Any, dies_at: int = dies_at) -> None:
            nonlocal done
            if done == dies_at:
                raise Killed
            done += 1
            function(*arguments)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(os, "fsync", functools.partial(or_die, fsync))
            patch.setattr(os, "replace", functools.partial(or_die, replace))
            save_policy(tmp_path, versions[number])
        found = load_policy(tmp_path).metadata["which"]
        assert found in [policy.metadata["which"] for policy in versions[: number + 1]]
    save_policy(tmp_path, versions[2])
    assert_equal(load_policy(tmp_path), versions[2])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_save_cut_short_while_writing_leaves_the_old_policy(tmp_path: Path) -> None:
    save_policy(tmp_path, make())
    (tmp_path / "policy.safetensors.new").write_bytes(b"half")
    (tmp_path / "policy.json.new").write_bytes(b'{"format": "prune_')
    assert_equal(load_policy(tmp_path), make())


def rewrite(
    directory: Path, change: Any = None, tensors: dict[str, np.ndarray] | bytes | None = None
) -> None:
    """A hostile file: any content, with checksums that match."""
    path = directory / "policy.json"
    document = json.loads(path.read_text())
    if tensors is not None:
        data = tensors if isinstance(tensors, bytes) else safetensors.numpy.save(tensors)
        (directory / "policy.safetensors").write_bytes(data)
        document["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    if change is not None:
        change(document)
    document["sha256"] = files._checksum(document)
    path.write_text(json.dumps(document))


def setter(*keys: str | int, value: Any) -> Any:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def refused(path: Path, message: str) -> None:
    with pytest.raises(PolicyFileError, match=message) as caught:
        load_policy(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400 + len(str(path))
    assert str(path) in text


def hostile_fields() -> list[Any]:
    def case(value: Any, *keys: str | int, match: str | None = None) -> Any:
        return pytest.param(
            setter(*keys, value=value), match or f"{keys[-1]}", id=f"{keys[-1]}={str(value)[:20]}"
        )

    clips: list[Any] = ["10", True, [], -1.0, 0, 10**4000]
    actions: list[Any] = [None, [], "discrete", {}, {"type": "text"}, {"type": ["box"]}]
    return [
        case("other", "format"),
        case(None, "format"),
        case(3, "version", match="version is 3"),
        case("1", "version"),
        case(True, "version"),
        case("sin", "activation", match="unknown activation 'sin'"),
        case(["tanh"], "activation"),
        case({}, "activation"),
        case(None, "activation"),
        *(case(v, "observation_size") for v in (0, -1, 8.0, "8", True, None, 10**4000, [8])),
        case(9, "observation_size", match="shape"),
        *(
            case(v, "widths")
            for v in (17, "17", None, [17, -1], [17.0, 17], [True, 17], [[17], 17], [1] * 65)
        ),
        case([17], "widths", match="missing or unexpected"),
        case([17, 18], "widths", match="shape"),
        case([1 << 24, 1 << 24], "widths", match="more than the"),
        case(1, "normalised"),
        case(False, "normalised", match="missing or unexpected"),
        *(case(v, "obs_clip") for v in clips),
        case("no", "squash"),
        case(True, "squash", match="squash is for Box"),
        case([], "metadata"),
        case(True, "skip", match="missing or unexpected"),
        case("yes", "skip"),
        case(None, "skip"),
        *(case(v, "action") for v in actions),
        *(case(v, "action", "n") for v in (0, -4, 4.0, True, "4", 1 << 40)),
        case(5, "action", "n", match="shape"),
        case("0" * 64, "tensors_sha256", match="checksum"),
        case(None, "tensors_sha256", match="checksum"),
        case({"a": 1}, "tensors_sha256", match="checksum"),
    ]


@pytest.mark.parametrize(("change", "message"), hostile_fields())
def test_hostile_descriptions(tmp_path: Path, change: Any, message: str) -> None:
    save_policy(tmp_path, make())
    rewrite(tmp_path, change)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("action", "low", 0, value=3.0), "lower action bound"),
        (setter("action", "low", 0, value="x"), "lower bound must be a number"),
        (setter("action", "low", 0, value=10**4000), "too large"),
        (setter("action", "high", value=[1.0]), "4 lower and 1 upper bounds"),
        (setter("action", "high", value={}), "'high'"),
        (setter("action", "shape", value=[2, 0, 2]), "'shape'"),
        (setter("action", "shape", value=[1 << 24] * 64), "'shape' asks otherwise"),
        (setter("action", "shape", value=[4.0]), "'shape'"),
    ],
)
def test_hostile_action_bounds(tmp_path: Path, change: Any, message: str) -> None:
    save_policy(tmp_path, make(action=BOX))
    rewrite(tmp_path, change)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("head/bias", np.full(4, np.nan, np.float32), "NaN"),
        ("layer_0/kernel", np.full((8, 17), np.inf, np.float32), "infinity"),
        ("layer_0/kernel", np.zeros((17, 8), np.float32), "shape"),
        ("layer_0/kernel", np.zeros((8, 17), np.float64), "bytes|float32"),
        ("head/bias", np.zeros(4, np.int32), "float32"),
        ("head/bias", np.zeros(4, np.float16), "float32"),
        ("obs_std", np.zeros(8, np.float32), "positive"),
        ("obs_std", np.full(8, -1.0, np.float32), "positive"),
        ("extra", np.zeros(1, np.float32), "missing or unexpected"),
        ("head/bias", None, "missing or unexpected"),
    ],
)
def test_hostile_tensors(tmp_path: Path, name: str, tensor: np.ndarray | None, message: str) -> None:
    save_policy(tmp_path, make())
    tensors = dict(make().tensors())
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    rewrite(tmp_path, tensors=tensors)
    refused(tmp_path, message)


def raw_tensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def entry(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> bytes:
    return json.dumps({"head/bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        (raw_tensors(b"{}", length=1 << 20), "truncated"),
        (raw_tensors(b"{}", length=(1 << 64) - 1), "truncated"),
        (raw_tensors(b" " * (1 << 20) + b"{}"), "header"),
        (raw_tensors(b" " * (1 << 21)), "bytes, more than"),
        (raw_tensors(b"not json"), "not a readable safetensors"),
        (raw_tensors(b"[" * 100_000), "not a readable safetensors"),
        (raw_tensors(entry(offsets=(0, 1 << 40)), b"\0" * 16), "not a readable safetensors"),
        (raw_tensors(entry(offsets=(-1, 16)), b"\0" * 16), "not a readable safetensors"),
        (raw_tensors(entry(shape=(1 << 40, 1 << 40)), b"\0" * 16), "not a readable safetensors"),
        (raw_tensors(entry(dtype="PICKLE"), b"\0" * 16), "not a readable safetensors"),
        (raw_tensors(entry(dtype="BF16", offsets=(0, 8)), b"\0" * 8), "not a readable|float32|missing"),
        (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "truncated|header"),
    ],
)
def test_hostile_tensor_files(tmp_path: Path, data: bytes, message: str) -> None:
    save_policy(tmp_path, make())
    rewrite(tmp_path, tensors=data)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"null", "not an object"),
        (b"[1, 2]", "not an object"),
        (b'"policy"', "not an object"),
        (b"3", "not an object"),
        (b"{}", "format"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a":' * 200_000, "not valid JSON"),
        (b'{"format": NaN}', "not valid JSON"),
        (b'{"format": 1e999}', "not valid JSON"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"format": ' + b"[" * 500 + b"]" * 500 + b"}", "format|not valid JSON"),
        (b'{"format": "prune_rl.policy", "version": 1}', "checksum"),
        (b'{"format": "prune_rl.policy", "version": 99}', "version is 99"),
        (b" " * (1 << 20) + b"{}", "more than the 1048576 allowed"),
    ],
)
def test_hostile_json(tmp_path: Path, content: bytes, message: str) -> None:
    save_policy(tmp_path, make())
    (tmp_path / "policy.json").write_bytes(content)
    refused(tmp_path, message)


def test_missing_files_and_things_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "No such file")
    refused(tmp_path, "No such file")
    save_policy(tmp_path, make())
    (tmp_path / "policy.safetensors").unlink()
    refused(tmp_path, "No such file")
    (tmp_path / "policy.safetensors").mkdir()
    refused(tmp_path, "not a regular file")
    (tmp_path / "policy.json").unlink()
    os.mkfifo(tmp_path / "policy.json")
    refused(tmp_path, "not a regular file")
    with pytest.raises(PolicyFileError, match="null"):
        load_policy("a\0b.json")
    with pytest.raises(PolicyFileError):
        load_policy("a\0b")
    for name in ("x" * 300, "x" * 300 + ".json", "y" * 5000):
        with pytest.raises(PolicyFileError, match="File name too long"):
            load_policy(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", make())
    (tmp_path / "policy").chmod(0)
    try:
        refused(tmp_path, "Permission denied")
        refused(tmp_path / "policy", "Permission denied")
    finally:
        (tmp_path / "policy").chmod(0o700)


def test_a_description_cannot_ask_for_more_than_policies_are(tmp_path: Path) -> None:
    """A sparse file of 1 GiB that fits its description took 40 s and 3.6 GB."""
    save_policy(tmp_path, make())
    rewrite(tmp_path, setter("widths", value=[1 << 14, 1 << 14]))
    with (tmp_path / "policy.safetensors").open("r+b") as file:
        file.truncate(1 << 30)
    refused(tmp_path, f"more than the {1 << 26} allowed")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    save_policy(tmp_path, make())
    for name in ("policy.safetensors", "policy.json"):
        with (tmp_path / name).open("r+b") as file:
            file.truncate(1 << 40)  # sparse
        refused(tmp_path, f"{name}: it takes {1 << 40} bytes, more than")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    path = tmp_path_factory.mktemp("fuzz")
    save_policy(path, make((3, 4, 2), metadata={"env": "CartPole-v1", "seed": 7, "values": [0.5, 1e-05]}))
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


@st.composite
def damage(draw: st.DrawFn) -> Any:
    """(file name, function from good to damaged bytes): flipped bits, a cut, foreign bytes put in or in place."""
    name = draw(st.sampled_from(["policy.json", "policy.safetensors"]))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite"]))
    where = draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=4))
    bit = draw(st.integers(0, 7))
    junk = draw(st.binary(min_size=1, max_size=12))

    def apply(good: bytes) -> bytes:
        at = int(where[0] * len(good))
        if kind == "cut":
            return good[:at]
        if kind == "insert":
            return good[:at] + junk + good[at:]
        if kind == "overwrite":
            return good[:at] + junk + good[at + len(junk) :]
        bad = bytearray(good)
        for position in where:
            bad[int(position * len(good))] ^= 1 << bit
        return bytes(bad)

    return name, apply


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damage())
def test_damaged_files_never_load_as_another_policy(saved: Any, damage: Any) -> None:
    path, good = saved
    name, apply = damage
    bad = apply(good[name])
    for file, content in {**good, name: bad}.items():
        (path / file).write_bytes(content)
    try:
        loaded = load_policy(path)
    except PolicyFileError:
        assert bad != good[name]
    else:
        # White space between JSON tokens, and how a number is spelled, are not part of the content.
        assert bad == good[name] or (name == "policy.json" and json.loads(bad) == json.loads(good[name]))
        assert_equal(
            loaded, make((3, 4, 2), metadata={"env": "CartPole-v1", "seed": 7, "values": [0.5, 1e-05]})
        )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "observation_size",
    "widths",
    "activation",
    "normalised",
    "obs_clip",
    "action",
    "squash",
    "metadata",
]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from([*FIELDS, "type", "n", "shape", "low", "high"]), value=JSON_VALUES)
def test_any_json_in_any_field_loads_or_is_refused(saved: Any, field: str, value: Any) -> None:
    path, good = saved
    for file, content in good.items():
        (path / file).write_bytes(content)
    if field in ("shape", "low", "high"):
        rewrite(path, setter("action", value={"type": "box", "shape": [2], "low": [0, 0], "high": [1, 1]}))
    rewrite(path, setter(*((field,) if field in FIELDS else ("action", field)), value=value))
    with contextlib.suppress(PolicyFileError):
        policy = load_policy(path)
        assert np.isfinite(policy.outputs([1.0, 2.0, 3.0])).all()


def test_loading_executes_nothing_from_a_pickle(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    save_policy(tmp_path, make())
    for name in ("policy.json", "policy.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(tmp_path, "not valid JSON")
    assert not (tmp_path / "pwned").exists()


def test_acting_needs_numpy_and_safetensors_alone(tmp_path: Path) -> None:
    policy = make()
    save_policy(tmp_path, policy)
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "flax", "optax", "gymnasium", "scipy", "chex", "ml_dtypes"}:
            raise ImportError(f"{name} is refused in this test")
sys.meta_path.insert(0, Refuse())
try:
    import jax
except ImportError:
    pass
else:
    sys.exit("the refusal does not work")
from prune_rl.export.policy import load_policy
import prune_rl
assert prune_rl.load_policy is load_policy
policy = load_policy(sys.argv[1])
ours = {name for name in sys.modules if name.startswith("prune_rl.")}
print(int(policy([0.5] * 8)), sorted(ours))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    action, modules = done.stdout.split(maxsplit=1)
    assert int(action) == policy([0.5] * 8)
    assert "learners" not in modules
    assert "envs" not in modules
