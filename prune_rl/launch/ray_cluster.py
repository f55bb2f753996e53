"""Jobs as tasks of a Ray cluster, a running one or one that is started on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prune_rl.launch.capacity import at_a_time, gpus, places
from prune_rl.launch.grid import Grid, Job
from prune_rl.launch.job_process import GRACE, run_job
from prune_rl.launch.spec import EngineOptions

# What Ray sets for its workers and that changes how a training computes: it gets the launcher's own value.
_OURS = ("OMP_NUM_THREADS",)
# The path of a socket has at most 107 bytes, and Ray adds some 70 to its temporary folder.
_LONGEST_TEMPORARY = 20


class RayEngine:
    """See ``Engine``. The nodes of a cluster have to share the grid's folder, and to have the package installed."""

    in_background = False

    def __init__(self, options: EngineOptions, grid: Grid, say: Callable[[str], None]) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                f"engine ray needs the package ray, which {sys.executable} does not have: pip install 'prune_rl[ray]'"
            ) from None
        self._ray: Any = ray
        self._grid = grid
        self._tasks: dict[str, Any] = {}
        self._temporary: str | None = None
        address = options.ray.address
        with _own_signal_handlers():
            if address is None:
                number = len(places(options))
                self._temporary = tempfile.mkdtemp(prefix="ray-", dir=_short_folder())
                ray.init(
                    num_cpus=number * options.cpus_per_job,
                    num_gpus=len(gpus()),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=self._temporary,
                )
                self._capacity: int | None = number
                say(f"{at_a_time(number)} in a Ray cluster on this machine")
            else:
                try:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                except (ConnectionError, RuntimeError, ValueError) as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise ValueError(
                        f"there is no Ray cluster at {address!r} ({reason}): start one (`ray start --head`), or leave "
                        "engine.ray.address out to use this machine"
                    ) from None
                self._capacity = options.max_jobs
                say(f"jobs in the Ray cluster at {address}")
        gpus_per_job = options.gpus_per_job
        if gpus_per_job is None:
            gpus_per_job = min(1, int(self._ray.cluster_resources().get("GPU", 0)))
        # A task that dies is no longer known to be alone; the next launch goes on.
        self._run = self._ray.remote(num_cpus=options.cpus_per_job, num_gpus=gpus_per_job, max_retries=0)(
            run_job
        )

    @property
    def capacity(self) -> int | None:
        return self._capacity

    def submit(self, jobs: Sequence[Job]) -> None:
        environment = {name: os.environ.get(name) for name in _OURS}
        for job in jobs:
            folder = str(self._grid.folder(job).path.resolve())
            self._tasks[job.name] = self._run.remote(folder, environment)

    def active(self) -> set[str]:
        if not self._tasks:
            return set()
        _, pending = self._ray.wait(list(self._tasks.values()), num_returns=len(self._tasks), timeout=0)
        self._tasks = {name: task for name, task in self._tasks.items() if task in set(pending)}
        return set(self._tasks)

    def stop(self) -> None:
        for task in self._tasks.values():
            self._ray.cancel(task)  # KeyboardInterrupt in `run_job`, which ends its command
        deadline = time.monotonic() + GRACE + 10
        while time.monotonic() < deadline and self._running():
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.05)

    def _running(self) -> bool:
        return any(self._grid.folder(job).is_running() for job in self._grid.jobs if job.name in self._tasks)

    def close(self) -> None:
        self._ray.shutdown()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _short_folder() -> str | None:
    """A folder for sockets; None for that of the system."""
    return "/tmp" if len(tempfile.gettempdir()) > _LONGEST_TEMPORARY and os.path.isdir("/tmp") else None


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray sets a handler for SIGTERM, in whose place ours comes back; it reports nothing about its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray hides the GPUs from tasks that ask for none, or warns that it will not in future.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # JAX warns of a fork; the processes that Ray forks run another program at once.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
