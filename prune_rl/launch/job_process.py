"""The process that an engine starts for a job: it starts the command, waits, and records how it ended.

    python -m prune_rl.launch.job_process FOLDER

It imports no JAX, and is the same for every engine: Slurm and Ray call ``run_job``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from prune_rl.exit_status import ENDED_WELL
from prune_rl.launch.job_folder import HEARTBEAT_INTERVAL, Exit, JobFolder

# Seconds that a training may take to end after SIGTERM: one compiled call, at most. Killing it costs no more than the
# work since its last checkpoint.
GRACE = 30.0


def run_job(folder: str, environment: Mapping[str, str | None] | None = None) -> int:
    """Run the command of a job, unless it is done; returns its exit status.

    If another process runs the job, this waits for it first. An exception here, such as ``KeyboardInterrupt`` by a
    signal, ends the command before it goes on.

    Args:
        folder: of the job.
        environment: variables that the command has instead of those of this process; None removes one.

    Raises:
        OSError, ValueError: the folder of the job is damaged, or cannot be written to.
    """
    job = JobFolder(Path(folder))
    with job.locked():
        arguments, directory, run = job.command()
        if job.is_done(run):
            return 0
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        job.started(os.getpid(), variables.get("CUDA_VISIBLE_DEVICES"))
        began = time.monotonic()
        with job.log.open("ab") as log:
            log.write(f"$ prune-rl train {shlex.join(arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "prune_rl", "train", *arguments],
                cwd=directory,
                env={name: value for name, value in variables.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for the engine, which ends its jobs in its own way.
                start_new_session=True,
            )
            try:
                status = _wait(process, job)
            except BaseException:
                status = end(process)
                # It may have ended well at that moment; otherwise it was ended, whatever it says of that.
                job.ended(Exit(status if status in ENDED_WELL else -signal.SIGTERM, time.monotonic() - began))
                raise
        job.ended(Exit(status, time.monotonic() - began))
        return status


def _wait(process: subprocess.Popen[bytes], job: JobFolder) -> int:
    while True:
        try:
            return process.wait(timeout=HEARTBEAT_INTERVAL)
        except subprocess.TimeoutExpired:
            job.beat()


def end(process: subprocess.Popen[bytes], grace: float = GRACE) -> int:
    """SIGTERM, and SIGKILL after ``grace`` seconds; returns the exit status."""
    process.terminate()
    try:
        return process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def main(arguments: list[str]) -> int:
    """Run the job whose folder is given; SIGTERM and Ctrl-C end its command, too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, interrupt)
    try:
        return run_job(arguments[0])
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
