"""The command `prune-rl`: train, evaluate, report."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from prune_rl.learners import ppo
from prune_rl.training.config import Config
from prune_rl.training.presets import find_preset, load_preset

LEARNERS = ("ppo",)
USAGE_ERROR = 2


@dataclasses.dataclass(frozen=True)
class Train(Config):
    """Train a policy that shrinks while it learns, then prove that the small one works.

    Defaults shown are those of the preset for ENV and the learner, if there is one in experiments/presets. The same
    command given again continues a run that was interrupted.
    """

    env: Positional[str] = tyro.MISSING
    """Environment id: CartPole-v1, LunarLander-v2, or any Gymnasium id with Box observations."""
    learner: Annotated[ppo.Config, arg(name="")] = ppo.Config()
    """Hyperparameters of the learner."""
    run_dir: Path | None = None
    """Folder of the run; by default runs/ENV-ALGO-METHOD-SEED-HASH."""
    control: bool = True
    """Also train the dense control (same seeds and steps, method 'dense'), unless its run is already there."""
    preset: Path | None = None
    """TOML file with defaults, instead of the one in experiments/presets."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure the compact policies of a run again, in the real Gymnasium environment."""

    run: Positional[Path]
    """The run directory."""
    episodes: int | None = None
    """Fresh episodes per policy; by default as many as the run was configured with."""
    seed: int | None = None
    """Seed of the episodes; by default the run's evaluation seed."""
    write: bool = False
    """Replace the run's evaluation.json and summary by this measurement."""


@dataclasses.dataclass(frozen=True)
class Report:
    """One table over several runs: returns, what was removed, and paired differences between methods."""

    runs: Positional[tuple[Path, ...]]
    """Run directories."""
    output: Path | None = None
    """Write the Markdown here too."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot work (said in one sentence)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console(highlight=False)
    parser = argparse.ArgumentParser(
        prog="prune-rl",
        description="Train reinforcement-learning policies that shrink while they learn.",
        epilog="Each command explains itself: prune-rl train --help",
    )
    parser.add_argument("command", choices=("train", "evaluate", "report"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    commands = {"train": _train, "evaluate": _evaluate, "report": _report}
    try:
        return commands[parsed.command](parsed.rest, console)
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command continues from the last checkpoint")
        return 130


def _train(arguments: list[str], console: Console) -> int:
    from prune_rl.training.experiment import experiment

    config, options = parse_train(arguments)
    command = shlex.join(["prune-rl", "train", *arguments])
    experiment(config.resolved(), options.run_dir, options.control, command, console)
    return 0


def _evaluate(arguments: list[str], console: Console) -> int:
    options = tyro.cli(Evaluate, prog="prune-rl evaluate", args=arguments)
    from prune_rl.training.experiment import evaluate_run

    evaluate_run(options.run, options.episodes, options.seed, options.write, console)
    return 0


def _report(arguments: list[str], console: Console) -> int:
    options = tyro.cli(Report, prog="prune-rl report", args=arguments)
    from prune_rl.training.files import write_bytes
    from prune_rl.training.report import aggregate

    text = aggregate(list(options.runs))
    console.print(text, markup=False, soft_wrap=True)
    if options.output is not None:
        write_bytes(options.output, text.encode())
    return 0


def parse_train(arguments: list[str]) -> tuple[Config, Train]:
    """The configuration that a `prune-rl train` command line asks for: defaults, then its preset, then its flags.

    Returns it, and the parsed command with what does not belong to the configuration.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--algo", default="ppo")
    first.add_argument("--preset", type=Path)
    known, rest = first.parse_known_args(arguments)
    if known.algo not in LEARNERS:
        raise ValueError(f"there is no learner {known.algo!r} yet; choose one of {', '.join(LEARNERS)}")
    base, env = Config(), next((word for word in rest if not word.startswith("-")), None)
    preset = known.preset or (find_preset(env, known.algo) if env is not None else None)
    if preset is not None:
        base = load_preset(preset, base)
    fields = [field.name for field in dataclasses.fields(Config)]
    defaults = Train(**{name: getattr(base, name) for name in fields if name != "env"})
    parsed = tyro.cli(Train, prog="prune-rl train", args=arguments, default=defaults)
    return Config(**{name: getattr(parsed, name) for name in fields}), parsed


if __name__ == "__main__":
    sys.exit(main())
