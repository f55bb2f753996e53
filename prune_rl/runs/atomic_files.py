"""Writing small files so that a reader finds the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".partial"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at `path` by `data` in one step; its folder must exist.

    The bytes go to a temporary file in the same folder, are forced to disk, and take the name `path` last.
    Killed at any moment, the process leaves the former file whole; a leftover ends in ".partial".

    Raises:
      OSError: the folder is missing or cannot be written to, or the disk is full.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a result is as readable as any other file the user writes.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as strict JSON (sorted keys, two spaces of indentation) with `write_bytes`.

    Raises:
      ValueError: `value` holds NaN or an infinity, which JSON has no word for.
      TypeError: `value` holds an object JSON cannot express.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the file system allows it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
