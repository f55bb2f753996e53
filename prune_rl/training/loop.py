"""The training of one run in its run directory: updates, checkpoints and logs, and the policies at the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import Task
from prune_rl.envs.vector import make_vector
from prune_rl.export.files import MAX_TENSORS_BYTES
from prune_rl.export.policy import load_policy, save_policy
from prune_rl.learners.registry import Metrics, State, learner_of
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.directory import RunDirectory
from prune_rl.runs.faults_file import write_faults
from prune_rl.runs.frontier import FrontierFolder
from prune_rl.runs.log_rows import joined, record, without_placeholders
from prune_rl.runs.logging import MetricsLog
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.runs.progress import Progress
from prune_rl.spaces import Spec
from prune_rl.training.array_widths import check_every
from prune_rl.training.config import NOT_PART_OF_THE_RESULT, Config
from prune_rl.training.control_start import last_shared_checkpoint, save_dense_part
from prune_rl.training.engines import DeviceEngine, Engine, HostEngine
from prune_rl.training.faults import Fault, Faults, TrainingFailed
from prune_rl.training.frontier import FrontierKeeper
from prune_rl.training.frontier_points import frontier_updates
from prune_rl.training.policy_export import (
    compact_policy,
    masked_policy,
    policy_paths,
    seeds_with_policy,
    state_of_seed,
)

TIMING = "timing.json"
# Updates in one compiled call: enough that a call's overhead vanishes, few enough that progress shows.
CHUNK = 25


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
) -> None:
    """Train in ``run_dir``, continuing from its newest checkpoint, until the compact policies are written.

    ``config`` must be resolved. Raises ``RunDirectoryError`` before any training if the folder belongs to another
    configuration or is in use; with ``wait`` it waits while another process uses it. ``prepare`` is called with the
    locked folder before that. With ``keep_dense_part``, the dense control can go on from a checkpoint of this run.
    """

    def say_so(sentence: str) -> None:
        console.print(f"[yellow]note:[/] {escape(sentence)}; waiting for it to end", soft_wrap=True)

    with RunDirectory.open(
        run_dir,
        {**config.to_json(), "command": command},
        defaults=config.defaults(task).to_json(),
        not_compared=("command", *NOT_PART_OF_THE_RESULT),
        wait=say_so if wait else None,
    ) as run:
        for note in run.notes:
            console.print(f"[yellow]note:[/] {escape(note)}")
        if prepare is not None:
            prepare(run.path)
        if not is_trained(run.path, config):
            if config.truncates_every_episode(task):
                console.print(
                    f"[yellow]note:[/] {config.env} is reset {config.host_resets} times in this run, so that no "
                    "episode reaches its time limit; ask for fewer --host-resets, or leave the flag out"
                )
            engine = make_engine(config, task)
            if engine.devices.note():
                console.print(engine.devices.note())
            try:
                with engine.timing.counting_programs():
                    run_updates(engine, config, run.path, console, keep_dense_part=keep_dense_part)
                console.print(engine.timing.compilation())
                write_policies(engine.state, engine.faults, config, task.spec, run.path)
                tell_faults(engine.faults, config, console)
                write_faults(run.path, engine.faults.records(config.env))
                write_json(run.path / TIMING, engine.timing.to_json())
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


def check_engine(config: Config, task: Task) -> None:
    """Raise ``ValueError`` for what cannot be trained or saved.

    That is what ``make_engine`` would refuse (a missing package, actions unfit for the learner) and an actor too large
    for a policy file.
    """
    task.check()
    learner = config.learner
    state = jax.eval_shape(lambda: learner_of(learner).init(jax.random.key(0), learner, task.spec))
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params["actor"]))
    if size + 8 * task.spec.observation_size > MAX_TENSORS_BYTES:
        raise ValueError(
            f"an actor of hidden widths {learner.hidden} takes {size} bytes, more than the {MAX_TENSORS_BYTES} that a "
            "policy file may have: choose smaller ones (--hidden)"
        )


def make_engine(config: Config, task: Task) -> Engine[Any]:
    """The engine for the backend of a resolved configuration, with fresh learners and environments."""
    if config.reset_every is None:
        return DeviceEngine(task.jax_env(), config.all_seeds, config.learner, CHUNK)
    return HostEngine(
        lambda: make_vector(task, config.learner.num_envs),
        config.all_seeds,
        config.learner,
        config.reset_every,
    )


def run_updates(
    engine: Engine[Any], config: Config, path: Path, console: Console, *, keep_dense_part: bool = False
) -> None:
    """Advance ``engine`` to the end of the run, from the newest checkpoint in ``path`` if there is one."""
    checkpoints = Checkpoints(path / "checkpoints")
    log, history = MetricsLog(path / "metrics.jsonl"), MaskHistory(path / "masks")
    restored = checkpoints.restore(lambda metadata: engine.template(metadata["widths"]))
    for note in checkpoints.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    done, start = 0, time.monotonic()
    if restored is not None:
        engine.tree, done = restored.tree, restored.step
        # The clock goes on where the checkpoint left it, so that wall_time never falls.
        start -= restored.metadata["timing"]["total"]
        engine.timing.add(restored.metadata["timing"])
        engine.faults.restore(restored.metadata.get("faults", ()))
        console.print(f"continuing from the checkpoint at {done * config.learner.steps_per_update:,} steps")
    lines = None if restored is None else restored.metadata.get("log_lines")
    log.rewind(done * config.learner.steps_per_update, lines)
    history.rewind(done * config.learner.steps_per_update)
    FrontierFolder(path).rewind(done * config.learner.steps_per_update)
    for note in (*log.take_notes(), *history.notes):
        console.print(f"[yellow]note:[/] {escape(note)}")
    total, every = config.learner.num_updates, config.checkpoint_every
    rows: list[Metrics] = []
    widths = {name: mask.shape[-1] for name, mask in engine.masks.items()}
    check = check_every(total)
    looks = frontier_updates(config.learner, config.frontier)
    keeper = FrontierKeeper(config, engine.spec, path)
    engine.shrink()
    title = f"{config.env} {config.algo} {config.method}, " + (
        f"seed {config.seed}" if config.seeds == 1 else f"{config.seeds} seeds"
    )
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(log),
        Progress(
            config.steps,
            title,
            start=done * config.learner.steps_per_update,
            start_widths=widths,
            console=console,
        ) as progress,
    ):
        while done < total:
            step = CHUNK if isinstance(engine, DeviceEngine) else 1
            to_look = min((update - done for update in looks if update > done), default=total)
            n = min(step, every - done % every, check - done % check, total - done, to_look)
            metrics = without_placeholders(engine.advance(n))
            tell_faults(engine.faults, config, console)
            for i in range(n):
                rows.append(jax.tree.map(lambda x, i=i: x[i], metrics))
                done += 1
                # A line at every checkpoint too, so that the log of a continued run is that of an uninterrupted one.
                if done % config.log_every == 0 or done % every == 0 or done == total:
                    log.write(done * config.learner.steps_per_update, record(joined(rows), done, start))
                    rows.clear()
                    for note in log.take_notes():
                        progress.note(f"note: {note}")
            steps = done * config.learner.steps_per_update
            last = jax.tree.map(lambda x: x[-1], metrics)
            note = without_episodes(config, last.get("total_episodes"), done, n)
            if note:
                console.print(f"[yellow]note:[/] {escape(note)}")
            if done % check == 0 and done < total:
                engine.shrink()
            history.write(steps, engine.masks)
            if looks and (done in looks or done == total):
                keeper.keep(engine.state, steps, engine.faults.frozen.tolist())
            kept = {name: report["width"].tolist() for name, report in last.get("prune", {}).items()}
            progress.update(
                steps,
                last["running_return"].tolist(),
                kept or {name: [width] * config.seeds for name, width in widths.items()},
            )
            if done % every == 0 or done == total:
                engine.timing.total = time.monotonic() - start
                with engine.timing.measured("checkpoints"):
                    metadata: dict[str, Any] = {
                        "widths": engine.widths,
                        "timing": engine.timing.to_json(),
                        "log_lines": log.sync(),  # before the checkpoint, which must not know more than the log
                    }
                    if engine.faults.frozen.any():
                        metadata["faults"] = engine.faults.to_json()
                    if keep_dense_part and done == last_shared_checkpoint(engine.num_dense, every):
                        save_dense_part(path, done, engine.dense_tree, metadata)
                    checkpoints.save(done, engine.tree, metadata)
        engine.timing.total = time.monotonic() - start


def without_episodes(config: Config, episodes: np.ndarray | None, done: int, n: int) -> str:
    """A sentence if no episode has ended when that should be said, in the last ``n`` of ``done`` updates; else "".

    It is said where host environments are reset for the first time, and where neurons could go
    first, if that depends on the return. ``episodes``:
    those that have ended so far, int[S], if the learner counts them.
    """
    if episodes is None or np.any(episodes):
        return ""
    steps = config.learner.num_steps
    sentences = []
    if config.reset_every is not None and done == config.reset_every:
        sentences.append(
            f"no episode of {config.env} has ended in the first {done * steps:,} steps of each environment, after "
            "which the environments are reset each time, so there is no return: if episodes are longer, set a time "
            "limit (--env-kwargs max_episode_steps=N), or ask for fewer --host-resets"
        )
    prune = config.learner.prune
    if prune is not None and (prune.gate is not None or prune.tolerance is not None):
        asked = max(math.ceil(prune.begin * config.learner.num_updates), config.learner.first_mask_update, 1)
        if done - n < asked <= done:
            sentences.append(
                "the gate has no return to look at, and stays open until an episode ends"
                if prune.tolerance is None
                else "there is no return that could hold, so no neuron goes until episodes end"
            )
    return "; ".join(sentences)


def tell_faults(faults: Faults, config: Config, console: Console) -> None:
    """Say which seeds were frozen since the last call; raises ``TrainingFailed`` if none is left."""
    sentences = [fault.sentence(config.env) for fault in faults.untold()]
    if faults.frozen.all():
        raise TrainingFailed(
            f"{'; '.join(sentences)}. No seed is left to train. The same command goes on from the last checkpoint"
        )
    for sentence in sentences:
        console.print(f"[yellow]note:[/] {escape(sentence)}. This seed is frozen, the others go on.")


def write_policies(state: State, faults: Faults, config: Config, spec: Spec, path: Path) -> None:
    """Save the policy of every seed without a fault, compact and wide; a network that holds NaN is one."""
    for index, seed in enumerate(config.all_seeds):
        if faults.frozen[index]:
            continue
        mine = state_of_seed(state, index)
        try:
            policies = {
                kind: make(mine, config, spec, seed)
                for kind, make in (("wide", masked_policy), ("policy", compact_policy))
            }
        except ValueError as error:
            faults.add(Fault(seed, config.steps, "network", None, str(error)))
            continue
        for kind, policy in policies.items():
            folder = policy_paths(path, config, kind)[seed]
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_policy(folder, policy)
