"""Atomic replacement of files: a reader finds the old content or the new content, never part of it.

Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# Ending of the temporary files that `write_bytes` leaves behind if the process is killed; their names begin with a dot.
TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at `path` by `data` atomically. The parent directory must exist.

    The data is written to a temporary file in the same directory, flushed to disk with fsync, and renamed to `path`.
    If the process is killed, the previous file stays intact. Permissions follow the umask. Safe for concurrent
    writers: the last rename wins.

    Raises:
      OSError: the directory is missing or not writable, or the disk is full. The previous file is unchanged.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which replaces the one at `path` when the block ends without an error; as `write_bytes`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in `folder` and below; links are not followed.

    Only while no other process writes there.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            if is_leftover(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(parent, name))


def is_leftover(name: str) -> bool:
    """Whether a file's name is one that `write_bytes` gives a temporary file."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{12}}{re.escape(TEMPORARY_SUFFIX)}", name, re.DOTALL) is not None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` with `write_bytes` as strict JSON: UTF-8, sorted keys, indented by two spaces.

    Raises:
      ValueError: `value` contains NaN or an infinity, which JSON cannot represent.
      TypeError: `value` contains an object that JSON cannot represent.
      OSError: as for `write_bytes`.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Replaces several files of one directory that are only valid together, such as tensors and their description.

    All contents are written and flushed under their pending names (see `pending`) before the first rename. The renames
    follow in the order of `contents`. A process killed between two renames leaves the remaining files complete under
    their pending names, where a reader can find them. Not safe for concurrent writers.

    Raises:
      OSError: the directory is missing or not writable, or the disk is full.
    """
    for path, data in contents.items():
        _write_synced(pending(path), data)
    for path in contents:
        os.replace(pending(path), path)
    for directory in {path.parent for path in contents}:
        _sync_directory(directory)


def pending(path: Path) -> Path:
    """The name under which `write_together` keeps the content of `path` until it is renamed."""
    return path.with_name(path.name + ".new")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Flushes the directory entry to disk, where the platform and the file system allow it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
