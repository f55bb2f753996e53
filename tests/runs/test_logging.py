from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
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


LOG_FOREVER = """
import sys
from prune_rl.runs.logging import MetricsLog
from prune_rl.runs.mask_history import MaskHistory
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
