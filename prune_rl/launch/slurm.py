"""Jobs in the queue of Slurm, through submitit; and its local executor, which starts the same jobs without Slurm."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_rl.launch.capacity import at_a_time, gpus, places
from prune_rl.launch.grid import Grid, Job
from prune_rl.launch.job_process import GRACE, run_job
from prune_rl.launch.spec import EngineOptions

if TYPE_CHECKING:
    import submitit


class SlurmTask:
    """The function that a Slurm job calls; before its time is over, submitit puts it into the queue again."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> int:
        return run_job(self.folder)

    def checkpoint(self) -> Any:
        """What is queued then: the same, which goes on from the last checkpoint of the training."""
        return _submitit().helpers.DelayedSubmission(SlurmTask(self.folder))


class SlurmEngine:
    """See ``Engine``. All jobs that are given together are one job array."""

    def __init__(self, options: EngineOptions, grid: Grid, say: Callable[[str], None]) -> None:
        slurm = options.slurm
        self._grid = grid
        self._local = slurm.cluster == "local"
        self._module = _submitit()
        if not self._local and shutil.which("sbatch") is None:
            raise ValueError(
                "engine slurm needs the command sbatch, which this machine does not have: launch from a login node of "
                "the cluster, or choose another engine (local, ray)"
            )
        self._folder = (grid.path / "slurm").resolve()
        self._executor = self._module.AutoExecutor(
            folder=self._folder / "%j",
            cluster=slurm.cluster,
            slurm_max_num_timeout=slurm.requeues,
            local_max_num_timeout=slurm.requeues,
        )
        gpus_per_job = options.gpus_per_job
        if self._local:
            self._capacity: int | None = len(places(options))
            where = f"{at_a_time(len(places(options)))} through submitit on this machine"
            gpus_per_job = min(1, len(gpus())) if gpus_per_job is None else gpus_per_job
        else:
            self._capacity = None
            where = "jobs in the queue of Slurm"
        named = {
            f"slurm_{name}": getattr(slurm, name)
            for name in ("partition", "account", "qos", "constraint")
            if getattr(slurm, name)
        }
        more: dict[str, Any] = {"slurm_additional_parameters": slurm.parameters} if slurm.parameters else {}
        if gpus_per_job:
            more["gpus_per_node"] = gpus_per_job
        if slurm.setup:
            more |= {"slurm_setup": list(slurm.setup), "local_setup": list(slurm.setup)}
        if options.max_jobs:
            more["slurm_array_parallelism"] = options.max_jobs
        self._executor.update_parameters(
            name=grid.path.name,
            timeout_min=slurm.time_limit,
            cpus_per_task=options.cpus_per_job,
            mem_gb=options.memory_per_job,
            tasks_per_node=1,
            nodes=1,
            stderr_to_stdout=True,
            **named,
            **more,
        )
        self._jobs: dict[str, submitit.Job[int]] = {}
        say(where)

    @property
    def capacity(self) -> int | None:
        return self._capacity

    @property
    def in_background(self) -> bool:
        return not self._local

    def submit(self, jobs: Sequence[Job]) -> None:
        folders = [str(self._grid.folder(job).path.resolve()) for job in jobs]
        try:
            with self._executor.batch():
                submitted = [self._executor.submit(SlurmTask(folder)) for folder in folders]
        except self._module.core.utils.FailedJobError as error:
            raise ValueError(
                f"sbatch refused the jobs ({' '.join(str(error).split())}): change [engine.slurm]"
            ) from None
        for job, handle in zip(jobs, submitted, strict=True):
            self._jobs[job.name] = handle
            self._grid.folder(job).submitted(
                "local" if self._local else "slurm", handle.job_id, handle.paths.folder
            )

    def active(self) -> set[str]:
        mine = {name for name, handle in self._jobs.items() if not handle.done()}
        return mine if self._local else mine | queued_jobs(self._grid)

    def stop(self) -> None:
        if not self._local:
            return
        active = self.active()
        for job in self._grid.jobs:
            if job.name in active and not self._grid.folder(job).interrupt():
                self._jobs[job.name].cancel()  # it has not begun
        deadline = time.monotonic() + GRACE + 10
        while self.active():
            if time.monotonic() > deadline:
                for name in self.active():
                    self._jobs[name].cancel()  # submitit kills it a second later
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.05)

    def close(self) -> None:
        pass


def queued_jobs(grid: Grid) -> set[str]:
    """The names of the jobs that Slurm has in its queue, waiting or running, as `sacct` says.

    Raises:
        ValueError: submitit is missing.
    """
    names = set()
    for job in grid.jobs:
        folder = grid.folder(job)
        submission = folder.submission()
        if submission is None or submission.get("cluster") != "slurm" or folder.is_done(grid.run(job)):
            continue
        handle = _submitit().SlurmJob[int](Path(submission["folder"]), submission["job_id"])
        if not handle.done():
            names.add(job.name)
    return names


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f"engine slurm needs the package submitit, which {sys.executable} does not have: "
            "pip install 'prune_rl[slurm]'"
        ) from None
    return submitit
