from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from prune_rl.cpu_cores import available_cores
from prune_rl.launch.capacity import gpus, places
from prune_rl.launch.display import Display
from prune_rl.launch.grid import Grid, read_grid
from prune_rl.launch.job_folder import HEARTBEAT_MISSED, Exit
from prune_rl.launch.launcher import collect, launch
from prune_rl.launch.spec import EngineOptions
from prune_rl.launch.states import JobState, seconds_left, states_of
from prune_rl.launch.status import problems, status_table, summary_line
from tests.launch.grid_files import job


def grid_of(path: Path, *jobs: object) -> Grid:
    grid = Grid(path, tuple(jobs) or (job(),))  # type: ignore[arg-type]
    path.mkdir(exist_ok=True)
    grid.write(Path.cwd())
    return grid


def write_log(run: Path, step: int, **record: object) -> None:
    run.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "wall_time": 10.0, "running_return": [None, 30.0], **record}
    (run / "metrics.jsonl").write_text("damaged\n" + json.dumps(line) + '\n{"step": 9')


def test_a_job_from_waiting_to_done(tmp_path: Path) -> None:
    grid = grid_of(tmp_path / "grid", job(method="dynamic", control="control"))
    (mine,) = grid.jobs
    folder, run = grid.folder(mine), grid.run(mine)

    def state() -> JobState:
        (found,) = states_of(grid)
        return found

    assert state().state == "waiting"
    assert states_of(grid, [mine.name])[0].state == "queued"
    folder.log.write_text("starting\nerror: no space is left\n\n")
    write_log(run, 250, widths={"actor/layer_0": [4, 6], "critic/layer_0": [8, 8]})
    with folder.locked():
        folder.started(os.getpid(), None)
        assert state().state == "running"
        assert (state().share, state().mean_return, state().neurons) == (0.25, 30.0, 5.0)
        assert state().seconds_left == 30.0 + 40.0  # the run, and its control
        write_log(run.parent / "control", 500)
        assert state().seconds_left == 30.0 + 10.0
    assert state().state == "stopped"  # killed: it has not said how it ended
    folder.ended(Exit(-15, 3.0))
    assert state().state == "stopped"
    folder.ended(Exit(1, 3.0))
    assert state().state == "failed"
    assert problems([state()]) == [
        f"failed: CartPole-v1 ppo dynamic, seed 0 ({mine.name}), exit status 1: error: no space is left"
    ]
    folder.ended(Exit(0, 3.0))
    assert state().state == "stopped"  # its run is gone
    (run / "summary.md").touch()
    assert state().state == "done"


def test_a_process_on_another_host_runs_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    grid = grid_of(tmp_path / "grid")
    folder = grid.folder(grid.jobs[0])
    with folder.locked():
        folder.started(1, None)
    process = folder.path / "process.json"
    process.write_text(json.dumps({"host": "elsewhere", "pid": 1, "devices": None}))
    assert folder.is_running()
    old = os.stat(folder.path / "heartbeat").st_mtime - 2 * HEARTBEAT_MISSED
    os.utime(folder.path / "heartbeat", (old, old))
    assert not folder.is_running()


def test_the_table_and_the_time_that_is_left() -> None:
    running = JobState(job(seed=1), "running", share=0.5, seconds_left=50.0)
    states = [
        JobState(job(), "done", share=1.0, mean_return=500.0, neurons=12.0, seconds=100.0),
        running,
        JobState(job(seed=2), "waiting"),
        JobState(job("Pendulum-v1"), "waiting"),
    ]
    assert seconds_left(states) == 50.0 + 100.0 + 100.0
    assert seconds_left(states, 2) == 125.0
    assert seconds_left(states[2:]) is None
    assert summary_line(states, 2) == "4 jobs: 1 done, 1 running, 2 waiting; about 0:02:05 left"
    assert summary_line(states[:1]) == "1 job: 1 done"
    rows = [[cell.strip() for cell in row.split("|")[4:-1]] for row in status_table(states).splitlines()]
    assert rows[2] == ["0", "done", "100%", "500.0", "12", "-"]
    assert rows[3] == ["1", "running", "50%", "-", "-", "0:00:50"]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_display_says_what_changes(terminal: bool) -> None:
    console = Console(force_terminal=terminal, width=200, record=True, file=io.StringIO())
    failed = JobState(job(), "failed", reason="exit status 2: error: no")
    with Display(console) as display:
        display.update([failed], 1)  # an earlier launch's
        display.update([JobState(job(), "running")], 1)
        display.update([failed], 1)
    text = console.export_text()
    assert text.count("running: CartPole-v1 ppo dense, seed 0") == 1
    assert text.count("exit status 2: error: no") == 1


def test_a_grid_is_read_back(tmp_path: Path) -> None:
    grid = grid_of(tmp_path / "grid", job(), job(seed=1, control="c"))
    assert read_grid(grid.path, "launch") == grid
    with pytest.raises(ValueError, match=r"nothing was launched in .*: give X"):
        read_grid(tmp_path, "give X")
    (grid.path / "grid.json").write_text('{"jobs": [{"name": 3}]}')
    with pytest.raises(ValueError, match=r"grid\.json is damaged .*: give X"):
        read_grid(grid.path, "give X")


def test_one_launcher_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    grid = grid_of(tmp_path / "grid")
    with filelock.FileLock(grid.path / ".lock"), pytest.raises(ValueError, match="by another process"):
        launch(grid, EngineOptions(), Console())


def test_results_without_any_run_that_is_done(tmp_path: Path) -> None:
    grid = grid_of(tmp_path / "grid")
    assert "CartPole-v1" in collect(grid, [])
    assert json.loads(grid.results.read_text())["missing"] == [grid.jobs[0].name]


def test_one_job_per_gpu() -> None:
    with_gpus = {"CUDA_VISIBLE_DEVICES": "0,2,3"}
    assert places(EngineOptions(), with_gpus) == ["0", "2", "3"]
    assert places(EngineOptions(max_jobs=2), with_gpus) == ["0", "2"]
    assert places(EngineOptions(gpus_per_job=2), with_gpus) == ["0,2"]
    assert places(EngineOptions(gpus_per_job=0, max_jobs=3), with_gpus) == ["", "", ""]
    with pytest.raises(ValueError, match="gpus_per_job is 4, and this machine shows 3"):
        places(EngineOptions(gpus_per_job=4), with_gpus)
    assert gpus({**with_gpus, "JAX_PLATFORMS": "cpu"}) == []


def test_as_many_jobs_as_fit_on_a_cpu() -> None:
    no_gpus = {"CUDA_VISIBLE_DEVICES": ""}
    assert places(EngineOptions(max_jobs=5), no_gpus) == [None] * 5
    assert len(places(EngineOptions(cpus_per_job=1, memory_per_job=1e-3), no_gpus)) == available_cores()
    assert places(EngineOptions(memory_per_job=1e6), no_gpus) == [None]
