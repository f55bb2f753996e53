"""Seeds shared by two real processes, as by two hosts: the run of one process, also where one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune_rl.cli import main
from prune_rl.exit_status import OTHER_PROCESS_ENDED
from tests.conftest import DEVICES
from tests.processes.test_group import free_port
from tests.training.conftest import TIMEOUT, TINY

# 16 updates, arrays of 16 and then 8 neurons, and a checkpoint after every second update.
ARGUMENTS = [*TINY, "--seeds", "2", "--steps", "2048", "--checkpoints", "8", "--prune.shrink", "always"]
Start = Callable[..., "subprocess.Popen[bytes]"]
LOST_AFTER = 10.0


def start_both(start: Start, root: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes of one device each, with one seed each; their output in `root`/K/output, their run in `root`."""
    flags = os.environ["XLA_FLAGS"].replace(f"{DEVICES}=2", f"{DEVICES}=1")
    together = ["--distributed", "--coordinator", f"localhost:{free_port()}", "--num-processes", "2"]
    processes = []
    for index in (0, 1):
        folder = root / str(index)
        folder.mkdir(exist_ok=True)
        arguments = [*ARGUMENTS, *together, "--process-id", str(index), "--run-dir", "../run"]
        variables = {"XLA_FLAGS": flags, "PRUNE_RL_LOST_AFTER": str(LOST_AFTER)}
        processes.append(start(arguments, folder, **variables))
    return processes


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_time"} for line in lines]


def evaluation_of(run: Path) -> Any:
    seeds = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["seeds"]
    return [{name: policy["returns"] for name, policy in each["policies"].items()} for each in seeds]


def test_a_host_killed_and_all_restarted_is_the_run_of_one_process(start: Start, tmp_path: Path) -> None:
    """One seed per device in both, so that they have the same bits."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for root in (alone, shared):
        root.mkdir()
    reference = start([*ARGUMENTS, "--run-dir", "run"], alone)
    processes = start_both(start, shared)
    first, second = processes
    checkpoint = shared / "run" / "checkpoints" / "step_000000000004"
    end = time.monotonic() + TIMEOUT
    while not checkpoint.exists():
        assert first.poll() is None, (shared / "0" / "output").read_text(encoding="utf-8")
        assert second.poll() is None, (shared / "1" / "output").read_text(encoding="utf-8")
        assert time.monotonic() < end
        time.sleep(0.01)
    second.kill()
    assert second.wait(TIMEOUT) == -signal.SIGKILL
    assert first.wait(TIMEOUT) == OTHER_PROCESS_ENDED
    said = (shared / "0" / "output").read_text(encoding="utf-8")
    assert "error: process 1 of 2 (" in said
    assert f"gave no sign of life for {LOST_AFTER:.0f} s. The same command on all hosts goes on" in said
    assert not (shared / "run" / "evaluation.json").exists(), "it was killed in the middle"

    processes = start_both(start, shared)
    outputs = [shared / str(index) / "output" for index in (0, 1)]
    statuses = [process.wait(TIMEOUT) for process in processes]
    assert statuses == [0, 0], [output.read_text(encoding="utf-8") for output in outputs]
    assert "continuing from the checkpoint at" in outputs[0].read_text(encoding="utf-8")
    assert outputs[1].read_bytes() == b"", "process 0 speaks for all"
    assert reference.wait(TIMEOUT) == 0, (alone / "output").read_text(encoding="utf-8")
    one, two = alone / "run", shared / "run"
    assert log_of(one) == log_of(two)
    assert evaluation_of(one) == evaluation_of(two)
    for kind, number in (("policy", 2), ("wide", 2), ("masks", 4), ("frontier", 4)):
        files = sorted(
            path.relative_to(one)
            for path in (one / kind).rglob("*")
            if path.suffix in (".safetensors", ".npz")
        )
        assert len(files) >= number
        assert files == sorted(
            path.relative_to(two)
            for path in (two / kind).rglob("*")
            if path.suffix in (".safetensors", ".npz")
        )
        for name in files:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    command = json.loads((two / "config.json").read_text(encoding="utf-8"))["command"]
    assert "--distributed" not in command
    assert "--process-id" not in command


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num-processes", "2"], "--num-processes is for several processes: give --distributed too"),
        (["--distributed", "--coordinator", "here"], "--coordinator must be HOST:PORT, got 'here'"),
        (["--distributed"], "--distributed cannot join the other processes"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train", "CartPole-v1", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1
