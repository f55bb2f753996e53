from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from prune_rl.runs.logging import MetricsLog, read_metrics
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.runs.tensorboard import Events

ROOT = Path(__file__).parents[2]


def record(step: int) -> dict[str, Any]:
    return {
        "iteration": step // 10,
        "return": jnp.array([float(step), step / 3]),
        "widths": {"actor/layer_0": np.array([7, 8], np.int32)},
        "threshold": {"actor/layer_0": [0.5, 0.25]},
    }


def events(folder: Path) -> list[Event]:
    """Every TensorBoard event in time order, read by the record format: u64 length, crc, data, crc."""
    found = []
    for file in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content, position = file.read_bytes(), 0
        while position < len(content):
            length = int.from_bytes(content[position : position + 8], "little")
            found.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 16 + length
    return found


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: a session start at step n voids what was recorded from n on before."""
    shown: dict[str, dict[int, float]] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            for values in shown.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: values for tag, values in shown.items() if values}


def test_lines_read_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(10, record(10))
    log.write(20, record(20))
    # Flushed: a reader sees the lines while the run goes on.
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    log.close()
    assert first == {
        "step": 10,
        "iteration": 1,
        "return": [10.0, 3.3333333],
        "widths": {"actor/layer_0": [7, 8]},
        "threshold": {"actor/layer_0": [0.5, 0.25]},
    }
    assert second["step"] == 20
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1), st.lists(st.floats(), min_size=1))
def test_floats_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, single: list[float], double: list[float]
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, {"single": np.array(single, np.float32), "double": double, "text": "a\nb"})
    log.close()
    (line,) = path.read_text().splitlines()

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    json.loads(line, parse_constant=refuse)
    (found,) = read_metrics(path)
    np.testing.assert_array_equal(np.array(found["single"], np.float32), np.array(single, np.float32))
    np.testing.assert_array_equal(np.array(found["double"]), np.array(double))
    assert found["text"] == "a\nb"


def test_missing_values_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"return": [math.nan, 2.0], "kl": math.inf, "done": jnp.bool_(True), "none": None})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step":1,"return":[null,2.0],"kl":"Infinity","done":true,"none":null}\n'
    )
    (found,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(found["return"][0])
    assert found["kl"] == math.inf


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, b"bytes"])
def test_other_values_are_refused_before_anything_is_written(tmp_path: Path, value: Any) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(TypeError, match="the metric losses/actor is a"):
        log.write(1, {"losses": {"actor": value}})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_continued_run_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        log = MetricsLog(tmp_path / name / "metrics.jsonl")
        for step in range(10, 60 if name == "whole" else 50, 10):
            log.write(step, record(step))
        log.close()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step":50,"iter')
    assert [line["step"] for line in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [10, 20, 30, 40]
    log = MetricsLog(tmp_path / "cut" / "metrics.jsonl")
    log.rewind(20)
    for step in (30, 40, 50):
        log.write(step, record(step))
    log.close()
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()
    assert scalars(tmp_path / "cut" / "tensorboard") == scalars(tmp_path / "whole" / "tensorboard")
    starts = [
        event.step for event in events(tmp_path / "cut" / "tensorboard") if event.HasField("session_log")
    ]
    assert starts == [21]


def test_tensorboard_shows_the_mean_and_each_seed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(10, {"return": [1.0, math.nan, 3.0], "kl": [0.5], "many": np.arange(100.0), "none": [math.nan]})
    log.close()
    shown = scalars(tmp_path / "tensorboard")
    assert {tag: value[10] for tag, value in shown.items()} == {
        "return/mean": 2.0,
        "return/seed_0": 1.0,
        "return/seed_2": 3.0,
        "kl": 0.5,
        "many/mean": 49.5,
    }


def test_rewind_to_the_start(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(0, record(0))
    log.rewind(-1)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    log.write(0, {"return": 5.0})
    log.close()
    assert scalars(tmp_path / "tensorboard") == {"return": {0: 5.0}}


@pytest.mark.parametrize("bad", ["{", "[]", "3", '{"iteration":1}', '{"step":"x"}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n' + bad + '\n{"step":3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is damaged"):
        read_metrics(path)
    log = MetricsLog(path)
    with pytest.raises(ValueError, match="line 2"):
        log.rewind(1)
    log.close()
    assert path.read_text().count("\n") == 3


def whole_log(path: Path, lines: int = 5) -> list[str]:
    log = MetricsLog(path / "metrics.jsonl")
    for step in range(10, 10 * (lines + 1), 10):
        log.write(step, record(step))
    assert log.sync() == lines
    log.close()
    return (path / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (lambda lines: lines, []),
        (lambda lines: [*lines[:2], "", "  ", *lines[2:]], ["metrics.jsonl had 2 blank lines, now left out"]),
        (lambda lines: [*lines[:2], *lines[1:]], ["metrics.jsonl had 1 doubled line, now left out"]),
        (lambda lines: [*lines, *lines], ["metrics.jsonl had 5 doubled lines, now left out"]),
        (
            lambda lines: lines[:1] + lines[3:],
            ["metrics.jsonl lacks 2 of the 5 lines that it had up to step 50"],
        ),
        (lambda lines: lines[:3], ["metrics.jsonl lacks 2 of the 5 lines that it had up to step 50"]),
        (lambda lines: [], ["metrics.jsonl lacks 5 of the 5 lines that it had up to step 50"]),
    ],
)
def test_lost_blank_and_doubled_lines_are_noted(tmp_path: Path, change: Any, notes: list[str]) -> None:
    lines = whole_log(tmp_path)
    changed = change(lines)
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in changed))
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.rewind(50, lines=5)
    taken = log.take_notes()
    assert len(taken) == len(notes)
    assert all(note.startswith(start) for note, start in zip(taken, notes, strict=True))
    assert log.take_notes() == []
    expected = [line for line in lines if line in changed]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == expected
    log.write(60, record(60))
    assert log.sync() == len(expected) + 1
    log.close()


def test_events_that_cannot_be_written_are_noted_once_and_never_block(tmp_path: Path) -> None:
    """The disk fails, as a full one does, and recovers."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    (tmp_path / "tensorboard").write_text("in the way")
    for step in range(30):
        log.write(step, record(step))
    (note,) = log.take_notes()
    assert note.startswith(f"TensorBoard events cannot be written to {tmp_path / 'tensorboard'} (")
    assert note.endswith("the run goes on, and metrics.jsonl has all of them")
    (tmp_path / "tensorboard").unlink()
    for step in range(30, 40):
        log.write(step, record(step))
    # Python ignores SIGXFSZ: a file at the limit fails like one on a full disk, in the middle of a record.
    (file,) = (tmp_path / "tensorboard").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
    try:
        log._events.write(40, [("return", 1.0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for step in range(41, 45):
        log.write(step, record(step))
    log.close()
    assert log.take_notes() == []
    shown = scalars(tmp_path / "tensorboard")
    assert list(shown["iteration"]) == [*range(30, 40), *range(41, 45)]
    assert [line["step"] for line in read_metrics(log.path)] == [*range(40), *range(41, 45)]


def test_a_clock_that_goes_back_leaves_events_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([*np.linspace(2e9, 2e9 + 50, 20), *np.linspace(1e9, 1e9 + 50, 400)])
    monkeypatch.setattr("prune_rl.runs.tensorboard.time.time", lambda: float(next(clock)))
    for start in (0, 20, 40):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.rewind(start)
        for step in range(start, start + 20):
            log.write(step + 1, record(step + 1))
        log.close()
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 3
    for number, file in enumerate(files):
        folder = tmp_path / f"alone{number}"
        folder.mkdir()
        (folder / file.name).write_bytes(file.read_bytes())
        times = [event.wall_time for event in events(folder)]
        assert times == sorted(times)
        steps = [event.step for event in events(folder) if event.summary.value]
        assert steps == list(range(20 * number + 1, 20 * number + 21))


def test_a_long_log_takes_no_memory(tmp_path: Path) -> None:
    """100,000 lines: what a process holds does not grow, neither while it writes nor when it continues."""
    path = tmp_path / "metrics.jsonl"
    row = {"iteration": 1, "return": [1.0, 2.0], "widths": {"actor/layer_0": [7, 8]}}
    log = MetricsLog(path)
    log._events = Events(tmp_path / "tensorboard")
    log.write(0, row)
    tracemalloc.start()
    try:
        for step in range(1, 2_000):
            log.write(step, row)
        log.close()
        line = path.read_bytes().splitlines(keepends=True)[-1].replace(b"1999", b"%d")
        with path.open("ab") as file:
            for step in range(2_000, 100_000):
                file.write(line % step)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        log = MetricsLog(path)
        log.rewind(99_999, lines=100_000)
        for step in range(100_000, 100_100):
            log.write(step, row)
        assert log.sync() == 100_100
        log.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert log.take_notes() == []
    assert path.stat().st_size > 8_000_000
    assert peak - before < 1_000_000


LOG_FOREVER = """
import sys
from prune_rl.runs.logging import MetricsLog
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.runs.tensorboard import Events
import numpy as np
log, history, step = MetricsLog(sys.argv[1] + "/metrics.jsonl"), MaskHistory(sys.argv[1] + "/masks"), 0
while True:
    step += 1
    log.write(step, {"return": [float(step)] * 3000})
    history.write(step, {"actor/layer_0": np.arange(5000)[None] % (step + 1) > 0})
    print(step, flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOG_FOREVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    reported = 20 + len(process.communicate()[0].split())
    log, history = MetricsLog(tmp_path / "metrics.jsonl"), MaskHistory(tmp_path / "masks")
    assert len(read_metrics(log.path)) >= reported
    assert len(history.steps()) >= reported
    log.rewind(7)
    history.rewind(7)
    log.close()
    assert [line["step"] for line in read_metrics(log.path)] == list(range(1, 8)) == history.steps()
