"""Jobs as processes of this machine: one per GPU, or as many as fit on its cores."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from prune_rl.launch.capacity import at_a_time, places
from prune_rl.launch.grid import Grid, Job
from prune_rl.launch.job_process import GRACE
from prune_rl.launch.spec import EngineOptions


class LocalEngine:
    """See ``Engine``. Jobs end with the launcher; if it is killed, they go on, and the next one waits for them."""

    in_background = False

    def __init__(self, options: EngineOptions, grid: Grid, say: Callable[[str], None]) -> None:
        self._grid = grid
        self._places = places(options)
        self._processes: dict[str, tuple[subprocess.Popen[bytes], str | None]] = {}
        on = [place for place in self._places if place]
        many = f"{at_a_time(len(self._places))} on this machine"
        say(f"{many}, on GPU {' and '.join(on)}" if on else many)

    @property
    def capacity(self) -> int | None:
        return len(self._places)

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            place = self._free_place()
            environment = os.environ | ({} if place is None else {"CUDA_VISIBLE_DEVICES": place})
            process = subprocess.Popen(
                [sys.executable, "-m", "prune_rl.launch.job_process", str(self._grid.folder(job).path)],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._processes[job.name] = process, place

    def _free_place(self) -> str | None:
        """A place that no job has: none of this engine's, nor one that an earlier launcher started."""
        taken = [place for process, place in self._processes.values() if process.poll() is None]
        for job in self._grid.jobs:
            folder = self._grid.folder(job)
            if job.name not in self._processes and folder.is_running():
                taken.append(folder.devices())
        free = list(self._places)
        for place in taken:
            if place in free:
                free.remove(place)
        return free[0] if free else self._places[0]

    def active(self) -> set[str]:
        self._processes = {
            name: (process, place)
            for name, (process, place) in self._processes.items()
            if process.poll() is None
        }
        return set(self._processes)

    def stop(self) -> None:
        processes = [process for process, _ in self._processes.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE + 10  # they wait for their commands
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.05)

    def close(self) -> None:
        pass
