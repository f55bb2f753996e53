"""Processes that measure: each has its own time limit and may fail without harm to the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import cattrs

from prune_rl.bench_device.options import Options
from prune_rl.bench_device.sections import Process
from prune_rl.bench_device.worker import LONGEST_ERROR, PREFIX

NO_TIME_LEFT = "not measured: no time left"


def run(
    process: Process, options: Options, seconds: float, say: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """One row per case of ``process``, see ``worker.row_of``; those it did not get to are rows that say why.

    Args:
        process: the cases, and flags of XLA that are added to those of this process.
        options: of the command.
        seconds: after which the process is killed.
        say: called with each row when it comes.
    """
    request = {
        "cases": [cattrs.unstructure(case) for case in process.cases],
        "options": cattrs.unstructure(options),
        "seconds": seconds,
    }
    rows: list[dict[str, Any]] = []
    status, errors = _start(json.dumps(request), _environment(process, options), seconds, rows, say)
    for case in process.cases[len(rows) :]:
        row: dict[str, Any] = {"case": case.name, "seeds": case.seeds, "status": "no time left"}
        if status not in (0, None):
            lines = errors.strip().splitlines()
            last = lines[-1] if lines else "it said nothing"
            row |= {
                "status": "failed",
                "error": f"the process ended with status {status}: {last[:LONGEST_ERROR]}",
            }
        rows.append(row)
        say(row)
    return rows


def _start(
    request: str,
    environment: dict[str, str],
    seconds: float,
    rows: list[dict[str, Any]],
    say: Callable[[dict[str, Any]], None],
) -> tuple[int | None, str]:
    """Run it to its end, adding to ``rows``; returns its status, None if it was killed in time, and its errors."""
    if seconds <= 0:
        return None, ""
    late = threading.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        # A session of its own, so that what it starts ends with it.
        started = subprocess.Popen(
            [sys.executable, "-m", "prune_rl.bench_device.worker", request],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)

        def too_late() -> None:
            late.set()
            kill()

        timer = threading.Timer(seconds, too_late)
        timer.start()
        try:
            assert started.stdout is not None
            with started.stdout as lines:
                for line in lines:
                    if line.startswith(PREFIX) and line.endswith("\n"):
                        rows.append(json.loads(line.removeprefix(PREFIX)))
                        say(rows[-1])
            status = started.wait()
        finally:
            timer.cancel()
            if started.poll() is None:
                kill()
                started.wait()
        errors.seek(0)
        return None if late.is_set() else status, errors.read()


def _environment(process: Process, options: Options) -> dict[str, str]:
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {process.xla_flags}".strip()
    if process.anew:
        # A program out of a cache would be the same one; compiled anew, it may be another.
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if options.matmul_precision is not None:
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = options.matmul_precision
    return environment
