"""The state of a grid as a table and in one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from prune_rl.launch.states import JobState, State, seconds_left
from prune_rl.reporting.tables import number, table

_ORDER: tuple[State, ...] = ("done", "running", "queued", "waiting", "stopped", "failed")


def status_table(states: Sequence[JobState]) -> str:
    """A row per job: what it trains, its state, share done, return, hidden neurons of the actor, and time left."""
    rows = [
        [
            state.job.env,
            state.job.algo,
            state.job.method,
            _seeds(state),
            state.state,
            f"{state.share:.0%}",
            "-" if math.isnan(state.mean_return) else f"{state.mean_return:.1f}",
            "-" if state.neurons is None else number(round(state.neurons, 1)),
            _time_left(state),
        ]
        for state in states
    ]
    heads = ["environment", "learner", "method", "seeds", "state", "steps", "return", "neurons", "time left"]
    return table(heads, rows, text_columns=5)


def summary_line(states: Sequence[JobState], at_a_time: int | None = None) -> str:
    """How many jobs are in which state, and how long the rest will take."""
    counts = Counter(state.state for state in states)
    texts = [f"{counts[name]} {name}" for name in _ORDER if counts[name]]
    left = seconds_left(states, at_a_time)
    if left == 0:
        time_left = ""
    elif left is None:
        time_left = "; time left unknown"
    else:
        time_left = f"; about {duration(left)} left"
    return f"{len(states)} job{'s' * (len(states) != 1)}: {', '.join(texts)}{time_left}"


def problems(states: Sequence[JobState]) -> list[str]:
    """A line for each job that failed or was stopped, with the last line it said."""
    return [
        f"{state.state}: {state.job.title} ({state.job.name}), {state.reason or 'which said nothing'}"
        for state in states
        if state.state in ("failed", "stopped")
    ]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:02:30."""
    return str(timedelta(seconds=round(seconds)))


def _seeds(state: JobState) -> str:
    job = state.job
    return str(job.seed) if job.seeds == 1 else f"{job.seed}–{job.seed + job.seeds - 1}"


def _time_left(state: JobState) -> str:
    if state.state != "running":
        return "-"
    return "?" if state.seconds_left is None else duration(state.seconds_left)
