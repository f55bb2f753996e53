"""What `prune-rl train` does: train the run and its dense control, evaluate all policies, and write the summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import Task, resolve_task
from prune_rl.evaluation.evaluate import EVALUATION_ENVS, evaluate_policy
from prune_rl.evaluation.video import check_video, video_paths, write_video
from prune_rl.export.latency import measure_latency
from prune_rl.export.policy import Policy, load_policy
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.reporting.run_summary import write_summary
from prune_rl.runs.directory import RunDirectoryError
from prune_rl.runs.evaluation_file import read_evaluation
from prune_rl.runs.faults_file import read_faults
from prune_rl.runs.frontier import FrontierFolder
from prune_rl.training.config import Config
from prune_rl.training.control import control_command, control_of
from prune_rl.training.control_start import forget_dense_part, start_of_control
from prune_rl.training.engines.faults import TrainingFailed
from prune_rl.training.engines.timing import Timing
from prune_rl.training.extension import extended_config, extension
from prune_rl.training.frontier import choose_policies, measure_frontier
from prune_rl.training.frontier_choice import Wish
from prune_rl.training.loop import TIMING, check_engine, check_processes, is_trained, make_engine, train
from prune_rl.training.policy_export import policy_paths, seeds_with_policy
from prune_rl.training.run_config import read_config
from prune_rl.training.trust import Trust as Trust


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
    task = resolve_task(config.env, config.backend, config.env_kwargs)
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


def evaluate_timed(config: Config, task: Task, path: Path, control: Path | None, console: Console) -> None:
    """Measure the frontier, choose from it if asked, and ``evaluate``; the seconds go into the run's timing.json."""
    timing, prune = Timing.read(path / TIMING), config.learner.prune
    timing.total -= timing.evaluation
    timing.evaluation = 0.0
    with timing.measured("evaluation"):
        if FrontierFolder(path).steps():
            measure_frontier(config, task, path, control, console)
            # Where nothing is pruned, all candidates are of one size: the best is chosen.
            tolerance = 0.0 if prune is None else prune.tolerance
            if tolerance is not None:
                choose_policies(config, path, Wish(tolerance=tolerance), console)
        evaluate(config, task, path, control, console, write=True)
    timing.total += timing.evaluation
    write_json(path / TIMING, timing.to_json())


def evaluate(
    config: Config, task: Task, path: Path, control: Path | None, console: Console, *, write: bool
) -> dict[str, Any]:
    """Play ``config.episodes`` fresh episodes with every policy of the run in the Gymnasium environment.

    The episodes' seeds are the same for every policy. ``control`` is the run directory of the dense control, if there
    is one. Returns the content of evaluation.json, and writes it if asked.
    """
    result: dict[str, Any] = {
        "env_id": config.env,
        "episodes": config.episodes,
        "evaluation_seed": config.evaluation_seed,
        "seeds": [],
    }
    for seed in seeds_with_policy(path, config):
        folders = {"compact": policy_paths(path, config)[seed]}
        wide = load_policy(policy_paths(path, config, "wide")[seed])
        # The masked network is that of the end of training: the same function only as the policy of that time.
        if (
            config.learner.prune is not None
            and load_policy(folders["compact"]).metadata.get("steps", config.steps) == config.steps
        ):
            folders = {"masked": policy_paths(path, config, "wide")[seed], **folders}
        if config.method == "dense":
            folders = {"dense": folders["compact"]}
        elif control is not None and policy_paths(control, config)[seed].exists():
            folders["dense"] = policy_paths(control, config)[seed]
        policies = {name: load_policy(folder) for name, folder in folders.items()}
        if config.learner.prune is None and "dense" in policies:
            wide = policies["dense"]
        measured = {name: measure(policy, wide, config, task) for name, policy in policies.items()}
        result["seeds"].append({"seed": seed, "policies": measured})
        means = ", ".join(f"{name} {_mean(measured[name]['returns']):.1f}" for name in measured)
        console.print(f"seed {seed}: mean return over {config.episodes} episodes: {means}")
    if write:
        _keep_control(result, path / "evaluation.json")
        write_json(path / "evaluation.json", result)
    return result


def _keep_control(result: dict[str, Any], earlier: Path) -> None:
    """Where the control's run is gone (a moved folder, say), what it returned in these same episodes still holds."""
    try:
        before = read_evaluation(earlier.parent)
    except ValueError:  # none yet, or a damaged one, which this one replaces
        return
    if any(before.get(key) != result[key] for key in ("env_id", "episodes", "evaluation_seed")):
        return
    measured = {entry["seed"]: entry["policies"] for entry in before["seeds"]}
    for entry in result["seeds"]:
        if "dense" in measured.get(entry["seed"], {}):
            entry["policies"].setdefault("dense", measured[entry["seed"]]["dense"])


def measure(policy: Policy, wide: Policy, config: Config, task: Task) -> dict[str, Any]:
    """Returns, size and latency of one policy; shares are of the network ``wide``."""
    played = evaluate_policy(
        policy,
        task,
        episodes=config.episodes,
        seed=config.evaluation_seed,
        num_envs=min(EVALUATION_ENVS, config.episodes),
    )
    return {
        "returns": [float(value) for value in played.returns],
        "lengths": [int(value) for value in played.lengths],
        "widths": list(policy.widths),
        "neurons": {"kept": policy.num_neurons, "total": wide.num_neurons},
        "weights": {"kept": policy.num_weights, "total": wide.num_weights},
        "macs": policy.macs,
        "bytes": policy.nbytes,
        "largest_weight": max(float(np.abs(x).max(initial=0.0)) for layer in policy.layers for x in layer),
        "latency_us": 1e6 * measure_latency(policy),
    }


def evaluate_run(
    run: Path,
    episodes: int | None,
    seed: int | None,
    write: bool,
    video: Path | None,
    console: Console,
    trust: Trust,
) -> dict[str, Any]:
    """Measure a run's policies again; raises ``RunDirectoryError`` if ``run`` is no run directory, or not finished.

    It raises that, too, if the run names an environment whose module ``trust`` does not cover, and imports nothing.
    With ``video``, a file's name, they are filmed first: what cannot be filmed is then known before the long part.
    """
    recorded = read_config(run)
    trust.check(run, recorded.env)
    task = resolve_task(recorded.env, recorded.backend, recorded.env_kwargs)
    recorded = recorded.resolved(task)
    config = dataclasses.replace(
        recorded,
        episodes=recorded.episodes if episodes is None else episodes,
        evaluation_seed=recorded.evaluation_seed if seed is None else seed,
    ).resolved(task)
    for seed_there in seeds_with_policy(run, config):
        folder = policy_paths(run, config)[seed_there]
        if not folder.exists():
            raise RunDirectoryError(
                f"{run} has no {folder.relative_to(run)} yet: finish its training with the command that began it"
            )
    if video is not None:
        film(config, task, run, video, console)
    control = run.parent / control_of(recorded).default_run_dir().name
    result = evaluate(config, task, run, control, console, write=write)
    if write:
        write_summary(run)
    return result


def choose_run(run: Path, wish: Wish, console: Console, trust: Trust) -> None:
    """Make other policies of a run's frontier those in ``policy/``, evaluate them and write the summary anew.

    Raises ``RunDirectoryError`` as ``evaluate_run``, ``ValueError`` if the wish cannot be met.
    """
    config = read_config(run)
    trust.check(run, config.env)
    choose_policies(config, run, wish, console)
    evaluate_run(run, None, None, True, None, console, trust)


def film(config: Config, task: Task, run: Path, video: Path, console: Console) -> None:
    """Write a clip of each compact policy in the first episode of its evaluation; where to, ``video_paths`` says."""
    paths = video_paths(video, config.all_seeds)
    for path in paths.values():
        check_video(path)
    for seed in seeds_with_policy(run, config):
        policy = load_policy(policy_paths(run, config)[seed])
        clip = write_video(policy, task, paths[seed], seed=config.evaluation_seed)
        text = f"seed {seed}: return {clip.returns[0]:.1f} in the first episode, filmed in {clip.path}"
        console.print(text, markup=False, soft_wrap=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
