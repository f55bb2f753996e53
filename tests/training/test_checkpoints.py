from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prune_rl.training.checkpoints import CheckpointMismatchError, Checkpoints


class State(flax.struct.PyTreeNode):  # type: ignore[no-untyped-call]
    params: Any
    opt_state: Any
    masks: Any
    key: jax.Array
    step: jax.Array
    empty: jax.Array
    host: Any
    extra: Any = None


def make_state(seed: int, width: int = 16) -> State:
    """A train state with every kind of leaf; values that a careless round trip would change (-0.0, NaN,
    1e-45).
    """
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (4, width)).at[0, :3].set(jnp.array([-0.0, jnp.nan, 1e-45]))
    params = {"actor": {"layer_0": {"kernel": kernel, "bias": jnp.zeros(width)}}}
    return State(
        params=params,
        opt_state=optax.adam(1e-3).init(params),
        masks={"actor/layer_0": jnp.arange(width) % 3 > 0},
        key=jax.random.split(key, 2),
        step=jnp.int32(seed),
        empty=jnp.zeros((0,), jnp.float32),
        host=np.arange(5, dtype=np.int64) + seed,
    )


def raw(leaf: Any) -> np.ndarray[Any, Any]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_identical(left: Any, right: Any) -> None:
    structures: list[Any] = [jax.tree.structure(left), jax.tree.structure(right)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert raw(one).shape == raw(other).shape
        assert raw(one).tobytes() == raw(other).tobytes()


def step_folder(path: Path, step: int) -> Path:
    (folder,) = path.glob(f"step_*{step}")
    return folder


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    state = make_state(3)
    saving = Checkpoints(tmp_path / "checkpoints")
    saving.save(7, state, {"widths": [16], "nothing": None})
    saving.close()
    found = Checkpoints(tmp_path / "checkpoints").restore(make_state(0))
    assert found is not None
    assert (found.step, found.metadata) == (7, {"widths": [16], "nothing": None})
    assert_identical(found.tree, state)
    # The restored key draws what the saved one would have drawn.
    assert jnp.array_equal(jax.random.normal(found.tree.key[1]), jax.random.normal(state.key[1]))


def test_shapes_alone_serve_as_template(tmp_path: Path) -> None:
    state = make_state(3).replace(host=jnp.zeros(1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    found = checkpoints.restore(jax.eval_shape(lambda: state))
    assert found is not None
    assert_identical(found.tree, state)


def test_restored_state_compiles_nothing_again(tmp_path: Path) -> None:
    traces = 0

    @jax.jit
    def update(state: State) -> State:
        nonlocal traces
        traces += 1
        return state.replace(step=state.step + 1)

    state = make_state(1).replace(host=jnp.zeros(1))
    update(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    found = checkpoints.restore(state)
    assert found is not None
    assert update(found.tree).step == 2
    assert traces == 1


def test_placement_of_the_template_is_kept(tmp_path: Path) -> None:
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("one device only")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("seed",))
    axis: Any = jax.sharding.PartitionSpec
    sharding = jax.sharding.NamedSharding(mesh, axis("seed"))
    tree = {
        "x": jax.device_put(jnp.arange(4.0), sharding),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 2), sharding),
        "free": jnp.ones(3),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree)
    found = checkpoints.restore(tree)
    assert found is not None
    assert_identical(found.tree, tree)
    assert found.tree["x"].sharding == sharding
    assert found.tree["keys"].sharding.is_equivalent_to(sharding, 1)
    assert not found.tree["free"].committed


def test_the_newest_are_kept_and_steps_only_grow(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step))
    assert checkpoints.steps() == [2, 3]
    with pytest.raises(ValueError, match="cannot save step 3: the step must be larger than"):
        checkpoints.save(3, make_state(3))
    found = checkpoints.restore(make_state(0))
    assert found is not None
    assert found.step == 3


def test_nothing_to_restore(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.restore(make_state(0)) is None
    assert checkpoints.notes == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpoints(tmp_path, keep=0)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match=r"\['a'\] is a str"):
        checkpoints.save(1, {"a": "text"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, {"a": jnp.ones(1)}, {"b": object()})
    assert checkpoints.steps() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": jnp.zeros((4, 8))}, r"\.params is float32\[4, 16\] there, float32\[4, 8\] here"),
        ({"masks": {}}, r"has a leaf \.masks\['actor/layer_0'\] that is not wanted"),
        ({"masks": {"actor/layer_1": None}}, r"has a leaf \.masks\['actor/layer_0'\] that is not wanted"),
        ({"extra": jnp.zeros(1)}, r"has no leaf \.extra"),
        ({"step": jnp.float32(0)}, r"\.step is int32\[\] there, float32\[\] here"),
        ({"key": jnp.zeros(2)}, r"\.key is key<fry>\[2\] there, float32\[2\] here"),
    ],
)
def test_another_template_is_an_error_and_no_damage(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    state = make_state(1).replace(params=jnp.zeros((4, 16)), extra=None)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    with pytest.raises(CheckpointMismatchError, match=message):
        checkpoints.restore(state.replace(**change))
    assert checkpoints.steps() == [1]


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        file.write_bytes(b"{\x00 no json \xff")
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["flipped", "truncated", "garbage", "missing"])
def test_damage_in_any_file_is_harmless_or_falls_back(tmp_path: Path, how: str) -> None:
    old, new = make_state(1), make_state(2)
    original = tmp_path / "original"
    writing = Checkpoints(original)
    writing.save(1, old)
    writing.save(2, new, {"note": "newest"})
    writing.close()
    files = [
        file.relative_to(original) for file in sorted(step_folder(original, 2).rglob("*")) if file.is_file()
    ]
    fell_back = 0
    for number, file in enumerate(files):
        path = tmp_path / str(number)
        shutil.copytree(original, path)
        damage(path / file, how)
        checkpoints = Checkpoints(path)
        found = checkpoints.restore(make_state(0))
        assert found is not None, file
        if found.step == 2:
            assert_identical(found.tree, new)
            assert checkpoints.notes == []
        else:
            fell_back += 1
            assert_identical(found.tree, old)
            (note,) = checkpoints.notes
            assert note.startswith("checkpoint 2 is damaged (")
            assert checkpoints.steps() == [1]
            # The same step can be saved again, and is the newest again.
            checkpoints.save(2, new)
            again = checkpoints.restore(make_state(0))
            assert again is not None
            assert again.step == 2
        checkpoints.close()
    # The header and the arrays, at least, cannot be lost without notice.
    assert fell_back >= 2


def test_a_wrong_value_that_orbax_accepts_is_noticed(tmp_path: Path) -> None:
    """Arrays swapped in from another whole checkpoint of the same shapes: only the checksum can tell."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.save(2, make_state(2))
    (step_folder(tmp_path, 2) / "sha256.json").unlink()
    leaves = step_folder(tmp_path, 2) / "leaves"
    shutil.rmtree(leaves)
    shutil.copytree(step_folder(tmp_path, 1) / "leaves", leaves)
    found = checkpoints.restore(make_state(0))
    assert found is not None
    assert found.step == 1
    assert "do not match their checksum" in checkpoints.notes[0]


def test_a_renamed_checkpoint_is_noticed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    os.rename(step_folder(tmp_path, 1), tmp_path / "step_000000000009")
    moved = Checkpoints(tmp_path)
    assert moved.restore(make_state(0)) is None
    assert "checkpoint 9 is damaged" in moved.notes[0]


def test_all_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
        damage(step_folder(tmp_path / "checkpoints", step) / "header" / "metadata", "garbage")
    assert checkpoints.restore(make_state(0)) is None
    assert len(checkpoints.notes) == 3
    assert checkpoints.notes[-1] == "none of the 2 checkpoints in checkpoints/ is usable"


def test_a_moved_folder_restores(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "before")
    checkpoints.save(4, make_state(4))
    checkpoints.close()
    os.rename(tmp_path / "before", tmp_path / "after")
    found = Checkpoints(tmp_path / "after").restore(make_state(0))
    assert found is not None
    assert_identical(found.tree, make_state(4))


SAVE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_checkpoints import make_state
from prune_rl.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
found = checkpoints.restore(make_state(0))
assert not checkpoints.notes, checkpoints.notes
step = found.step if found else 0
while True:
    step += 1
    checkpoints.save(step, make_state(step), {"step": step})
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    """SIGKILL at scattered moments of a process that does nothing but save: the last reported step is
    there.
    """
    path = tmp_path / "checkpoints"
    last = 0
    for delay in (0.0, 0.013, 0.031):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline(), "the saving process ended early"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        reported = last + 3 + len(rest)
        checkpoints = Checkpoints(path)
        found = checkpoints.restore(make_state(0))
        checkpoints.close()
        assert found is not None
        assert found.step in (reported, reported + 1)
        assert found.metadata == {"step": found.step}
        assert_identical(found.tree, make_state(found.step))
        last = found.step
    # Unfinished saves do not pile up.
    assert len(list(path.iterdir())) <= 3


def test_logging_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    damage(step_folder(tmp_path, 1) / "header" / "metadata", "missing")
    checkpoints.restore(make_state(0))
    checkpoints.close()
    assert capfd.readouterr() == ("", "")
