"""What `prune-rl train ENV --sweep …` does: runs that differ in some values, each in a folder of its own.

Those that differ in traced numbers alone train in one program. Its checkpoints are in ``programs/K`` of the sweep's
folder; all else that a run leaves is in the folder of its values, which is a run directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.markup import escape

from prune_rl.envs.task import Task, resolve_task
from prune_rl.processes.agreement import check_alike, check_shared
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.reporting.run_summary import write_summary
from prune_rl.reporting.sweep_summary import write_sweep
from prune_rl.runs.directory import RunDirectory
from prune_rl.runs.evaluation_file import read_evaluation
from prune_rl.runs.faults_file import read_faults
from prune_rl.training.config import NOT_PART_OF_THE_RESULT, Config
from prune_rl.training.control import control_command, control_of
from prune_rl.training.engines.faults import TrainingFailed
from prune_rl.training.loop import is_trained, train_together
from prune_rl.training.make_engine import check_engine, check_processes
from prune_rl.training.policy_export import seeds_with_policy
from prune_rl.training.run_evaluation import evaluate_timed
from prune_rl.training.sweep_values import Axis, SweptRun, by_program, check_effect, flags_of, swept_runs


def sweep(
    config: Config,
    axes: Sequence[Axis],
    home: Path | None,
    control: bool,
    command: str,
    console: Console,
    group: ProcessGroup = ALONE,
) -> bool:
    """Train, evaluate and compare all runs of a sweep; returns whether every seed of every run has a policy.

    ``command`` is the command line, with ``--sweep`` and its fields at the end.

    With ``control``, one dense run for each that the runs are compared with is trained, too. Everything that can be
    refused is refused before training starts; raises ``TrainingFailed`` if no seed of any run is left. ``group`` as in
    ``experiment``.
    """
    task = resolve_task(config.env, config.backend, config.env_kwargs, config.seeds)
    runs = [dataclasses.replace(run, config=run.config.resolved(task)) for run in swept_runs(config, axes)]
    for run in runs:
        check_effect(run)
        check_engine(run.config, task)
    home = home or default_home(runs)
    if task.note:
        console.print(f"{config.env} {task.note}")
    for note in (task.backend_note(jax.default_backend()), task.limit_note()):
        if note:
            _say(console, note)
    first = runs[0].config
    check_alike(group, {"sweep": [run.name for run in runs]})
    check_processes(group, first, *(sum(run.config.seeds for run in each) for each in by_program(runs)))
    dense = _controls(runs) if control and first.method != "dense" else []
    for each in by_program(dense):
        group.share(sum(run.config.seeds for run in each), "seeds")
    content = {**first.to_json(), "sweep": {axis.field: list(axis.values) for axis in axes}}
    stack = contextlib.ExitStack()

    def open_home() -> None:
        folder = RunDirectory.open(
            home,
            content | {"command": command},
            defaults=first.defaults(task).to_json(),
            not_compared=("command", *NOT_PART_OF_THE_RESULT),
        )
        for note in stack.enter_context(folder).notes:
            _say(console, note)

    with stack:
        group.from_first("sweep", open_home)
        check_shared(group, home)
        failed = _train(runs, "", task, home, command, console, group)
        controls: dict[str, Path] = {}
        if dense:
            _train(dense, "dense_", task, home, command, console, group)
            controls = {run.name: home / control_of(run.config).default_run_dir().name for run in runs}

        def finish() -> bool:
            for run in dense:
                _evaluate(run, task, home, None, console)
            for run in runs:
                _evaluate(run, task, home, controls.get(run.name), console)
            if len(failed) < len(runs):
                _compare(runs, home, console)
            return not failed and not any(read_faults(home / run.name) for run in runs)

        complete = group.from_first("evaluation", finish)
        if len(failed) == len(runs):
            raise TrainingFailed(
                "no seed of any run is left to train. The same command goes on from the last checkpoints"
            )
    return complete


def _compare(runs: Sequence[SweptRun], home: Path, console: Console) -> None:
    """Write the comparison of the runs, and say where things are."""
    summary = write_sweep(home, [(run.name, home / run.name) for run in runs])
    console.print(summary.read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    for what, where in (("summary", summary), ("picture", home / "sweep.png"), ("runs", home)):
        console.print(f"{what:8} {where}", markup=False, soft_wrap=True)


def default_home(runs: Sequence[SweptRun]) -> Path:
    """``runs/ENV-ALGO-METHOD-seeds…-sweep-hash``, for resolved runs; the hash is of the names of all their folders."""
    names = [run.config.default_run_dir().name for run in runs]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return Path("runs") / f"{names[0].rpartition('-')[0]}-sweep-{digest}"


def _controls(runs: Sequence[SweptRun]) -> list[SweptRun]:
    """The dense controls of runs, each once: what differs in pruning alone shares one."""
    found: dict[Config, SweptRun] = {}
    for run in runs:
        dense = control_of(run.config)
        values = {field: value for field, value in run.values.items() if not field.startswith("prune.")}
        found.setdefault(dense, _Control(values, dense))
    return list(found.values())


class _Control(SweptRun):
    """A dense run beside those of the sweep."""

    @property
    def name(self) -> str:
        return self.config.default_run_dir().name


def _train(
    runs: Sequence[SweptRun],
    prefix: str,
    task: Task,
    home: Path,
    command: str,
    console: Console,
    group: ProcessGroup,
) -> list[SweptRun]:
    """Train the runs, those that share a program together; returns those that nothing is left of."""
    failed: list[SweptRun] = []
    for number, together in enumerate(by_program(runs)):
        folders = [(run.config, home / run.name) for run in together]
        program = home / "programs" / f"{prefix}{number}"
        with contextlib.ExitStack() as stack:
            trained = group.from_first(
                "run directories", functools.partial(_open, together, task, home, command, console, stack)
            )
            if trained:
                continue
            program.mkdir(parents=True, exist_ok=True)
            try:
                train_together(folders, task, program, console, group=group)
            except TrainingFailed as error:
                _say(console, str(error))
                failed += together
    return failed


def _open(
    runs: Sequence[SweptRun],
    task: Task,
    home: Path,
    command: str,
    console: Console,
    stack: contextlib.ExitStack,
) -> bool:
    """Open and lock the folders of the runs until ``stack`` ends; returns whether all of them are trained."""
    trained = True
    for run in runs:
        folder = RunDirectory.open(
            home / run.name,
            {**run.config.to_json(), "command": _command(command, run)},
            defaults=run.config.defaults(task).to_json(),
            not_compared=("command", *NOT_PART_OF_THE_RESULT),
        )
        opened = stack.enter_context(folder)
        for note in opened.notes:
            _say(console, note)
        trained = is_trained(opened.path, run.config) and trained
    return trained


def _evaluate(run: SweptRun, task: Task, home: Path, control: Path | None, console: Console) -> None:
    """Evaluate a run and write its summary, unless that was done; not where no seed has a policy."""
    path = home / run.name
    if not is_trained(path, run.config) or not seeds_with_policy(path, run.config):
        _say(console, f"{run.name} has no policy to evaluate")
        return
    if not _is_evaluated(path, run.config):
        console.print(f"{run.name}:", markup=False)
        evaluate_timed(run.config, task, path, control, console)
        write_summary(path)


def _is_evaluated(path: Path, config: Config) -> bool:
    try:
        found = read_evaluation(path)
    except ValueError:
        return False
    wanted = (config.episodes, config.evaluation_seed, seeds_with_policy(path, config))
    return wanted == (found["episodes"], found["evaluation_seed"], [each["seed"] for each in found["seeds"]])


def _command(command: str, run: SweptRun) -> str:
    """The command that trains this run alone, in a folder of its own."""
    words = shlex.split(command)
    kept = words[: words.index("--sweep")]
    for index, word in enumerate(kept):
        if word.partition("=")[0] == "--run-dir":
            del kept[index : index + (1 if "=" in word else 2)]
            break
    alone = shlex.join([*kept, *flags_of(run.values)])
    return control_command(run.config, alone) if isinstance(run, _Control) else alone


def _say(console: Console, sentence: str) -> None:
    console.print(f"[yellow]note:[/] {escape(sentence)}", soft_wrap=True)
