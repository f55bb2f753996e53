"""What `prune-rl evaluate RUN --as` does: a run's policies as their exported code plays them, beside the others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prune_rl.atomic_files import write_json
from prune_rl.envs.task import resolve_task
from prune_rl.evaluation.artefacts import Kind, artefact
from prune_rl.evaluation.evaluate import EVALUATION_ENVS, evaluate_policy
from prune_rl.export.latency import measure_latency
from prune_rl.export.policy import load_policy
from prune_rl.reporting.run_summary import write_summary
from prune_rl.runs.evaluation_file import own_policy, read_evaluation
from prune_rl.training.policy_export import policy_paths
from prune_rl.training.run_config import read_config
from prune_rl.training.trust import Trust


def evaluate_artefacts(run: Path, kinds: Sequence[Kind], console: Console, trust: Trust) -> None:
    """Play each seed's policy as C, ONNX or 8-bit integers on the episodes of evaluation.json, and add the returns.

    Raises ``RunDirectoryError`` as `prune_rl.training.run_evaluation.evaluate_run`, and ``ValueError`` where the run
    was not evaluated yet.
    """
    config = read_config(run)
    trust.check(run, config.env)
    evaluation = read_evaluation(run)
    task = resolve_task(config.env, config.backend, config.env_kwargs)
    config = config.resolved(task)
    for entry in evaluation["seeds"]:
        policy = load_policy(policy_paths(run, config)[entry["seed"]])
        own = own_policy(entry)
        if own is None:
            raise ValueError(
                f"{run} has no evaluation of its own policy: measure it with prune-rl evaluate --write"
            )
        for kind in kinds:
            played = artefact(policy, kind, task)
            episodes = evaluation["episodes"]
            measured = evaluate_policy(
                played,
                task,
                episodes=episodes,
                seed=evaluation["evaluation_seed"],
                num_envs=min(EVALUATION_ENVS, episodes),
            )
            entry["policies"][kind] = {
                **own,
                "returns": [float(value) for value in measured.returns],
                "lengths": [int(value) for value in measured.lengths],
                "bytes": played.nbytes,
                "latency_us": 1e6 * measure_latency(played),
            }
            means = statistics.mean(measured.returns), statistics.mean(own["returns"])
            console.print(
                f"seed {entry['seed']}: mean return over {episodes} episodes as {kind}: {means[0]:.1f}, "
                f"in NumPy: {means[1]:.1f}"
            )
    write_json(run / "evaluation.json", evaluation)
    write_summary(run)
