"""What `prune-rl train` does: train the run and its dense control, evaluate all policies, and write the summary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.markup import escape

from prune_rl.envs.task import Task, resolve_task
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.reporting.run_summary import write_summary
from prune_rl.runs.directory import RunDirectoryError
from prune_rl.runs.faults_file import read_faults
from prune_rl.training.config import Config
from prune_rl.training.control import control_command, control_of
from prune_rl.training.control_start import forget_dense_part, start_of_control
from prune_rl.training.engines.faults import TrainingFailed
from prune_rl.training.extension import extended_config, extension
from prune_rl.training.loop import is_trained, train
from prune_rl.training.make_engine import check_engine, check_processes, make_engine
from prune_rl.training.run_config import read_config
from prune_rl.training.run_evaluation import evaluate_timed


def experiment(
    config: Config,
    run_dir: Path | None,
    control: bool,
    command: str,
    console: Console,
    extend: Path | None = None,
    wait: bool = False,
    group: ProcessGroup = ALONE,
) -> bool:
    """Train, compact, evaluate and summarise; returns whether every seed has a policy, the control's too.

    With ``control`` the run is compared with a dense one of the same seeds and steps beside it, which is trained too if
    it is not there yet. With ``extend``, a finished run, training goes on from its end. With ``wait``, a folder that
    another process trains in is waited for, not refused. The environment is resolved once, here. Everything that can be
    refused is refused before training starts. The processes of ``group`` share the seeds; the first one reads and
    writes all else.
    """
    task = resolve_task(config.env, config.backend, config.env_kwargs, config.seeds)
    config = config.resolved(task)
    check_engine(config, task)
    check_processes(group, config, config.seeds)
    prepare: Callable[[Path], None] | None = None
    prepare_control: Callable[[Path], None] | None = None

    def say(sentence: str) -> None:
        console.print(f"[yellow]note:[/] {escape(sentence)}", soft_wrap=True)

    if extend is not None:
        config = extended_config(config, extend)

        def start() -> None:
            nonlocal prepare
            if not is_trained(extend, read_config(extend)):
                raise RunDirectoryError(
                    f"{extend} is not finished: give the command that began it again first"
                )
            prepare = extension(extend, config, task, make_engine, say)

        group.from_first("run to extend", start)
    if task.note:
        console.print(f"{config.env} {task.note}")
    for note in (task.backend_note(jax.default_backend()), task.limit_note()):
        if note:
            console.print(f"[yellow]note:[/] {escape(note)}")
    path = run_dir or config.default_run_dir()
    dense = control_of(config)
    dense_path = path.parent / dense.default_run_dir().name
    shares = (
        control
        and extend is None
        and config.method != "dense"
        and not group.from_first("control", lambda: is_trained(dense_path, dense))
    )
    train(
        config,
        task,
        path,
        command,
        console,
        wait=wait,
        prepare=prepare,
        keep_dense_part=shares,
        group=group,
    )
    if shares:
        prepare_control = start_of_control(path, dense, task, make_engine, say)
    complete = group.from_first("faults", lambda: not read_faults(path))
    if extend is not None and control and config.method != "dense":

        def start_control() -> bool:
            nonlocal prepare_control
            old_dense = control_of(read_config(extend))
            old_dense_path = extend.parent / old_dense.default_run_dir().name
            if not is_trained(old_dense_path, old_dense):
                say(f"{extend} has no dense control beside it to extend, so there is none to compare with")
                return False
            prepare_control = extension(old_dense_path, dense, task, make_engine, say)
            return True

        control = group.from_first("control to extend", start_control)
    if control and config.method != "dense":
        control = train_control(
            dense, task, dense_path, control_command(config, command), console, prepare_control, group
        )
        complete = complete and group.from_first("faults", lambda: not read_faults(dense_path))

    def finish() -> None:
        if control and config.method != "dense":
            forget_dense_part(path)
        _finish(config, task, path, dense_path if control else None, console)

    group.from_first("evaluation", finish)
    return complete


def _finish(config: Config, task: Task, path: Path, control: Path | None, console: Console) -> None:
    """Evaluate a trained run, write its summary, and say where things are."""
    evaluate_timed(config, task, path, control, console)
    summary = write_summary(path)
    console.print(summary.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    for what, where in (
        ("summary", path / "summary.md"),
        ("picture", path / "summary.png"),
        ("policy", path / "policy"),
        ("log", path / "metrics.jsonl"),
    ):
        console.print(f"{what:8} {where}", markup=False, soft_wrap=True)


def train_control(
    dense: Config,
    task: Task,
    path: Path,
    command: str,
    console: Console,
    prepare: Callable[[Path], None] | None = None,
    group: ProcessGroup = ALONE,
) -> bool:
    """Train and evaluate the dense control, unless it is there; wait for a process that trains it already.

    Returns whether there is one. What is wrong with it is said, and does not cost the run its own evaluation.
    """

    def finish() -> None:
        if not (path / "evaluation.json").exists():
            evaluate_timed(dense, task, path, None, console)
            write_summary(path)

    try:
        train(dense, task, path, command, console, wait=True, prepare=prepare, group=group)
        group.from_first("evaluation of the control", finish)
    except (TrainingFailed, ValueError) as error:
        console.print(
            f"[yellow]note:[/] there is no dense control to compare with: {escape(str(error))}",
            soft_wrap=True,
        )
        return False
    return True
