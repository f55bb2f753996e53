from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import replay_buffer as replay
from prune_rl.learners import sac
from prune_rl.runs.checkpoints import CheckpointMismatchError, Checkpoints
from prune_rl.runs.orbax_errors import as_os_error
from tests.learners.random_rollouts import CONTINUOUS, SMALL_SAC, random_rollout
from tests.runs.train_states import State, assert_identical, make_state, raw


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


def test_a_replay_buffer_is_a_part_of_the_state(tmp_path: Path) -> None:
    def add(seed: int, state: Any) -> Any:
        transitions = random_rollout(seed, SMALL_SAC, CONTINUOUS)
        return dataclasses.replace(state, replay=replay.add(state.replay, transitions, transitions.action))

    fresh = sac.init(jax.random.key(0), SMALL_SAC, CONTINUOUS)
    state = add(2, add(1, fresh))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state)
    found = checkpoints.restore(fresh)
    checkpoints.close()
    assert found is not None
    assert_identical(found.tree, state)
    # It goes on where it was: the third rollout lies behind the second, and draws are the same.
    third, expected = add(3, found.tree), add(3, state)
    assert_identical(third, expected)
    key = jax.random.key(4)
    assert_identical(replay.sample(third.replay, key, 9), replay.sample(expected.replay, key, 9))
    rows = 2 * SMALL_SAC.steps_per_update
    assert np.all(np.any(raw(third.replay.experience.obs)[0, : rows + 24], axis=-1))
    assert not np.any(raw(third.replay.experience.obs)[0, rows + 24 :])


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


def test_another_template_is_an_error_and_no_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1, width=16))
    message = (
        r"checkpoint 1 in .* belongs to another configuration: \.masks.* is bool\[16\] there, bool\[8\] here; "
        "use the configuration it was made with, or another run directory"
    )
    with pytest.raises(CheckpointMismatchError, match=message):
        checkpoints.restore(make_state(1, width=8))
    assert checkpoints.steps() == [1]
    assert checkpoints.notes == []


FILL = """
import resource, sys
from prune_rl.runs.checkpoints import Checkpoints
from tests.runs.train_states import make_state
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, make_state(1))
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
try:
    checkpoints.save(2, make_state(2))
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
found = Checkpoints(sys.argv[1]).restore(make_state(0))
print(found.step)
"""


def test_a_file_system_that_fails_is_one_sentence(tmp_path: Path) -> None:
    """Files may not grow beyond 64 bytes, which fails like a full disk does; the checkpoint before stays usable."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == (
        f"checkpoint 2 cannot be written to {tmp_path} (File too large); earlier ones are untouched\n1\n"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_recognised_in_what_tensorstore_says(tmp_path: Path, code: int) -> None:
    said = (
        f'RESOURCE_EXHAUSTED: Failed writing: "d/e1": Failed to write 9 bytes to file 9: {os.strerror(code)}'
    )
    error = as_os_error(ValueError(said), 3, tmp_path)
    assert (error.errno, error.filename) == (code, str(tmp_path))
