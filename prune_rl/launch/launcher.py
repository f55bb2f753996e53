"""What `prune-rl launch` does: give jobs to an engine until none is left, and write the results."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from rich.console import Console
from rich.markup import escape

from prune_rl.launch.display import Display
from prune_rl.launch.engine import Engine, make_engine
from prune_rl.launch.grid import Grid, Job
from prune_rl.launch.spec import EngineOptions
from prune_rl.launch.states import JobState, states_of
from prune_rl.launch.status import problems, summary_line
from prune_rl.reporting.grid_summary import results_table, write_results

# Seconds between two looks at the jobs. More for many, whose files may lie on a network.
_POLL = 0.5
_POLL_PER_JOB = 0.02


def launch(grid: Grid, options: EngineOptions, console: Console, *, wait: bool = False) -> list[JobState]:
    """Run all jobs of a grid that are not done, and write its results; returns the states at the end.

    Jobs that run or are queued already, by an earlier launch, are not started again. Where the engine works in the
    background, this returns once it has all jobs, unless ``wait``.

    Args:
        grid: its grid.json is written already.
        options: which engine, and with what.
        console: the output.
        wait: until all jobs have ended.

    Raises:
        ValueError: the engine cannot work; or another process launches this grid.
        KeyboardInterrupt: the launch was interrupted; the jobs of engines without a queue were ended.
    """

    def say(sentence: str) -> None:
        console.print(escape(sentence), soft_wrap=True)

    with _only_launcher(grid.path):
        states = states_of(grid)
        if any(state.state != "done" for state in states):
            engine = make_engine(options, grid, say)
            try:
                states = _run(grid, engine, console, wait)
            finally:
                engine.close()
        say(summary_line(states))
        for line in problems(states):
            say(line)
        if any(state.state in ("queued", "running") for state in states):
            say(
                "the jobs go on without this command: `prune-rl status` shows them; given again, it writes the results"
            )
        else:
            done = [state.job for state in states if state.state == "done"]
            if done:
                say(f"\n{collect(grid, done)}\n\nresults {grid.path / 'results.md'}")
        return states


def collect(grid: Grid, done: Sequence[Job]) -> str:
    """Write results.md and results.json from the runs of these jobs; returns the table of the former."""
    cells: dict[tuple[str, str, str], list[Path]] = {}
    for job in sorted(grid.jobs, key=lambda job: (job.env, job.algo, job.method, job.seed)):
        cells.setdefault((job.env, job.algo, job.method), [])
        if job in done:
            cells[job.env, job.algo, job.method].append(grid.run(job))
    missing = [job.name for job in grid.jobs if job not in done]
    return results_table(write_results(grid.path, cells, missing))


def _run(grid: Grid, engine: Engine, console: Console, wait: bool) -> list[JobState]:
    """Give the engine what is not done, as much at a time as it takes, until all has ended."""
    with Display(console) as display:
        try:
            active = engine.active()
            todo = [
                state.job
                for state in states_of(grid, active)
                if state.state in ("waiting", "stopped", "failed")
            ]
            while True:
                active = engine.active()
                states = states_of(grid, active)
                # Those that an earlier launcher left running have their place, too.
                busy = active | {state.job.name for state in states if state.state == "running"}
                room = len(todo) if engine.capacity is None else max(0, engine.capacity - len(busy))
                now, todo = todo[:room], todo[room:]
                if now:
                    engine.submit(now)
                    busy |= {job.name for job in now}
                display.update(_seen(states, busy), engine.capacity)
                if not busy or (engine.in_background and not wait):
                    break
                time.sleep(_POLL + _POLL_PER_JOB * len(grid.jobs))
        except BaseException:
            engine.stop()
            raise
    return states_of(grid, engine.active())


def _seen(states: Sequence[JobState], busy: set[str]) -> list[JobState]:
    """The states with "queued" for jobs that the engine has and whose process has not said anything yet."""
    return [
        dataclasses.replace(state, state="queued", reason="")
        if state.job.name in busy and state.state not in ("running", "done")
        else state
        for state in states
    ]


@contextlib.contextmanager
def _only_launcher(folder: Path) -> Iterator[None]:
    """Hold the lock of the grid; raises ``ValueError`` if another process has it."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is being launched by another process: see `prune-rl status`, or wait for it to end"
        ) from None
    try:
        yield
    finally:
        lock.release()
