"""The command `prune-rl`: train, evaluate, choose, report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import io
import os
import re
import shlex
import signal
import sys
import traceback
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from prune_rl import compilation_cache
from prune_rl.__main__ import INTERRUPTED
from prune_rl.envs.errors import EnvironmentCrashed
from prune_rl.interrupts import Terminated, signals_as_interrupts
from prune_rl.learners.registry import LEARNERS
from prune_rl.methods.registry import METHODS
from prune_rl.plain_text import let_output_fall_back
from prune_rl.training.config import Config
from prune_rl.training.presets import find_preset, load_preset

COMMANDS = """commands:
  train ENV       train, prune, compact and evaluate; given again, it continues an interrupted run
  evaluate RUN    measure the policies of a run again
  choose RUN      take another of the policies that a run kept while it narrowed
  report RUN...   one table over several runs

Each command explains its options: prune-rl train --help"""
ENVIRONMENT_CRASHED = 1
USAGE_ERROR = 2
# A seed has no policy, since its environment gave values that nothing can be learned from, or its training diverged.
SEED_WITHOUT_POLICY = 3


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
    preset: Path | None = None
    """TOML file with defaults, instead of the one in experiments/presets."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the compact policies of a run again, in the real Gymnasium environment."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run directory."""
    episodes: int | None = None
    """Fresh episodes per policy; by default as many as the run was configured with."""
    seed: int | None = None
    """Seed of the episodes; by default the run's evaluation seed."""
    write: bool = False
    """Replace the run's evaluation.json and summary by this measurement."""
    video: bool = False
    """Also film the first episode of each compact policy: RUN/video.mp4, or RUN/video/seed_K.mp4 for several seeds."""
    video_path: Path | None = None
    """Film into this file instead, .mp4 or .gif (FILE/seed_K.gif without FILE's suffix, for several seeds)."""
    trust: bool = False
    """Import the Python module of an environment module:Name-v0 that the run names."""
    env: str | None = None
    """The environment that the run must name; a module in it is trusted."""


@dataclasses.dataclass(frozen=True)
class Choose:
    """Make another of the policies that a run kept while it narrowed the one in its folder policy/, and evaluate it.

    Give one of the four conditions. frontier.png in the run's folder shows what there is to choose from.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run directory."""
    neurons: int | None = None
    """The best policy with at most so many hidden neurons."""
    bytes: int | None = None
    """The best policy of at most so many bytes."""
    least_return: Annotated[float | None, arg(name="return")] = None
    """The smallest policy that returns at least so much."""
    tolerance: float | None = None
    """The smallest policy that loses at most this share of the dense control's return, or of the run's best return
    where there is no control."""
    trust: bool = False
    """Import the Python module of an environment module:Name-v0 that the run names."""
    env: str | None = None
    """The environment that the run must name; a module in it is trusted."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One table over several runs: returns, what was removed, and paired differences between methods."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...")]
    """Run directories."""
    output: Path | None = None
    """Write the Markdown here too."""
    picture: Path | None = None
    """Draw return against hidden neurons into this PNG: the frontiers of the runs, and the policies of those that have
    none."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; 1 if the environment's own code raised an exception (its traceback is shown); 2 for input that cannot work (said
    in one sentence); 3 if a seed has no policy; 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    let_output_fall_back()
    console = Console(highlight=False)
    parser = argparse.ArgumentParser(
        prog="prune-rl",
        usage="prune-rl [-h] {train,evaluate,choose,report} ...",
        description="Train reinforcement-learning policies that shrink while they learn.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = {"train": _train, "evaluate": _evaluate, "choose": _choose, "report": _report}
    parser.add_argument("COMMAND", choices=commands, help=argparse.SUPPRESS)
    try:
        with signals_as_interrupts():
            command = parser.parse_args(arguments[:1]).COMMAND
            return commands[command](arguments[1:], console)
    except EnvironmentCrashed as error:
        # Not our mistake: its author needs the lines of their own code.
        traceback.print_exception(error.__cause__ or error)
        _error(error)
        return ENVIRONMENT_CRASHED
    except (ValueError, OSError) as error:
        if os.environ.get("PRUNE_RL_TRACEBACK"):
            raise
        _error(error)
        return USAGE_ERROR
    except KeyboardInterrupt as error:
        console.print(INTERRUPTED)
        return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _sentence(error: Exception) -> str:
    """What is said of an error that ends a command."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f" for {error.filename}" if error.filename else ""
        return (
            f"no space is left on the disk{what}: free some, then give the same command again, which continues from "
            "the last checkpoint"
        )
    return str(error)


def _error(error: Exception) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(_sentence(error))}")


def _train(arguments: list[str], console: Console) -> int:
    from prune_rl.training.experiment import experiment
    from prune_rl.training.faults import TrainingFailed

    config, options = parse_train(arguments)
    note = compilation_cache.enable()
    if note:
        console.print(f"[yellow]note:[/] {escape(note)}")
    command = shlex.join(["prune-rl", "train", *arguments])
    try:
        complete = experiment(config, options.run_dir, options.control, command, console, options.extend)
    except TrainingFailed as error:
        _error(error)
        return SEED_WITHOUT_POLICY
    return 0 if complete else SEED_WITHOUT_POLICY


def _evaluate(arguments: list[str], console: Console) -> int:
    options = tyro.cli(Evaluate, prog="prune-rl evaluate", args=arguments)
    from prune_rl.training.experiment import Trust, evaluate_run

    video = options.video_path or (options.run / "video.mp4" if options.video else None)
    trust = Trust(options.trust, options.env)
    evaluate_run(options.run, options.episodes, options.seed, options.write, video, console, trust)
    return 0


def _choose(arguments: list[str], console: Console) -> int:
    options = tyro.cli(Choose, prog="prune-rl choose", args=arguments)
    from prune_rl.training.experiment import Trust, choose_run
    from prune_rl.training.frontier import Wish

    wish = Wish(options.tolerance, options.neurons, options.bytes, options.least_return)
    choose_run(options.run, wish, console, Trust(options.trust, options.env))
    return 0


def _report(arguments: list[str], console: Console) -> int:
    options = tyro.cli(Report, prog="prune-rl report", args=arguments)
    from prune_rl.atomic_files import write_bytes
    from prune_rl.reporting.compare_runs import aggregate

    text = aggregate(list(options.runs))
    console.print(text, markup=False, soft_wrap=True)
    if options.output is not None:
        write_bytes(options.output, text.encode())
    if options.picture is not None:
        from prune_rl.reporting.compare_frontiers import compare_frontiers

        write_bytes(options.picture, compare_frontiers(list(options.runs)))
    return 0


def parse_train(arguments: list[str]) -> tuple[Config, Train]:
    """The configuration that a `prune-rl train` command line asks for: defaults, then its preset, then its flags.

    Returns it, and the parsed command with what does not belong to the configuration.
    """
    first = argparse.ArgumentParser(prog="prune-rl train", add_help=False, allow_abbrev=False)
    first.add_argument("--algo", default=Config.algo)
    first.add_argument("--preset", type=Path)
    known, _ = first.parse_known_args(arguments)
    base = Config(algo=known.algo)
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
    return config, parsed


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
        registry=_with_types(
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


def _with_types(types: dict[type, dict[str, Any]]) -> ConstructorRegistry:
    """Rules for tyro: fields of these dataclasses have other types, and the help texts of all have no line breaks."""
    registry = ConstructorRegistry()
    nested = False

    @registry.primitive_rule
    def whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: _whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal nested
        if nested or not dataclasses.is_dataclass(info.type):
            return None
        nested = True  # the rules asked here are tyro's own
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            nested = False
        assert isinstance(spec, StructConstructorSpec)
        changed = types.get(info.type, {})
        fields = (
            dataclasses.replace(
                field, type=changed.get(field.name, field.type), helptext=functools.partial(_help, field)
            )
            for field in spec.fields
        )
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _whole_number(word: str) -> int:
    """Also of "1e6" and "1_000_000"; raises ``ValueError`` for 1.5, and for what is no number."""
    try:
        return int(word)
    except ValueError:
        number = Decimal(word) if re.fullmatch(r"[+-]?[\d_]*\.?\d*[eE]\+?\d{1,2}", word) else None
        if number is None or number != int(number):
            raise ValueError(f"must be a whole number, such as 1000000 or 1e6, got {word!r}") from None
        return int(number)


def _help(field: StructFieldSpec) -> str | None:
    text = field.helptext() if callable(field.helptext) else field.helptext
    return None if text is None else " ".join(text.split())


def _fields(config: Config) -> dict[str, Any]:
    """The fields of ``Config`` and their values."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}


if __name__ == "__main__":
    sys.exit(main())
