"""What `prune-rl launch` shows while jobs run: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from prune_rl.launch.states import JobState
from prune_rl.launch.status import problems, status_table, summary_line
from prune_rl.plain_text import readable

# Rows of the live table, which has to fit into a terminal.
_MOST_ROWS = 24


class Display:
    """The states of the jobs, as they change.

    An output that fails, such as a closed pipe, ends the display, never the jobs.

    Args:
        console: the output.
        interval: seconds between two plain lines that say how many jobs are in which state.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console, *, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._interval = interval
        self._clock = clock
        self._before: dict[str, str] = {}
        self._shown = -float("inf")
        self._broken = False
        terminal = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, states: Sequence[JobState], at_a_time: int | None) -> None:
        """Show the states; ``at_a_time``: how many jobs run together."""
        for state in states:
            before = self._before.get(state.job.name)
            self._before[state.job.name] = state.state
            if state.state == before:
                continue
            if state.state in ("failed", "stopped") and before is not None:
                self._print(problems([state])[0])
            elif state.state == "running" or (state.state == "done" and before is not None):
                self._print(_change(state))
        now = self._clock()
        if self._live is not None:
            rows = [state for state in states if state.state in ("running", "queued")]
            lines = [status_table(rows[:_MOST_ROWS])] if rows else []
            if len(rows) > _MOST_ROWS:
                lines.append(f"and {len(rows) - _MOST_ROWS} more")
            lines.append(summary_line(states, at_a_time))
            texts = [Text(self._readable(line), no_wrap=True, overflow="ellipsis") for line in lines]
            self._attempt(lambda: self._refresh(Group(*texts)))
        elif now - self._shown >= self._interval:
            self._shown = now
            self._print(summary_line(states, at_a_time))

    def _refresh(self, content: Group) -> None:
        if self._live is not None:
            self._live.update(content, refresh=True)

    def _print(self, line: str) -> None:
        self._attempt(lambda: self._console.print(Text(self._readable(line)), soft_wrap=True))

    def _readable(self, text: str) -> str:
        return readable(text, self._console.encoding)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError, RuntimeError):
            self._broken = True
        except SystemExit as error:  # rich exits where the reader of a pipe has gone
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            self._broken = True


def _change(state: JobState) -> str:
    """A line about a job that started or is done."""
    text = f"{state.state}: {state.job.title}"
    if state.state == "done" and state.neurons is not None:
        text += f", return {state.mean_return:.1f}, {state.neurons:g} hidden neurons"
    return text
