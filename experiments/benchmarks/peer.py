"""Another project's training in a process and an environment of its own, which is idle between two calls."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Peer:
    """A worker script that writes its versions, and then one line of JSON per command that it reads.

    Attributes:
        versions: what the first line said, {name: version}; "device" among them.
    """

    def __init__(self, python: Path, worker: str, arguments: Sequence[str], install: str) -> None:
        """Start it and wait until it is warmed up; ``install`` says how to get a Python that it runs on."""
        self._worker, self._install = worker, install
        try:
            self._process = subprocess.Popen(
                [python, Path(__file__).with_name(worker), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise SystemExit(f"{python} cannot be run ({error}): {install}") from error
        self.versions: dict[str, str] = self._read()

    def ask(self, command: str) -> dict[str, float]:
        """The reply to a command."""
        assert self._process.stdin is not None
        # If the process is gone, reading says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        reply: dict[str, float] = self._read()
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self._worker} ended with exit code {self._process.wait()}; its error is above"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise SystemExit(f"{self._worker} lacks a package ({reply['error']}): {self._install}")
        return reply
