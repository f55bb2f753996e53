"""Tiny grids on every engine, killed, failed and continued: their results are the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

import prune_rl
from prune_rl.cli import main
from prune_rl.launch.grid import Grid, read_grid
from prune_rl.launch.local import LocalEngine
from prune_rl.launch.spec import EngineOptions
from prune_rl.launch.states import states_of
from tests.launch.grid_files import BOTH, DENSE, SUBMITIT, job, write_spec

PROCESSES = {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])}
DENSE_RUN = "CartPole-v1-ppo-dense-seed0-"


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before, variables = Path.cwd(), os.environ.copy()
    os.chdir(folder)
    os.environ |= PROCESSES  # of all jobs
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ |= variables


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with working_in(tmp_path):
        yield tmp_path


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def kill_the_job_of(run: Path, job_folder: Path) -> None:
    """SIGKILL to the training and to the process that waits for it."""
    owner = (run / ".lock-owner").read_text().split()[1]
    for pid in (json.loads((job_folder / "process.json").read_text())["pid"], int(owner)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def states(grid: Grid) -> list[str]:
    return [state.state for state in states_of(grid)]


@pytest.fixture(scope="module")
def killed_and_continued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid on the local engine, whose launcher and first job were killed in the middle."""
    with working_in(tmp_path_factory.mktemp("local")):
        spec, grid_folder = write_spec(BOTH), Path("runs/grid").resolve()
        command = [sys.executable, "-m", "prune_rl.cli", "launch", str(spec), "--max-jobs", "1"]
        launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: any(grid_folder.glob("runs/*/checkpoints/step_*[0-9]")))
        finally:
            launcher.kill()
            launcher.wait()
        grid = read_grid(grid_folder, "")
        dense = grid.jobs[0]
        assert dense.method == "dense"
        assert states(grid) == ["running", "waiting"]  # it goes on without its launcher
        kill_the_job_of(grid.run(dense), grid.folder(dense).path)
        wait_for(lambda: states(grid) == ["stopped", "waiting"])
        assert main(["launch", str(spec), "--max-jobs", "2"]) == 0
        assert states(grid) == ["done", "done"]
    return grid_folder


@pytest.mark.slow
def test_a_killed_grid_goes_on(killed_and_continued: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = {path.parent.name: path.read_text() for path in killed_and_continued.glob("jobs/*/log.txt")}
    (dense,) = (text for name, text in logs.items() if "-dense-" in name)
    assert "continuing from the checkpoint at" in dense
    assert dense.count("$ prune-rl train CartPole-v1") == 2
    (dynamic,) = (text for name, text in logs.items() if "-dynamic-" in name)
    assert "CartPole-v1 ppo dense, seed 0:" not in dynamic  # the control is the grid's own dense job
    (control,) = killed_and_continued.glob(f"runs/{DENSE_RUN}*")
    assert len((control / "metrics.jsonl").read_text().splitlines()) == 8192 // 256
    cells = json.loads((killed_and_continued / "results.json").read_text())["cells"]
    assert [cell["method"] for cell in cells] == ["dense", "dynamic"]
    assert cells[1]["seeds"]["0"]["dense"] == cells[0]["seeds"]["0"]["return"]
    assert (
        (killed_and_continued / "results.md").read_text().startswith("# Results of the grid\n\n| environment")
    )
    # Given again, it changes nothing but the results, which stay as they are.
    before = {path: path.stat().st_mtime_ns for path in killed_and_continued.glob("*s/*/*")}
    results = (killed_and_continued / "results.json").read_bytes()
    with working_in(killed_and_continued.parents[1]):
        assert main(["launch", "grid.toml"]) == 0
        assert main(["status", "grid.toml"]) == 0
    assert capsys.readouterr().out.count("2 jobs: 2 done") == 2
    assert {path: path.stat().st_mtime_ns for path in killed_and_continued.glob("*s/*/*")} == before
    assert (killed_and_continued / "results.json").read_bytes() == results


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`prune-rl launch` in a process of its own: submitit and Ray change more of it than one test may see."""
    command = [sys.executable, "-m", "prune_rl.cli", "launch", "grid.toml", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
def test_a_failed_job_is_tried_again_and_submitit_has_the_same_results(
    killed_and_continued: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(DENSE + SUBMITIT)
    (same,) = killed_and_continued.glob(f"runs/{DENSE_RUN}*")
    obstacle = folder / "runs/grid/runs" / same.name / "notes.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()
    assert main(["launch", str(spec), "--engine", "local"]) == 4
    assert main(["status", str(spec)]) == 0
    line = f"failed: CartPole-v1 ppo dense, seed 0 ({same.name}), exit status 2: error: runs/grid/runs/{same.name} is"
    output = capsys.readouterr().out
    assert output.count(line) == 3  # when it happens, at the end, and by `prune-rl status`
    assert "1 job: 1 failed" in output
    obstacle.unlink()
    # Another process trains in the same folder, such as a run whose dense control it is: it is waited for.
    log = next((folder / "runs/grid/jobs").glob("*/log.txt"))
    lock = filelock.FileLock(obstacle.parent / ".lock", thread_local=False)

    def release_when_waited_for() -> None:
        wait_for(lambda: "waiting for it to end" in log.read_text())
        lock.release()

    lock.acquire()
    other = threading.Thread(target=release_when_waited_for)
    other.start()
    done = launch()
    other.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_dense_cell(folder / "runs/grid", killed_and_continued)


@pytest.mark.slow
def test_ray_has_the_same_results_and_leaves_nothing(
    killed_and_continued: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(DENSE)
    monkeypatch.setenv("TMPDIR", "/tmp")
    before = set(Path("/tmp").glob("ray-*"))
    done = launch("--engine", "ray", "--max-jobs", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 job at a time in a Ray cluster on this machine" in done.stdout
    assert_same_dense_cell(folder / "runs/grid", killed_and_continued)
    assert set(Path("/tmp").glob("ray-*")) <= before


def assert_same_dense_cell(grid: Path, other: Path) -> None:
    """The results of a grid of the dense runs alone, beside those of a grid that has them, too."""
    mine, theirs = (json.loads((path / "results.json").read_text()) for path in (grid, other))
    assert mine == {**theirs, "cells": [cell for cell in theirs["cells"] if cell["method"] == "dense"]}


def test_an_interrupt_ends_the_jobs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    grid = Grid(folder / "grid", (job(), job(seed=1)))
    grid.path.mkdir()
    grid.write(folder)
    said: list[str] = []
    engine = LocalEngine(EngineOptions(), grid, said.append)
    assert said == ["2 jobs at a time on this machine, on GPU 3 and 5"]
    engine.submit(grid.jobs)
    wait_for(
        lambda: (
            states(grid) == ["running", "running"] and all(grid.folder(it).log.exists() for it in grid.jobs)
        )
    )
    assert engine.active() == {it.name for it in grid.jobs}
    assert [grid.folder(it).devices() for it in grid.jobs] == ["3", "5"]
    engine.stop()
    assert states(grid) == ["stopped", "stopped"]
    assert engine.active() == set()
    for it in grid.jobs:
        end = grid.folder(it).exit()
        assert end is not None
        assert end.interrupted


# Stands for a Slurm whose queue never moves: the real one needs a cluster.
SLURM = {
    "sbatch": 'cp "$1" script.$$; echo "Submitted batch job $$"',
    "srun": "exit 1",
    "sacct": """echo "JobID|State|NodeList"
for id; do
  case $id in [0-9]*) echo "${id}_[0-1]|$(cat state.$id 2>/dev/null || echo PENDING)|";; esac
done""",
}
COMMANDS = """
import sys
from prune_rl.cli import main
print([main([command, "grid.toml"]) for command in sys.argv[1:]])
"""


def test_jobs_in_the_queue_of_slurm_are_not_submitted_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = 'kind = "slurm"\nmax_jobs = 1\n[engine.slurm]\npartition = "short"\ntime_limit = 90\n'
    write_spec(f"{BOTH}[engine]\n{options}")
    (folder / "bin").mkdir()
    for name, lines in SLURM.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def run(*commands: str) -> str:
        command = [sys.executable, "-c", COMMANDS, *commands]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"[{', '.join('0' for _ in commands)}]\n" in done.stdout
        return done.stdout

    output = run("launch", "launch", "status")
    assert output.count("\n2 jobs: 2 queued; time left unknown\n") >= 3
    assert output.count("the jobs go on without this command") == 2
    (first,) = folder.glob("script.*")
    (folder / f"state{first.suffix}").write_text("NODE_FAIL")
    output = run("status", "launch")
    assert output.count("which ended before it began") == 2
    assert "2 jobs: 2 failed" in output
    assert "2 jobs: 2 queued" in output
    assert len(list(folder.glob("script.*"))) == 2
    script = first.read_text()
    for line in ("--array=0-1%1", "--partition=short", "--time=90", "--cpus-per-task=2", "--mem=2GB"):
        assert f"#SBATCH {line}\n" in script


def test_missing_packages_and_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune_rl.launch.engine import make_engine

    grid = Grid(folder, (job(),))
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ValueError, match="engine slurm needs the command sbatch"):
        make_engine(EngineOptions(kind="slurm"), grid, print)
    for kind, package, extra in (("slurm", "submitit", "slurm"), ("ray", "ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"engine {kind} needs .*: pip install 'prune_rl\[{extra}\]'"):
            make_engine(EngineOptions(kind=kind), grid, print)  # type: ignore[arg-type]
