"""The training of one run in its run directory: updates, checkpoints and logs, and the policies at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import Task
from prune_rl.export.policy import load_policy, save_policy
from prune_rl.learners.registry import State
from prune_rl.processes.agreement import check_shared
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.directory import RunDirectory
from prune_rl.runs.faults_file import write_faults
from prune_rl.runs.log_rows import without_placeholders
from prune_rl.runs.progress import Progress
from prune_rl.spaces import Spec
from prune_rl.training.config import NOT_PART_OF_THE_RESULT, Config
from prune_rl.training.control_start import last_shared_checkpoint, save_dense_part
from prune_rl.training.engines import DeviceEngine, Engine
from prune_rl.training.engines.array_widths import check_every
from prune_rl.training.engines.faults import Fault, Faults
from prune_rl.training.frontier_points import frontier_updates
from prune_rl.training.make_engine import CHUNK, make_engine
from prune_rl.training.matmul_precision import matmul_precision
from prune_rl.training.policy_export import (
    compact_policy,
    masked_policy,
    policy_paths,
    seeds_with_policy,
    state_of_seed,
)
from prune_rl.training.run_notes import tell_faults, without_episodes
from prune_rl.training.run_records import RunRecords, records_of

TIMING = "timing.json"


def train(
    config: Config,
    task: Task,
    run_dir: Path,
    command: str,
    console: Console,
    *,
    wait: bool = False,
    prepare: Callable[[Path], None] | None = None,
    keep_dense_part: bool = False,
    group: ProcessGroup = ALONE,
) -> None:
    """Train in ``run_dir``, continuing from its newest checkpoint, until the compact policies are written.

    ``config`` must be resolved. Raises ``RunDirectoryError`` before any training if the folder belongs to another
    configuration or is in use; with ``wait`` it waits while another process uses it. ``prepare`` is called with the
    locked folder before that. With ``keep_dense_part``, the dense control can go on from a checkpoint of this run.
    Of the processes of ``group``, the first one holds the lock and calls ``prepare``.
    """
    stack = contextlib.ExitStack()

    def say_so(sentence: str) -> None:
        console.print(f"[yellow]note:[/] {escape(sentence)}; waiting for it to end", soft_wrap=True)

    def open_folder() -> bool:
        folder = RunDirectory.open(
            run_dir,
            {**config.to_json(), "command": command},
            defaults=config.defaults(task).to_json(),
            not_compared=("command", *NOT_PART_OF_THE_RESULT),
            wait=say_so if wait else None,
        )
        run = stack.enter_context(folder)
        for note in run.notes:
            console.print(f"[yellow]note:[/] {escape(note)}")
        if prepare is not None:
            prepare(run.path)
        return is_trained(run.path, config)

    with stack:
        trained = group.from_first("run directory", open_folder)
        check_shared(group, run_dir)
        if not trained:
            train_together(
                [(config, run_dir)], task, run_dir, console, keep_dense_part=keep_dense_part, group=group
            )


def train_together(
    runs: Sequence[tuple[Config, Path]],
    task: Task,
    home: Path,
    console: Console,
    *,
    keep_dense_part: bool = False,
    group: ProcessGroup = ALONE,
) -> None:
    """Train runs that share a program, see ``share_program``, until their compact policies are written.

    Each has its own folder, which is locked; ``home`` is where checkpoints and timing.json are.
    """
    config = runs[0][0]
    if config.truncates_every_episode(task):
        console.print(
            f"[yellow]note:[/] {config.env} is reset {config.host_resets} times in this run, so that no "
            "episode reaches its time limit; ask for fewer --host-resets, or leave the flag out"
        )
    engine = make_engine(config, task, *(other for other, _ in runs[1:]), group=group)
    if group.size > 1:
        number = len(engine.held)
        console.print(f"{number * group.size} seeds in {group.size} processes, {number} in each")
    if engine.devices.note():
        console.print(engine.devices.note())
    try:
        records = records_of(runs, group)
        with matmul_precision(config.matmul_precision), engine.timing.counting_programs():
            run_updates(
                engine, config, home, console, keep_dense_part=keep_dense_part, together=records, group=group
            )
        console.print(engine.timing.compilation())
        for each in records:
            first, held = each.members.start, engine.held
            write_policies(engine.state, engine.faults, each.config, task.spec, each.path, first, held)
        engine.gather_faults()
        tell_faults(engine.faults, config, console)
        if group.is_first:
            for each in records:
                write_faults(each.path, engine.faults.records(config.env, each.members))
            write_json(home / TIMING, engine.timing.to_json())
    finally:
        engine.close()


def is_trained(path: Path, config: Config) -> bool:
    """Whether every seed has a compact policy that loads, or is known to have none, see ``Faults``."""
    try:
        for seed in seeds_with_policy(path, config):
            for kind in ("policy", "wide"):
                load_policy(policy_paths(path, config, kind)[seed])
    except ValueError:
        return False
    return True


def run_updates(
    engine: Engine[Any],
    config: Config,
    path: Path,
    console: Console,
    *,
    keep_dense_part: bool = False,
    together: Sequence[RunRecords] = (),
    group: ProcessGroup = ALONE,
) -> None:
    """Advance ``engine`` to the end of the run, from the newest checkpoint in ``path`` if there is one.

    ``together``: the records of the runs that train in this program, of which ``config`` is the first; by default of
    this run alone, in ``path``.
    """
    checkpoints = Checkpoints(path / "checkpoints", part=None if group.size == 1 else engine.part)
    records = list(together) or records_of([(config, path)])
    restored = checkpoints.restore(lambda metadata: engine.template(metadata["widths"]))
    for note in checkpoints.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    done, start = 0, time.monotonic()
    if restored is not None:
        engine.tree, done = restored.tree, restored.step
        # The clock goes on where the checkpoint left it, so that wall_time never falls.
        start -= restored.metadata["timing"]["total"]
        engine.timing.add(restored.metadata["timing"])
        engine.faults.restore(restored.metadata.get("faults", ()), restored.metadata.get("faulty_members"))
        console.print(f"continuing from the checkpoint at {done * config.learner.steps_per_update:,} steps")
    lines = None if restored is None else restored.metadata.get("log_lines")
    rewound = group.from_first(
        "rewound logs", lambda: [note for each in records for note in each.rewind(done, lines)]
    )
    for note in rewound:
        console.print(f"[yellow]note:[/] {escape(note)}")
    total, every = config.learner.num_updates, config.checkpoint_every
    num_seeds = records[-1].members.stop
    widths = {name: mask.shape[-1] for name, mask in engine.masks.items()}
    check = check_every(total)
    looks = frontier_updates(config.learner, config.frontier)
    engine.shrink()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        for each in records:
            stack.enter_context(contextlib.closing(each))
        progress = stack.enter_context(
            Progress(
                config.steps,
                _title(config, len(records)),
                start=done * config.learner.steps_per_update,
                start_widths=widths,
                console=console,
            )
        )
        while done < total:
            step = CHUNK if isinstance(engine, DeviceEngine) else 1
            to_look = min((update - done for update in looks if update > done), default=total)
            n = min(step, every - done % every, check - done % check, total - done, to_look)
            metrics = without_placeholders(engine.advance(n))
            tell_faults(engine.faults, config, console)
            for i in range(n):
                row = jax.tree.map(lambda x, i=i: x[i], metrics)
                done += 1
                # A line at every checkpoint too, so that the log of a continued run is that of an uninterrupted one.
                end = done % config.log_every == 0 or done % every == 0 or done == total
                for note in [note for each in records for note in each.add(row, done, end, start)]:
                    progress.note(f"note: {note}")
            last = jax.tree.map(lambda x: x[-1], metrics)
            note = without_episodes(config, last.get("total_episodes"), done, n)
            if note:
                console.print(f"[yellow]note:[/] {escape(note)}")
            if done % check == 0 and done < total:
                engine.shrink()
            masks = engine.masks
            for each in records:
                each.add_masks(masks, done)
                if looks and (done in looks or done == total):
                    each.keep_policies(engine, done)
            kept = {name: report["width"].tolist() for name, report in last.get("prune", {}).items()}
            progress.update(
                done * config.learner.steps_per_update,
                last["running_return"].tolist(),
                kept or {name: [width] * num_seeds for name, width in widths.items()},
            )
            if done % every == 0 or done == total:
                engine.timing.total = time.monotonic() - start
                with engine.timing.measured("checkpoints"):
                    metadata: dict[str, Any] = {
                        "widths": engine.widths,
                        "timing": engine.timing.to_json(),
                        # Before the checkpoint, which must not know more than the logs, all of as many lines.
                        "log_lines": min([each.sync() for each in records]),
                    }
                    if engine.faults.frozen.any():
                        metadata["faults"] = engine.faults.to_json()
                        metadata["faulty_members"] = engine.faults.members
                    if keep_dense_part and done == last_shared_checkpoint(engine.num_dense, every):
                        save_dense_part(path, done, engine.dense_tree, metadata, engine.dense_part)
                    checkpoints.save(done, engine.tree, metadata)
        engine.timing.total = time.monotonic() - start


def _title(config: Config, runs: int) -> str:
    seeds = f"seed {config.seed}" if config.seeds == 1 else f"{config.seeds} seeds"
    values = f" of each of {runs} values" if runs > 1 else ""
    return f"{config.env} {config.algo} {config.method}, {seeds}{values}"


def write_policies(
    state: State,
    faults: Faults,
    config: Config,
    spec: Spec,
    path: Path,
    first: int = 0,
    held: range | None = None,
) -> None:
    """Save the policy of every seed without a fault, compact and wide; a network that holds NaN is one.

    The seeds of this run are the members from ``first`` on; ``state`` has those that are ``held``, by default all.
    """
    for index, seed in enumerate(config.all_seeds, first):
        if faults.frozen[index] or (held is not None and index not in held):
            continue
        mine = state_of_seed(state, index - (held.start if held is not None else 0))
        try:
            policies = {
                kind: make(mine, config, spec, seed)
                for kind, make in (("wide", masked_policy), ("policy", compact_policy))
            }
        except ValueError as error:
            faults.add(Fault(seed, config.steps, "network", None, str(error)), index)
            continue
        for kind, policy in policies.items():
            folder = policy_paths(path, config, kind)[seed]
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_policy(folder, policy)
