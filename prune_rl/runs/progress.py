"""The live display of a training run, or one plain line now and then where there is no terminal."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.errors import LiveError
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SEEDS_SHOWN = 8
# Speed is measured over the last updates only: compilation, and a faster network after pruning, should not
# blur it.
SPEED_WINDOW = 20
_ASCII = str.maketrans({"·": "x", "→": "->", "–": "-", "…": "...", "±": "+-", "█": "#"})


class Progress:
    """Shows steps, speed, return, kept widths and the time left. It never stops a run: a terminal that fails,
    or an output that is closed, only ends the display.

    Args:
      total_steps: environment steps per seed at the end of the run.
      title: what is trained.
      start: steps that were done before, in a continued run.
      start_widths: hidden widths before pruning, {"actor/layer_0": 256, …}; else those of the first update.
      interval: seconds between two plain lines; the live display is redrawn at every update, at most 8 times
        a second.
      console: where to; standard output by default.
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
        self._total = total_steps
        self._title = title
        self._interval = interval
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW + 1)
        self._start_widths = dict(start_widths) if start_widths else None
        self._step = start
        self._returns: list[float] = []
        self._widths: dict[str, list[int]] = {}
        self._began = self._shown = clock()
        self._first = (self._began, start)
        self._live: Live | None = None
        self._broken = False

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._attempt(self._start_live)
        else:
            self.note(f"{self._title}: {self._total - self._step:,} steps to do")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._attempt(lambda: self._refresh(force=True))
            self._attempt(self._stop_live)
        elif self._samples and self._shown != self._samples[-1][0]:
            self.note(self.line())

    def update(
        self,
        step: int,
        training_return: Sequence[float] = (),
        widths: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Takes note of a finished chunk.

        Args:
          step: environment steps per seed so far.
          training_return: the mean return of recent training episodes, one per seed; NaN where none has
            ended.
          widths: kept neurons per seed, by group name: {"actor/layer_0": [12, …], …}.
        """
        now = self._clock()
        self._step = step
        self._samples.append((now, step))
        self._returns = [float(value) for value in training_return]
        if widths is not None:
            self._widths = {name: [int(width) for width in kept] for name, kept in widths.items()}
            if self._start_widths is None:
                self._start_widths = {name: max(kept) for name, kept in self._widths.items() if kept}
        if self._live is not None:
            self._attempt(self._refresh)
        elif now - self._shown >= self._interval:
            self._shown = now
            self.note(self.line())

    def note(self, text: str) -> None:
        """Writes a sentence above the display (or as a line of its own)."""
        self._attempt(lambda: self._console.print(Text(self._readable(text)), soft_wrap=True))

    def line(self) -> str:
        """The present state in one line."""
        return " | ".join(part for part in [self._title, *self._parts()] if part)

    def _parts(self) -> list[str]:
        share = self._step / self._total if self._total else 1.0
        left = self._time_left()
        return [
            f"{self._step:,}/{self._total:,} steps ({share:.0%})",
            self._speed_text(),
            self._return_text(),
            self._width_text(),
            "" if left is None else f"{_duration(left)} left",
        ]

    def _speed(self) -> float | None:
        """Steps per second and seed; the first chunk, which compiles, counts only as long as it is alone."""
        if not self._samples:
            return None
        begin = self._samples[0] if len(self._samples) > 1 else self._first
        seconds = self._samples[-1][0] - begin[0]
        steps = self._samples[-1][1] - begin[1]
        return steps / seconds if seconds > 0 and steps > 0 else None

    def _speed_text(self) -> str:
        speed = self._speed()
        if speed is None:
            return ""
        seeds = max(1, len(self._returns))
        return f"{_short(speed * seeds)} steps/s" + (f" ({seeds} seeds together)" if seeds > 1 else "")

    def _time_left(self) -> float | None:
        speed = self._speed()
        # One chunk tells nothing: most of its time went into compiling.
        if speed is None or len(self._samples) < 2:
            return None
        return max(0, self._total - self._step) / speed

    def _return_text(self) -> str:
        known = [value for value in self._returns if not math.isnan(value)]
        if not known:
            return "return: no episode has ended yet" if self._returns else ""
        text = f"return {_short(sum(known) / len(known))}"
        if 1 < len(self._returns) <= SEEDS_SHOWN:
            each = " ".join("-" if math.isnan(value) else _short(value) for value in self._returns)
            text += f" [{each}]"
        elif len(self._returns) > 1:
            text += f" ({_short(min(known))} to {_short(max(known))} over {len(self._returns)} seeds)"
        return text

    def _width_text(self) -> str:
        networks: dict[str, list[str]] = {}
        for name in self._widths:
            networks.setdefault(name.split("/")[0] if "/" in name else "network", []).append(name)
        texts = []
        for network, names in networks.items():
            before = "·".join(str((self._start_widths or {}).get(name, "?")) for name in names)
            after = "·".join(_span(self._widths[name]) for name in names)
            texts.append(f"{network} {before} → {after}" if before != after else f"{network} {before}")
        return ", ".join(texts)

    def _readable(self, text: str) -> str:
        try:
            text.encode(self._console.encoding or "ascii")
        except (UnicodeError, LookupError):
            text = text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
        return text

    def _start_live(self) -> None:
        live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        live.start()
        self._live = live
        self._refresh(force=True)

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _refresh(self, force: bool = False) -> None:
        now = self._clock()
        if self._live is not None and (force or now - self._shown >= 1 / 8):
            self._shown = now
            self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        steps, *rest = (self._readable(part) for part in self._parts())
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._readable(self._title), style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=30),
            Text(steps),
        )
        details = [part for part in rest if part]
        if not self._samples:
            details = [self._readable("compiling, then the first steps…")]
        return Group(head, *(Text("  " + part, style="dim") for part in details))

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Runs `action`; after a first failure of the terminal the display stays silent."""
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError, RuntimeError, LiveError):
            self._broken = True
        except SystemExit as error:
            # rich ends the program where the reader of a pipe has gone (`| head`); training goes on, unseen.
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            self._broken = True


def _span(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return str(low) if low == high else f"{low}–{high}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
