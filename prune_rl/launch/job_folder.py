"""What the process of one job leaves, so that any other process, on this machine or not, knows how it is.

job.json                the command, where it is given, and the run directory
log.txt                 what it printed, all attempts one after the other
process.json            the process that runs it, or ran it last: host, pid, devices
heartbeat               touched while it runs
exit.json               how the last attempt ended: exit status, seconds
submission.json         which job of a cluster it is
.lock                   held while it runs

Each file is optional: what is missing says that it did not happen yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from prune_rl.atomic_files import write_json
from prune_rl.exit_status import ENDED_WELL
from prune_rl.runs.json_text import read_object

HEARTBEAT_INTERVAL = 20.0  # s
# A process on another host whose last heartbeat is older is gone. Hosts' clocks differ a little.
HEARTBEAT_MISSED = 120.0
# Bytes at the end of a log in which its last line is looked for.
_TAIL = 8192


@dataclasses.dataclass(frozen=True)
class Exit:
    """How an attempt ended: the exit status (negative: the signal that killed it), and how long it took in seconds."""

    status: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether it was told to end or killed, so that it goes on when it is started again."""
        return self.status < 0 or self.status >= 128


@dataclasses.dataclass(frozen=True)
class JobFolder:
    """The folder of one job."""

    path: Path

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.path / "log.txt"

    def write_command(self, arguments: Sequence[str], directory: Path, run: Path) -> None:
        """Make the folder and write job.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"arguments": list(arguments), "directory": str(directory), "run": str(run)}
        if _read(self.path / "job.json") != content:
            write_json(self.path / "job.json", content)

    def command(self) -> tuple[list[str], Path, Path]:
        """Arguments, working directory and run directory; raises ``ValueError`` or ``OSError`` without them."""
        content = read_object(self.path / "job.json")
        directory = Path(content["directory"])
        return content["arguments"], directory, directory / content["run"]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the job's lock; waits while another process runs the job."""
        lock = filelock.FileLock(self.path / ".lock")
        lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def started(self, pid: int, devices: str | None) -> None:
        """Record that the process ``pid`` of this host runs the job."""
        (self.path / "exit.json").unlink(missing_ok=True)
        self.beat()
        write_json(self.path / "process.json", {"host": socket.gethostname(), "pid": pid, "devices": devices})

    def beat(self) -> None:
        """Record that it still runs."""
        with contextlib.suppress(OSError):  # a full disk ends the run itself, with its own sentence
            (self.path / "heartbeat").touch()

    def interrupt(self) -> bool:
        """SIGINT to the process of this host that runs the job; returns whether there is one."""
        process = _read(self.path / "process.json") or {}
        if process.get("host") != socket.gethostname() or not self.is_running():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process["pid"]), signal.SIGINT)
        return True

    def ended(self, end: Exit) -> None:
        """Record how it ended."""
        write_json(self.path / "exit.json", dataclasses.asdict(end))

    def submitted(self, cluster: str, job_id: str, folder: Path) -> None:
        """Record that a cluster has the job in its queue."""
        (self.path / "exit.json").unlink(missing_ok=True)
        content = {"cluster": cluster, "job_id": job_id, "folder": str(folder)}
        write_json(self.path / "submission.json", content)

    def submission(self) -> dict[str, str] | None:
        """What ``submitted`` recorded last."""
        return _read(self.path / "submission.json")

    def devices(self) -> str | None:
        """The devices of the process that runs it, or ran it last."""
        return (_read(self.path / "process.json") or {}).get("devices")

    def exit(self) -> Exit | None:
        """How the last attempt ended; None if it did not, or its process was killed before it could say so."""
        found = _read(self.path / "exit.json")
        try:
            return None if found is None else Exit(int(found["status"]), float(found["seconds"]))
        except (KeyError, TypeError, ValueError):
            return None

    def is_running(self) -> bool:
        """Whether a process runs the job: it holds the lock, or is on another host and has been heard of lately."""
        if not (self.path / ".lock").exists():
            return False
        lock = filelock.FileLock(self.path / ".lock")
        try:
            # Not at once: another process may hold it for the moment in which it asks the same.
            lock.acquire(timeout=0.01, poll_interval=0.01)
        except filelock.Timeout:
            return True
        lock.release()
        process = _read(self.path / "process.json")
        # The file system of a cluster may not share locks between hosts.
        return (
            process is not None
            and process.get("host") != socket.gethostname()
            and not (self.path / "exit.json").exists()
            and self._seconds_since_heartbeat() < HEARTBEAT_MISSED
        )

    def _seconds_since_heartbeat(self) -> float:
        try:
            return time.time() - os.stat(self.path / "heartbeat").st_mtime
        except OSError:
            return float("inf")

    def is_done(self, run: Path) -> bool:
        """Whether the command has ended well, with some seeds missing at most, and its run is still there."""
        end = self.exit()
        return end is not None and end.status in ENDED_WELL and (run / "summary.md").exists()

    def last_line(self) -> str:
        """The last line that the command printed; "" if there is none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path)
    except (FileNotFoundError, ValueError):
        return None
