"""The command `prune-rl train`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from prune_rl import compilation_cache
from prune_rl.cli.deterministic import make_deterministic
from prune_rl.cli.errors import print_error
from prune_rl.cli.flags import with_types
from prune_rl.exit_status import NO_SEED_LEFT, OTHER_PROCESS_ENDED, SEED_WITHOUT_POLICY, USAGE_ERROR
from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.processes.group import FirstProcessError, ProcessGroup, ProcessLost
from prune_rl.processes.join import Distributed, joined
from prune_rl.processes.watch import leave_at_once
from prune_rl.training.config import Config
from prune_rl.training.engines.seed_devices import use_all_cores
from prune_rl.training.export_run import ExportRequest, To, export_run
from prune_rl.training.presets import find_preset, load_preset
from prune_rl.training.sweep_values import flags_of, read_axes


@dataclasses.dataclass(frozen=True)
class Train(Config):
    """Train a policy that shrinks while it learns, then prove that the small one works.

    Defaults shown are those of the preset for ENV and the learner, if there is one in experiments/presets. The same
    command given again continues a run that was interrupted.
    """

    env: Annotated[Positional[str], arg(metavar="ENV")] = tyro.MISSING
    """Environment id: CartPole-v1, LunarLander-v2, Hopper-v3, Walker2d-v3, any Gymnasium id with Box observations (or a
    Dict or Tuple of such) and Discrete or Box actions, or module:Id for one that a module of yours registers."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/ENV-ALGO-METHOD-SEED-HASH."""
    control: bool = True
    """Also train the dense control (same seeds and steps, method dense), unless its run is already there."""
    like: Path | None = None
    """For method small: a run whose compact policy the actor shall be as wide as, beside a critic as wide as that
    run's."""
    extend: Path | None = None
    """A finished run with the same options but fewer --steps, or another evaluation: training goes on from its end, in
    a folder of its own."""
    wait: bool = False
    """Where another process trains in the same folder, wait for it to end instead of refusing."""
    export: tuple[To, ...] = ()
    """Also write the compact policies for other runtimes into RUN/export, as prune-rl export does."""
    sweep: Annotated[tuple[str, ...] | None, arg(metavar="[FIELD=VALUE,VALUE,… ...]")] = None
    """Train a run for every value of these fields of the learner, such as learning_rate=1e-4,1e-3 (of several fields:
    for every combination), each in a folder of its own, and compare them; without a field, compare the seeds. Numbers
    that change neither shapes nor the program train in one program. May be given several times."""
    deterministic: bool = False
    """On a GPU: take operations that give the same bits in every run, which may be slower. Sets
    --xla_gpu_deterministic_ops in XLA_FLAGS; a CPU needs no such flag."""
    preset: Path | None = None
    """TOML file with defaults, instead of the one in experiments/presets."""
    distributed: bool = False
    """Share the seeds with the other processes of this job, which run the same command: on a Slurm, Open MPI or
    Kubernetes cluster or a TPU pod, JAX finds them."""
    coordinator: str | None = None
    """With --distributed where no cluster says so: HOST:PORT of process 0."""
    num_processes: int | None = None
    """Likewise: how many processes there are."""
    process_id: int | None = None
    """Likewise: the number of this one, from 0."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    from prune_rl.training.engines.faults import TrainingFailed

    config, options = parse_train(arguments)
    if options.deterministic:
        make_deterministic()
    request = ExportRequest(options.export, trusted=True)
    if options.export:
        request.check()
    try:
        with joined(_distributed(options)) as group:
            if not group.is_first:
                console = Console(quiet=True)
            try:
                return _train(config, options, request, arguments, console, group)
            except TrainingFailed as error:
                if group.is_first:
                    print_error(error)
                return NO_SEED_LEFT
    except FirstProcessError:
        return USAGE_ERROR  # process 0 says it
    except ProcessLost as error:
        print_error(error)
        if error.silent:
            leave_at_once()
        return OTHER_PROCESS_ENDED


def _train(
    config: Config,
    options: Train,
    request: ExportRequest,
    arguments: list[str],
    console: Console,
    group: ProcessGroup,
) -> int:
    from prune_rl.training.experiment import experiment
    from prune_rl.training.sweep import sweep

    note = compilation_cache.enable()
    if note:
        console.print(f"[yellow]note:[/] {escape(note)}")
    command = shlex.join(["prune-rl", "train", *_joined_sweeps(_of_one_process(arguments))])
    if options.sweep is not None:
        axes = read_axes(options.sweep, config)
        use_all_cores(config.seeds * math.prod(len(axis.values) for axis in axes) // group.size)
        complete = sweep(config, axes, options.run_dir, options.control, command, console, group)
        return 0 if complete else SEED_WITHOUT_POLICY
    use_all_cores(config.seeds // group.size)
    complete = experiment(
        config, options.run_dir, options.control, command, console, options.extend, options.wait, group
    )
    if options.export and group.is_first:
        path = options.run_dir or config.resolved().default_run_dir()
        export_run(path, request, lambda text: console.print(escape(text), soft_wrap=True))
    return 0 if complete else SEED_WITHOUT_POLICY


def _distributed(options: Train) -> Distributed | None:
    """How to find the other processes; None if there are none. Raises ``ValueError`` for flags without their switch."""
    found = Distributed(options.coordinator, options.num_processes, options.process_id)
    if options.distributed:
        found.check()
        return found
    for name, value in vars(found).items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for several processes: give --distributed too")
    return None


def _of_one_process(arguments: list[str]) -> list[str]:
    """The command line for a single process, which leaves the same."""
    words, kept = list(arguments), list[str]()
    while words:
        word = words.pop(0)
        name, _, value = word.replace("_", "-").partition("=")
        if name in ("--coordinator", "--num-processes", "--process-id"):
            if not value:
                del words[:1]
        elif name not in ("--distributed", "--no-distributed"):
            kept.append(word)
    return kept


def parse_train(arguments: list[str]) -> tuple[Config, Train]:
    """The configuration that a `prune-rl train` command line asks for: defaults, then its preset, then its flags.

    Returns it, and the parsed command with what does not belong to the configuration.
    """
    first = argparse.ArgumentParser(prog="prune-rl train", add_help=False, allow_abbrev=False)
    first.add_argument("--algo", default=Config.algo)
    first.add_argument("--preset", type=Path)
    known, _ = first.parse_known_args(arguments)
    base = Config(algo=known.algo)
    arguments = _joined_sweeps(arguments)
    env = _environment_of(arguments, base)
    preset = known.preset or (find_preset(env, known.algo) if env is not None else None)
    if preset is not None:
        base = load_preset(preset, base)
    if base.algo != known.algo:
        raise ValueError(
            f"preset {preset} is one for --algo {base.algo}, not for {known.algo}: give that flag"
        )
    parsed = _parse(arguments, base)
    config = Config(**_fields(parsed))
    if parsed.like is not None:
        from prune_rl.training.small_network import as_wide_as

        config = as_wide_as(config, parsed.like)
    if parsed.sweep is not None:
        _check_sweep(parsed, arguments)
    return config, parsed


def _joined_sweeps(arguments: list[str]) -> list[str]:
    """The arguments with the fields of all `--sweep` behind one at the end: of a flag given twice the last counts.

    A word without "=" behind the flag is none of its fields, but ENV.
    """
    words, kept, fields, given = list(arguments), list[str](), list[str](), False
    while words:
        word = words.pop(0)
        if word == "--sweep":
            given = True
            while words and "=" in words[0] and not words[0].startswith("-"):
                fields.append(words.pop(0))
        elif word.startswith("--sweep="):
            given = True
            fields.append(word.removeprefix("--sweep="))
        else:
            kept.append(word)
    return [*kept, "--sweep", *fields] if given else kept


def _check_sweep(parsed: Train, arguments: list[str]) -> None:
    """Raise ``ValueError`` for flags that exclude `--sweep`, or give a single value to a swept field."""
    for name in ("extend", "export", "like", "wait", "shard_envs"):
        if getattr(parsed, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is for a single run, and --sweep makes several: leave one of them out "
                "(each folder of a sweep is a run directory)"
            )
    flags = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    for axis in read_axes(parsed.sweep or (), Config(algo=parsed.algo, learner=parsed.learner)):
        flag = flags_of({axis.field: axis.values[0]})[0]
        if flag in flags:
            raise ValueError(
                f"{axis.field} has the values of --sweep and one of {flag}: leave one of them out"
            )


def _environment_of(arguments: list[str], base: Config) -> str | None:
    """ENV of a command line: which word it is, only the whole parser knows. None where that fails."""
    words = [word for word in arguments if word not in ("-h", "--help")]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return _parse(words, base).env
    return None


def _parse(arguments: list[str], base: Config) -> Train:
    """A command line whose defaults are ``base``, with the flags of the learner of ``base``."""
    learner = type(base.learner)
    return tyro.cli(
        Train,
        prog="prune-rl train",
        args=arguments,
        default=Train(**{**_fields(base), "env": tyro.MISSING}),
        # Where a value is one of several dataclasses, or a dataclass or None, its flags are those of the default.
        config=(tyro.conf.AvoidSubcommands,),
        registry=with_types(
            {
                Train: {
                    "algo": Literal[tuple(LEARNERS)],
                    "method": Literal[tuple(METHODS)],
                    "learner": Annotated[learner, arg(name="")],
                    "extends": tyro.conf.Suppress[tuple[int, ...]],
                },
                learner: {"total_timesteps": Annotated[int, arg(name="steps")]},
            }
        ),
    )


def _fields(config: Config) -> dict[str, Any]:
    """The fields of ``Config`` and their values."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
