"""How each job of a grid is, read from its folder and its run directory: from any process, at any time."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prune_rl.exit_status import ENDED_WELL
from prune_rl.launch.grid import Grid, Job
from prune_rl.reporting.statistics import mean
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.runs.json_text import parse_object

# waiting: not begun; queued: a cluster has it; stopped: begun and ended by a signal, so that it goes on when launched.
State = Literal["waiting", "queued", "running", "stopped", "failed", "done"]
# Bytes at the end of metrics.jsonl in which its last line is looked for.
_TAIL = 1 << 18


@dataclasses.dataclass(frozen=True)
class JobState:
    """A job and how it is.

    Attributes:
        job: the job.
        state: see ``State``.
        share: of its training that is done, in [0, 1].
        mean_return: over seeds: of the evaluation where it is done, of recent training episodes otherwise; NaN if none.
        neurons: hidden neurons of the actor, mean over seeds; None where it is not known.
        seconds: how long the job took, if it ended.
        seconds_left: how long it will take if it is running; None where it is not known.
        reason: of a job that failed or was stopped: its exit status or signal, and the last line that it said.
    """

    job: Job
    state: State
    share: float = 0.0
    mean_return: float = math.nan
    neurons: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    reason: str = ""


def states_of(grid: Grid, queued: Collection[str] = ()) -> list[JobState]:
    """How all jobs are, in their order; ``queued``: names of those that a cluster has in its queue."""
    return [_state_of(grid, job, job.name in queued) for job in grid.jobs]


def _state_of(grid: Grid, job: Job, queued: bool) -> JobState:
    folder, run = grid.folder(job), grid.run(job)
    if folder.is_running():
        return _with_progress(JobState(job, "running"), run, grid.control(job))
    end = folder.exit()
    if end is not None and folder.is_done(run):
        return _with_evaluation(JobState(job, "done", share=1.0, seconds=end.seconds), run)
    if queued:
        return _with_progress(JobState(job, "queued"), run, None)
    if not folder.log.exists():
        submission = folder.submission() or {}
        if submission.get("cluster") != "slurm":
            return JobState(job, "waiting")
        name = f"Slurm's job {submission.get('job_id')}"
        return JobState(
            job, "failed", reason=f"{name}, which ended before it began, see {submission.get('folder')}"
        )
    said = folder.last_line()
    if end is not None and not end.interrupted and end.status not in ENDED_WELL:
        return _with_progress(JobState(job, "failed", reason=f"exit status {end.status}: {said}"), run, None)
    why = "ended by a signal" if end is not None else "its process is gone, killed or with its machine"
    return _with_progress(JobState(job, "stopped", reason=f"{why}: {said}"), run, None)


def _with_evaluation(state: JobState, run: Path) -> JobState:
    try:
        policies = [own_policy(entry) for entry in read_evaluation(run)["seeds"]]
    except ValueError:
        return state
    own = [policy for policy in policies if policy is not None]
    if not own:
        return state
    return dataclasses.replace(
        state,
        mean_return=mean([mean(policy["returns"]) for policy in own]),
        neurons=mean([policy["neurons"]["kept"] for policy in own]),
    )


def _with_progress(state: JobState, run: Path, control: Path | None) -> JobState:
    """With what the last line of the log says. ``control`` is trained after the run, if it is not there yet."""
    last = last_record(run / "metrics.jsonl")
    if last is None:
        return state
    steps, total = last["step"], state.job.steps
    seconds = _seconds_left(last, total)
    if seconds is not None and control is not None and not (control / "summary.md").exists():
        begun = last_record(control / "metrics.jsonl")
        more = last["wall_time"] * total / steps if begun is None else _seconds_left(begun, total)
        seconds = None if more is None else seconds + more
    returns = [value for value in _numbers(last.get("running_return")) if not math.isnan(value)]
    widths = [value for _, value in actor_widths(last)]
    return dataclasses.replace(
        state,
        share=min(1.0, steps / total),
        mean_return=mean(returns) if returns else math.nan,
        neurons=mean([sum(each) for each in zip(*widths, strict=True)]) if widths else None,
        seconds_left=seconds,
    )


def _seconds_left(record: Mapping[str, Any], total: int) -> float | None:
    steps, wall_time = record["step"], record.get("wall_time")
    if steps <= 0 or not isinstance(wall_time, int | float):
        return None
    left: float = wall_time * max(0, total - steps) / steps
    return left


def actor_widths(record: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """The widths of the actor's layers over seeds in a line of the log; none where nothing is pruned."""
    widths = record.get("widths")
    if not isinstance(widths, dict):
        return []
    return [(name, _numbers(values)) for name, values in widths.items() if name.startswith("actor")]


def _numbers(values: Any) -> list[float]:
    """The entries of a list as numbers, NaN for what is none."""
    listed = values if isinstance(values, list) else []
    return [float(value) if isinstance(value, int | float) else math.nan for value in listed]


def last_record(path: Path) -> dict[str, Any] | None:
    """The last complete line of metrics.jsonl; None if there is none that can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = parse_object(line)
        except ValueError:
            continue
        if type(record.get("step")) is int and record["step"] > 0:
            return record
    return None


def seconds_left(states: Sequence[JobState], at_a_time: int | None = None) -> float | None:
    """An estimate of the time until all jobs are done; None as long as nothing is known.

    Jobs that run take as long as their logs say. The others take as long as those of the same environment, learner and
    method took on average, or else those of the same environment, or else all; and as many run together as do now.
    """
    running = [state for state in states if state.state == "running"]
    left = [state for state in states if state.state not in ("done", "failed", "running")]
    if not running and not left:
        return 0.0
    known = [
        (state.job, state.seconds if state.state == "done" else _whole(state))
        for state in states
        if state.state in ("done", "running")
    ]
    lengths = [(job, seconds) for job, seconds in known if seconds is not None]

    def length(job: Job) -> float | None:
        for names in (("env", "algo", "method"), ("env", "algo"), ("env",), ()):
            alike = [
                seconds
                for other, seconds in lengths
                if all(getattr(other, name) == getattr(job, name) for name in names)
            ]
            if alike:
                return mean(alike)
        return None

    ends = [state.seconds_left if state.seconds_left is not None else length(state.job) for state in running]
    more = [_times(length(state.job), 1.0 - state.share) for state in left]
    if any(value is None for value in (*ends, *more)):
        return None
    together = max(1, len(running) if at_a_time is None else at_a_time)
    needed = [value for value in (*ends, *more) if value is not None]
    return max(*needed, sum(needed) / together)


def _whole(state: JobState) -> float | None:
    """How long a running job takes altogether, from its log."""
    if state.seconds_left is None or not 0 < state.share < 1:
        return None
    return state.seconds_left / (1.0 - state.share)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
