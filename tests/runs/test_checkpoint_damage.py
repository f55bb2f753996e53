"""What kills, flipped bits and missing files do to checkpoints: nothing is lost without notice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prune_rl.runs.checkpoints import Checkpoints
from tests.runs.train_states import assert_identical, make_state, step_folder


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
from tests.runs.train_states import make_state
from prune_rl.runs.checkpoints import Checkpoints
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
    """SIGKILL at scattered moments of a process that does nothing but save: the last reported step is there."""
    path = tmp_path / "checkpoints"
    last = 0
    for delay in (0.0, 0.013, 0.031):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(path)],
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
