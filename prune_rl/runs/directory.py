"""The folder of one training run: its lock, its configuration, and the versions it was made with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock

from prune_rl.atomic_files import remove_leftovers, write_bytes, write_json
from prune_rl.runs.config_file import COPY_NAME
from prune_rl.runs.json_text import entries, items, read_object
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
        wait: Callable[[str], None] | None = None,
    ) -> RunDirectory:
        """Makes the folder for `config`, or continues the one that already belongs to it.

        A folder that does not exist yet is made, with config.json and versions.json, each complete from the
        moment it has its name. An existing config.json is left as it is, unless it is damaged or gone: then its copy
        takes its place, and a note says so. Temporary files of killed processes are removed.

        Args:
          path: the folder.
          config: JSON data.
          defaults: values, nested as in `config`, of the keys that an existing config.json lacks because they are
            newer than it.
          not_compared: keys at the top of `config` that are stored, but may differ in an existing config.json, since
            they do not change what the run computes.
          wait: where another process uses the folder, called once with a sentence that says so; then this waits until
            the folder is free. Without it that is an error.

        Raises:
          RunDirectoryError: the folder belongs to another configuration, holds something else, is in use by
            another process, cannot be made or written to, its lock is a link, or `config` is not plain JSON data.
        """
        path = Path(path)
        wanted = _json_types(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path, wait)
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
            remove_leftovers(path)
            found, notes = _stored_config(path)
            if found is not None:
                _compare(path, found, wanted, _json_types(defaults or {}), not_compared)
            else:
                write_json(path / "config.json", wanted)
            if not (path / COPY_NAME).exists():
                write_json(path / COPY_NAME, wanted if found is None else found)
            notes += _record_versions(path / "versions.json")
        except BaseException:
            _unlock(path, lock)
            raise
        return cls(path, wanted, found is not None, notes, lock)

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


def _lock(path: Path, wait: Callable[[str], None] | None) -> filelock.BaseFileLock:
    """Takes the folder's lock, which the operating system frees with the process, however it ends."""
    if (path / LOCK_NAME).is_symlink():  # in a stranger's folder it may name any file of the user
        raise RunDirectoryError(
            f"{path / LOCK_NAME} is a link, and a lock is not taken through one: delete it if you trust the folder"
        )
    lock = filelock.FileLock(path / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        owner = _owner(path / OWNER_NAME)
        in_use = (
            f"the run directory {path} is in use by another training process{f' ({owner})' if owner else ''}"
        )
        if wait is None:
            raise RunDirectoryError(f"{in_use}: wait for it to end, or choose another --run-dir") from None
        wait(in_use)
        lock.acquire(poll_interval=0.5)
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


def _stored_config(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The configuration that `path` belongs to, from its copy if need be, with a note then; None for a new folder."""
    config, copy = path / "config.json", path / COPY_NAME
    problem = "was gone"
    try:
        return read_object(config), []
    except FileNotFoundError:
        if not copy.exists():
            _refuse_foreign(path)
            return None, []
    except ValueError as error:
        problem = f"was damaged ({error})"
    try:
        found = read_object(copy)
    except (FileNotFoundError, ValueError) as error:
        reason = "it has no copy" if isinstance(error, FileNotFoundError) else f"its copy too ({error})"
        raise RunDirectoryError(
            f"{config} {problem.replace('was', 'is', 1)}, {reason}: checkpoints, log and policies beside it are "
            "untouched; to train on, restore it from a backup (summary.md has the command); load_policy reads policy/ "
            "without it; for a new run, choose another --run-dir"
        ) from None
    write_json(config, found)
    return found, [f"config.json {problem} and was restored from its copy"]


def _refuse_foreign(path: Path) -> None:
    """An error if a folder without config.json holds more than a process killed before it wrote that leaves."""
    foreign = sorted(
        entry.name for entry in path.iterdir() if entry.name not in (LOCK_NAME, OWNER_NAME, COPY_NAME)
    )
    if foreign:
        raise RunDirectoryError(
            f"{path} is not a run directory, it holds {foreign[0]!r} but no config.json: choose another --run-dir"
        )


def _compare(
    path: Path,
    found: dict[str, Any],
    wanted: dict[str, Any],
    defaults: dict[str, Any],
    not_compared: Collection[str],
) -> None:
    """An error if `path` belongs to another configuration."""
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
        recorded = read_object(path)
        begun = {key: value for key, value in recorded.items() if key != "continued_with"}
        later = [dict(entries(entry)) for entry in items(recorded.get("continued_with", []))]
    except FileNotFoundError:
        write_json(path, now)
        return []
    except ValueError as error:
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        write_json(path, now)
        return [
            f"{path.name} was damaged ({error}) and was written anew: what the run began with is not known, what there "
            f"was lies in {aside.name}"
        ]
    last = later[-1] if later else begun
    changed = _differences(last, now)
    if not changed:
        return []
    write_json(path, begun | {"continued_with": [*later, now]})
    return [
        "the run goes on with other versions than before, so it may not end bit-identical: "
        + ", ".join(f"{key} {old} -> {new}" for key, old, new in changed)
    ]
