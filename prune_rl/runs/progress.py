"""Progress of a training run: a live display in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.errors import LiveError
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Display
from rich.text import Text

from prune_rl.plain_text import readable

SEEDS_SHOWN = 8
# Speed and time left are measured over the last 5 minutes, and without the first update, which compiles: a network that
# has become faster by pruning counts with its present speed.
SPEED_PERIOD = 300.0
REDRAW_INTERVAL = 1 / 8  # s


class SpeedColumn(ProgressColumn):
    """Environment steps per second of all seeds together."""

    def render(self, task: Task) -> Text:
        """Empty until two updates have been seen."""
        seeds = max(1, len(task.fields["returns"]))
        if task.speed is None:
            return Text()
        together = f" ({seeds} seeds together)" if seeds > 1 else ""
        return Text(f"{_short(task.speed * seeds)} steps/s{together}")


class ReturnColumn(ProgressColumn):
    """Mean training return, and that of each seed, or its range over many seeds."""

    def render(self, task: Task) -> Text:
        """Reads the field "returns": one number per seed, NaN before the seed's first episode has ended."""
        returns: list[float] = task.fields["returns"]
        known = [value for value in returns if not math.isnan(value)]
        if not known:
            return Text("return: no episode has ended yet" if returns else "")
        text = f"return {_short(sum(known) / len(known))}"
        if 1 < len(returns) <= SEEDS_SHOWN:
            text += f" [{' '.join('-' if math.isnan(value) else _short(value) for value in returns)}]"
        elif len(returns) > 1:
            text += f" ({_short(min(known))} to {_short(max(known))} over {len(returns)} seeds)"
        return Text(text)


class WidthsColumn(ProgressColumn):
    """Hidden widths of each network before and after pruning; empty where nothing is pruned."""

    def render(self, task: Task) -> Text:
        """Reads the fields "start_widths" {group name: int} and "widths" {group name: [int per seed]}."""
        start: Mapping[str, int] = task.fields["start_widths"]
        widths: Mapping[str, list[int]] = task.fields["widths"]
        networks: dict[str, list[str]] = {}
        for name in widths:
            networks.setdefault(name.split("/")[0] if "/" in name else "network", []).append(name)
        texts = []
        for network, names in networks.items():
            before = "·".join(str(start.get(name, "?")) for name in names)
            after = "·".join(_span(widths[name]) for name in names)
            texts.append(f"{network} {before} → {after}" if before != after else f"{network} {before}")
        return Text(", ".join(texts))


class _TwoLines(Display):
    """The bar and its numbers in the first line, each further column in a line of its own."""

    details: Sequence[ProgressColumn] = ()
    readable: Callable[[str], str] = str

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            texts = [self.readable(str(column(task))) for column in self.details]
            for text in filter(None, texts):
                yield Padding(Text(text, style="dim"), (0, 0, 0, 2))


class Progress:
    """Steps, speed, training return, widths and time left of a run.

    A terminal that fails, or an output that is closed, ends the display and never the run.

    Args:
      total_steps: environment steps per seed at the end of the run.
      title: what is trained.
      start: steps done before, in a continued run.
      start_widths: hidden widths before pruning by group name, {"actor/layer_0": 256, …}; by default those of the
        first update. May be empty.
      interval: seconds between two plain lines. The live display is redrawn at most 8 times per second.
      console: the output, by default standard output.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        *,
        start: int = 0,
        start_widths: Mapping[str, int] | None = None,
        interval: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._interval = interval
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._shown = clock()
        self._unshown = False
        self._live = False
        self._broken = False
        self._numbers = (
            TextColumn("{task.completed:,}/{task.total:,} steps"),
            TaskProgressColumn(),
        )
        self._details = (SpeedColumn(), ReturnColumn(), WidthsColumn())
        self._time_left = TimeRemainingColumn()
        # Redrawn by `update` and not by a thread, so that a failing terminal is noticed here.
        self._display = _TwoLines(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            *self._numbers,
            self._time_left,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            speed_estimate_period=SPEED_PERIOD,
            get_time=clock,
        )
        self._display.details, self._display.readable = self._details, self._readable
        fields: dict[str, Any] = {"returns": [], "widths": {}, "start_widths": dict(start_widths or {})}
        self._id = self._display.add_task(title, total=total_steps, completed=start, **fields)

    @property
    def _task(self) -> Task:
        return self._display.tasks[0]

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._attempt(self._start_live)
        else:
            self.note(f"{self._title}: {self._task.remaining:,} steps to do")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._attempt(self._display.stop)
        elif self._unshown:
            self.note(self.line())

    def update(
        self,
        step: int,
        training_return: Sequence[float] = (),
        widths: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Reports a finished chunk of updates.

        Args:
          step: environment steps per seed so far.
          training_return: mean return of recent training episodes per seed; NaN before the first has ended.
          widths: kept neurons per seed, by group name: {"actor/layer_0": [12, …], …}. Empty for a dense run.
        """
        fields: dict[str, Any] = {"returns": [float(value) for value in training_return]}
        if widths is not None:
            fields["widths"] = {name: [int(width) for width in kept] for name, kept in widths.items()}
            fields["start_widths"] = self._task.fields["start_widths"] or {
                name: max(kept) for name, kept in fields["widths"].items() if kept
            }
        self._display.update(self._id, completed=step, **fields)
        now = self._clock()
        self._unshown = now - self._shown < (REDRAW_INTERVAL if self._live else self._interval)
        if not self._unshown:
            self._shown = now
            if self._live:
                self._attempt(self._display.refresh)
            else:
                self.note(self.line())

    def note(self, text: str) -> None:
        """Writes a line of text, above the live display if there is one."""
        self._attempt(lambda: self._console.print(Text(self._readable(text)), soft_wrap=True))

    def line(self) -> str:
        """The present state in one line."""
        task = self._task
        parts = [self._title, *(str(column(task)).strip() for column in (*self._numbers, *self._details))]
        if task.time_remaining is not None:
            parts.append(f"{self._time_left(task)} left")
        return " | ".join(part for part in parts if part)

    def _readable(self, text: str) -> str:
        """`text` in characters that the console's encoding has."""
        return readable(text, self._console.encoding)

    def _start_live(self) -> None:
        self._display.start()
        self._live = True

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Calls `action`; after a first failure of the output nothing is shown any more."""
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError, RuntimeError, LiveError):
            self._broken = True
        except SystemExit as error:
            # rich exits where the reader of a pipe has gone (`| head`); training goes on without a display.
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            self._broken = True


def _span(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return str(low) if low == high else f"{low}–{high}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    for limit, scale, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"
