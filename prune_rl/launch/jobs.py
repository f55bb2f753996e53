"""The jobs of a grid: one `prune-rl train` command each, checked before any of them starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prune_rl.envs.task import resolve_task
from prune_rl.launch.grid import Job
from prune_rl.launch.spec import Spec
from prune_rl.training.config import Config
from prune_rl.training.control import control_of
from prune_rl.training.make_engine import check_engine

# Of a command line without the word "train": the configuration, and whether its dense control is trained too.
Parse = Callable[[list[str]], tuple[Config, bool]]


def plan(spec: Spec, runs: Path, parse: Parse) -> list[Job]:
    """All jobs of a grid, in the order in which they are best started.

    Args:
        spec: the grid.
        runs: the folder of their run directories.
        parse: reads a command line as `prune-rl train` does.

    Raises:
        ValueError: a job cannot work. The message names the first such job, and has the sentence of `prune-rl train`.
    """
    jobs = []
    for env, algo, method in spec.cells:
        where = f"{env} {algo} {method}"
        try:
            words = flags(spec.options_of(env, algo, method))
            arguments = [env, "--algo", algo, "--method", method]
            config, control = parse([*arguments, *words])
            config = dataclasses.replace(config, seed=spec.grid.seed[0], seeds=spec.grid.seeds)
            task = resolve_task(config.env, config.backend, config.env_kwargs, config.seeds)
            config = config.resolved(task)
            check_engine(config, task)
            for seed in spec.grid.seed:
                each = dataclasses.replace(config, seed=seed).resolved(task)
                name = each.default_run_dir().name
                seeds = [] if each.seeds == 1 else ["--seeds", str(each.seeds)]
                where_to = ["--run-dir", str(runs / name), "--wait"]
                jobs.append(
                    Job(
                        name=name,
                        env=env,
                        algo=algo,
                        method=method,
                        seed=seed,
                        seeds=each.seeds,
                        steps=each.steps,
                        control=control_of(each).default_run_dir().name
                        if control and method != "dense"
                        else None,
                        arguments=(*arguments, "--seed", str(seed), *seeds, *words, *where_to),
                    )
                )
        except ValueError as error:
            raise ValueError(f"the job {where} cannot run: {error}") from error
    return in_order(jobs)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that others need come first: dense runs that are the control of others, then one run of each control.

    A run whose control is being trained waits for it. So the runs that share one start as far apart as they can.
    """
    controls = {job.control for job in jobs if job.control is not None}
    begun = {job.name for job in jobs}

    def place(job: Job) -> int:
        if job.name in controls:
            return 0
        if job.control is None or job.control in begun:
            return 2
        begun.add(job.control)
        return 1

    places = {job.name: place(job) for job in jobs}
    return sorted(jobs, key=lambda job: places[job.name])


def flags(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line; raises ``ValueError`` for a value that none of them can be.

    >>> flags({"steps": 1000, "hidden": [8, 8], "control": False, "prune.refit": False})
    ['--steps=1000', '--hidden', '8', '8', '--no-control', '--prune.no-refit']
    """
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            table, dot, field = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{table}{dot}no-{field}")
        elif isinstance(value, list):
            words += [f"--{name}", *(_word(name, each) for each in value)]
        else:
            words.append(f"--{name}={_word(name, value)}")
    return words


def _word(name: str, value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(
        f"option {name} must be a number, a text, true or false, or a list of such, got {value!r}"
    )
