from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from prune_rl.runs.progress import Progress

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock the test turns by hand, given through Progress's own parameter."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=60, highlight=False), text


def test_plain_lines_every_interval() -> None:
    clock = Clock()
    console, text = plain_console()
    with Progress(1000, "PPO on CartPole-v1", interval=10, console=console, clock=clock) as progress:
        for step in range(100, 1001, 100):
            clock.now += 4
            progress.update(step, [float(step), step + 2.0], {"actor/layer_0": [16, 16]})
    lines = text.getvalue().splitlines()
    # 10 updates, 4 seconds apart: a start, a line after 12, 24 and 36 seconds, and the end.
    assert len(lines) == 5
    assert lines[0] == "PPO on CartPole-v1: 1,000 steps to do"
    assert lines[1] == (
        "PPO on CartPole-v1 | 300/1,000 steps | 30% | 50.0 steps/s (2 seeds together) "
        "| return 301.0 [300.0 302.0] | actor 16 | 0:00:28 left"
    )
    assert "1,000/1,000 steps | 100%" in lines[-1]
    assert "0:00:00 left" in lines[-1]


def test_speed_leaves_compilation_and_earlier_runs_out() -> None:
    clock = Clock()
    console, _ = plain_console()
    with Progress(10_000, "run", start=5000, console=console, clock=clock) as progress:
        clock.now += 60
        progress.update(6000)
        assert "steps/s" not in progress.line()
        assert "left" not in progress.line()
        clock.now += 1
        progress.update(7000)
        assert "1000 steps/s" in progress.line()
        assert "0:00:03 left" in progress.line()


def test_widths_per_network_from_their_start() -> None:
    console, _ = plain_console()
    start = {"actor/layer_0": 256, "actor/layer_1": 256, "critic/layer_0": 64}
    progress = Progress(10, "run", console=console, start_widths=start)
    progress.update(1, [1.0], {"actor/layer_0": [12], "actor/layer_1": [9], "critic/layer_0": [64]})
    assert "| actor 256·256 → 12·9, critic 64 |" in progress.line() + " |"
    progress.update(2, [1.0, 2.0], {"actor/layer_0": [12, 15], "actor/layer_1": [9, 9], "dense": [3, 3]})
    assert "actor 256·256 → 12–15·9, network ? → 3" in progress.line()


def test_a_network_that_got_faster_counts_with_its_present_speed() -> None:
    clock = Clock()
    console, _ = plain_console()
    progress = Progress(10**6, "run", console=console, clock=clock)
    for step, seconds in [*((1000 * n, 60) for n in range(1, 20)), *((10_000 * n, 60) for n in range(2, 9))]:
        clock.now += seconds
        progress.update(step)
    assert "| 166.7 steps/s |" in progress.line()


def test_a_dense_run_shows_no_widths() -> None:
    console, text = plain_console()
    starts: tuple[dict[str, int] | None, ...] = (None, {})
    for start in starts:
        with Progress(10, "run", console=console, start_widths=start, interval=0) as progress:
            progress.update(5, [1.0], {})
            progress.update(10, [1.0], {"actor/layer_0": []})
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(10, "run", console=terminal) as progress:
        progress.update(10, [1.0], {})
    assert "run | 5/10 steps | 50% | return 1.0\n" in text.getvalue()
    assert isinstance(terminal.file, io.StringIO)
    assert "return 1.0" in terminal.file.getvalue()


def test_a_live_display_on_a_terminal_that_knows_ascii_only() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Progress(10, "run", console=Console(file=stream, force_terminal=True, width=80)) as progress:
        progress.update(5, [1.0], {"actor/layer_0": [8], "actor/layer_1": [8]})
        progress.update(10, [1.0], {"actor/layer_0": [4], "actor/layer_1": [3]})
    stream.flush()
    assert b"actor 8x8 -> 4x3" in raw.getvalue()
    assert b"10/10 steps" in raw.getvalue()


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        ([], None),
        ([math.nan, math.nan], "return: no episode has ended yet"),
        ([math.nan, 4.0], "return 4.0 [- 4.0]"),
        ([float(seed) for seed in range(9)], "return 4.0 (0.0 to 8.0 over 9 seeds)"),
        ([12_345_678.0], "return 12.3M"),
        ([math.inf], "return inf"),
    ],
)
def test_returns(returns: list[float], text: str | None) -> None:
    console, _ = plain_console()
    progress = Progress(0, "run", console=console)
    progress.update(0, returns)
    assert (text in progress.line()) if text else ("return" not in progress.line())


def test_a_terminal_that_knows_ascii_only() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Progress(10, "run", console=Console(file=stream, force_terminal=False), interval=0) as progress:
        progress.update(1, [1.0], {"actor/layer_0": [8], "actor/layer_1": [8]})
        progress.update(2, [1.0], {"actor/layer_0": [4], "actor/layer_1": [3]})
    stream.flush()
    assert b"actor 8x8 -> 4x3" in raw.getvalue()


def test_a_closed_output_ends_the_display_only() -> None:
    stream = io.StringIO()
    with Progress(10, "run", console=Console(file=stream, force_terminal=False), interval=0) as progress:
        stream.close()
        progress.update(5, [1.0])
        progress.note("unheard")
    assert "5/10 steps" in progress.line()


def test_a_display_inside_another_one() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(10, "outer", console=console) as outer, Progress(10, "inner", console=console) as inner:
        inner.update(5, [1.0])
        outer.update(5, [1.0])


SCRIPT = """
from prune_rl.runs.progress import Progress
with Progress(1000, "PPO on CartPole-v1", interval=0) as progress:
    for step in (500, 1000):
        progress.update(step, [100.0], {"actor/layer_0": [256 // (step // 500)]})
    progress.note("checkpoint 500 is damaged")
"""


def run_in_terminal(term: str) -> str:
    """The output of SCRIPT in a real pseudo-terminal of type `term`, with no known size."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": term, "PYTHONIOENCODING": "utf-8"},
    )
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:
        pass  # the way a pseudo-terminal says that the other end is closed
    os.close(master)
    assert process.wait() == 0, output
    return output.decode()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb", "", "nonsense"])
def test_real_terminals(term: str) -> None:
    output = run_in_terminal(term)
    assert "1,000/1,000 steps" in output
    assert "100%" in output
    assert "actor 256 → 128" in output
    assert "checkpoint 500 is damaged" in output
    assert "Traceback" not in output
    assert ("\x1b[" in output) == (term in ("xterm-256color", "nonsense", ""))


def test_a_broken_pipe() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("(500, 1000)", "range(1, 20000)").replace("step // 500", "1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0, errors
    assert "Traceback" not in errors
