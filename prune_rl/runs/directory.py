"""The folder of one training run: its lock, its configuration, and the versions it was made with."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock

from prune_rl.atomic_files import TEMPORARY_SUFFIX, write_bytes, write_json
from prune_rl.runs.versions import current_versions

LOCK_NAME = ".lock"
# Who holds the lock. Not in the lock's own file, which other processes cannot read on Windows.
OWNER_NAME = ".lock-owner"


class RunDirectoryError(ValueError):
    """The run directory cannot be used; the message is one sentence that says why and what to do."""


class RunDirectory:
    """An opened and locked run directory. Made by `RunDirectory.open`, freed by `close` or at the end of a
    `with`.

    Attributes:
      path: the folder.
      config: the configuration as stored, in JSON's types (tuples are lists).
      continued: whether the folder already belonged to this configuration.
      notes: sentences worth printing, such as a library that changed since the run began.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        continued: bool,
        notes: list[str],
        lock: filelock.BaseFileLock,
    ) -> None:
        self.path = path
        self.config = config
        self.continued = continued
        self.notes = notes
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        not_compared: Collection[str] = ("command",),
    ) -> RunDirectory:
        """Makes the folder for `config`, or continues the one that already belongs to it.

        A folder that does not exist yet is made, with config.json and versions.json, each complete from the
        moment it has its name. An existing config.json is left as it is.

        Args:
          path: the folder.
          config: JSON data.
          defaults: values, nested as in `config`, of the keys that an existing config.json lacks because they are
            newer than it.
          not_compared: keys at the top of `config` that are stored, but may differ in an existing config.json, since
            they do not change what the run computes.

        Raises:
          RunDirectoryError: the folder belongs to another configuration, holds something else, is in use by
            another process, cannot be made or written to, or `config` is not plain JSON data.
        """
        path = Path(path)
        wanted = _json_types(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except (FileExistsError, NotADirectoryError):
            raise RunDirectoryError(
                f"the run directory {path} cannot be made because a file has that name: "
                "choose another --run-dir"
            ) from None
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {path} cannot be written to ({error.strerror}): choose another --run-dir"
            ) from None
        try:
            continued = _check_config(path, wanted, _json_types(defaults or {}), not_compared)
            if not continued:
                write_json(path / "config.json", wanted)
            notes = _record_versions(path / "versions.json")
        except BaseException:
            _unlock(path, lock)
            raise
        return cls(path, wanted, continued, notes, lock)

    def close(self) -> None:
        """Lets other processes use the folder. Does nothing the second time."""
        _unlock(self.path, self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json_types(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"the configuration cannot be written as JSON ({error}): use numbers, text, lists and null"
        ) from None
    return result


def _lock(path: Path) -> filelock.BaseFileLock:
    """Takes the folder's lock, which the operating system frees with the process, however it ends."""
    lock = filelock.FileLock(path / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        owner = _owner(path / OWNER_NAME)
        raise RunDirectoryError(
            f"the run directory {path} is in use by another training process"
            f"{f' ({owner})' if owner else ''}: wait for it to end, or choose another --run-dir"
        ) from None
    write_bytes(path / OWNER_NAME, f"pid {os.getpid()}\n".encode())
    return lock


def _unlock(path: Path, lock: filelock.BaseFileLock) -> None:
    if lock.is_locked:
        (path / OWNER_NAME).unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:20].strip()
    except OSError:  # the owner has not written it yet
        return ""


def _check_config(
    path: Path, wanted: dict[str, Any], defaults: dict[str, Any], not_compared: Collection[str]
) -> bool:
    """Whether `path` already holds this configuration; an error if it holds another one or something else."""
    try:
        found = dict(json.loads((path / "config.json").read_text()))
    except FileNotFoundError:
        # A process killed before its first config.json leaves only the lock and temporary files.
        foreign = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.name not in (LOCK_NAME, OWNER_NAME) and not _is_leftover(entry.name)
        )
        if foreign:
            raise RunDirectoryError(
                f"{path} is not a run directory, it holds {foreign[0]!r} but no config.json: "
                "choose another --run-dir"
            ) from None
        return False
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(
            f"{path / 'config.json'} is damaged ({error}): choose another --run-dir, or delete {path}"
        ) from None
    differences = _differences(
        {key: value for key, value in _completed(found, defaults).items() if key not in not_compared},
        {key: value for key, value in wanted.items() if key not in not_compared},
    )
    if differences:
        shown = ", ".join(f"{key} = {old} there, {new} here" for key, old, new in differences[:3])
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise RunDirectoryError(
            f"the run directory {path} belongs to another configuration ({shown}{more}): "
            "choose another --run-dir, or delete it"
        )
    return True


def _is_leftover(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def _completed(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`found` with the values of `defaults` for the keys that it lacks, at every level that it has."""
    nested = {
        key: _completed(value, defaults[key])
        for key, value in found.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return {**defaults, **found, **nested}


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """Dotted keys whose values differ, with both values as JSON text, sorted by key."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in sorted(found.keys() | wanted.keys())
            for difference in _differences(
                found.get(key, _ABSENT), wanted.get(key, _ABSENT), f"{prefix}.{key}" if prefix else key
            )
        ]
    # 1 == True in Python, but they are two configurations; 1 and 1.0 compare as text, too.
    old, new = _as_text(found), _as_text(wanted)
    return [] if old == new else [(prefix, old, new)]


_ABSENT = object()


def _as_text(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


def _record_versions(path: Path) -> list[str]:
    """Writes versions.json at the start; later only adds what is new to its list "continued_with"."""
    now = _json_types(current_versions())
    try:
        recorded = json.loads(path.read_text())
        begun = {key: value for key, value in recorded.items() if key != "continued_with"}
        later = list(recorded.get("continued_with", []))
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        write_json(path, now)
        return []
    last = later[-1] if later else begun
    changed = _differences(last, now)
    if not changed:
        return []
    write_json(path, begun | {"continued_with": [*later, now]})
    return [
        "the run goes on with other versions than before, so it may not end bit-identical: "
        + ", ".join(f"{key} {old} -> {new}" for key, old, new in changed)
    ]
