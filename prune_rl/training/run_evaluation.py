"""The evaluation of a trained run: its frontier, the policies that it ships, and its summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import Task, resolve_task
from prune_rl.evaluation.evaluate import EVALUATION_ENVS, evaluate_policy
from prune_rl.evaluation.video import check_video, video_paths, write_video
from prune_rl.export.latency import measure_latency
from prune_rl.export.policy import Policy, load_policy
from prune_rl.reporting.frontier_choice import Wish
from prune_rl.reporting.run_summary import write_summary
from prune_rl.reporting.statistics import mean
from prune_rl.runs.directory import RunDirectoryError
from prune_rl.runs.evaluation_file import read_evaluation
from prune_rl.runs.frontier import FrontierFolder
from prune_rl.training.config import Config
from prune_rl.training.control import control_of
from prune_rl.training.engines.timing import Timing
from prune_rl.training.frontier import choose_policies, measure_frontier
from prune_rl.training.loop import TIMING
from prune_rl.training.policy_export import policy_paths, seeds_with_policy
from prune_rl.training.run_config import read_config
from prune_rl.training.trust import Trust


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
        of_the_end = {"steps": config.steps, "averaged": 1}
        about = of_the_end | load_policy(folders["compact"]).metadata
        if config.learner.prune is not None and of_the_end.items() <= about.items():
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
        means = ", ".join(f"{name} {mean(measured[name]['returns']):.1f}" for name in measured)
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
