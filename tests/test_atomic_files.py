"""Several files replaced together; single files are tested in runs/test_directory.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prune_rl.atomic_files import TEMPORARY_SUFFIX, pending, write_bytes, write_together


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_files_cut_short_are_complete_under_one_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_together({first: b"old 1", second: b"old 2"})
    done: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(target)
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if renames < 2:
            with pytest.raises(Killed):
                write_together({first: b"new 1", second: b"new 2"})
        else:
            write_together({first: b"new 1", second: b"new 2"})
    for number, path in enumerate((first, second)):
        renamed = number < renames
        assert path.read_bytes() == f"{'new' if renamed else 'old'} {number + 1}".encode()
        assert renamed or pending(path).read_bytes() == f"new {number + 1}".encode()
    # The next write takes the leftovers' place.
    write_together({first: b"newer 1", second: b"newer 2"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first", "second"]
    assert second.read_bytes() == b"newer 2"


def test_a_disk_that_fails_leaves_every_file_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["value"]
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="No space left"):
        write_together({path: b"new"})
    assert path.read_bytes() == b"old"


def test_a_killed_process_leaves_a_file_that_its_name_tells_apart(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from prune_rl import atomic_files\n"
        "atomic_files.os.replace = lambda *names: os._exit(9)\n"
        "atomic_files.write_bytes(sys.argv[1], b'new')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "value")], env=environment, check=False)
    assert done.returncode == 9
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".value.")
    assert leftover.name.endswith(TEMPORARY_SUFFIX)
    assert leftover.read_bytes() == b"new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        write_bytes(tmp_path / "one", b"")
        write_together({tmp_path / "two": b""})
    finally:
        os.umask(former)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    for write in (write_bytes, lambda path, data: write_together({path: data})):
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "nowhere" / "value", b"")
