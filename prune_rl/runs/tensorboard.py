"""TensorBoard events of a run, written without a thread: what cannot be written is left out, and the run goes on."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PREFIX = "events.out.tfevents."


class Events:
    """Scalars in an event file of ``folder``, which is made at the first write.

    A write takes one call of the operating system. If it fails, because a disk is full or the folder is gone, the
    events of that step are missing, what was written before stays readable, and the next write tries again.

    TensorBoard reads the files of a folder in the order of their names, which have the time in them, and expects time
    to go forward. So a file's name comes after those before, and its events are in order, whatever the clock says.

    Attributes:
        notes: a sentence about the first failure, if there was one.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """``purge_step``: events of earlier files from this step on are void."""
        self.notes: list[str] = []
        self._folder = folder
        self._purge_step = purge_step
        self._file: int | None = None
        self._size = 0
        self._time = 0.0

    def write(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Adds one value per tag; never raises."""
        try:
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.proto.summary_pb2 import Summary

            if self._file is None:
                self._open()
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
            self._append(Event(step=step, wall_time=self._now(), summary=Summary(value=values)))
        except Exception as error:  # of the file system, the package, or protobuf: no run ends for its curves
            if not self.notes:
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self.notes.append(
                    f"TensorBoard events cannot be written to {self._folder} ({reason}); the run goes on, and "
                    "metrics.jsonl has all of them"
                )

    def close(self) -> None:
        """Closes the file; a later write opens another one."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_seconds(file.name) for file in self._folder.glob(f"{_PREFIX}*")), default=0)
        self._time = max(self._time, float(number))
        # One file per second, so that no two have one name.
        path = self._folder / f"{_PREFIX}{max(int(time.time()), number):010d}.prune_rl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._size = 0
        self._append(Event(wall_time=self._now(), file_version="brain.Event:2"))
        if self._purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._append(Event(step=self._purge_step, wall_time=self._now(), session_log=start))
            self._purge_step = None

    def _append(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        assert self._file is not None
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        record = length + struct.pack("<I", masked_crc32c(length)) + data
        record += struct.pack("<I", masked_crc32c(data))
        try:
            while record:
                record = record[os.write(self._file, record) :]
            self._size = os.lseek(self._file, 0, os.SEEK_CUR)
        except OSError:
            # Half a record would hide all that follow it.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise

    def _now(self) -> float:
        self._time = max(self._time, time.time())
        return self._time


def _seconds(name: str) -> int:
    digits = name.removeprefix(_PREFIX)[:10]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
