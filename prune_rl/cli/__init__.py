"""The command `prune-rl`: train, evaluate, choose, report, export, launch, status; one module each."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback

from rich.console import Console

from prune_rl.__main__ import INTERRUPTED
from prune_rl.cli.errors import print_error
from prune_rl.envs.errors import EnvironmentCrashed
from prune_rl.exit_status import ENVIRONMENT_CRASHED, USAGE_ERROR
from prune_rl.interrupts import Terminated, interrupt_behind, signals_as_interrupts
from prune_rl.plain_text import let_output_fall_back

COMMAND_NAMES = ("train", "evaluate", "choose", "report", "export", "launch", "status")
COMMANDS = """commands:
  train ENV       train, prune, compact and evaluate; given again, it continues an interrupted run
  evaluate RUN    measure the policies of a run again
  choose RUN      take another of the policies that a run kept while it narrowed
  report RUN...   one table over several runs
  export RUN      the compact policies as ONNX, C, StableHLO, or a folder for the Hugging Face hub
  launch SPEC     train a grid of runs from one file: on this machine, Slurm or Ray; given again, it continues
  status SPEC     how the runs of a grid are

Each command explains its options: prune-rl train --help"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; 1 if the environment's own code raised an exception (its traceback is shown); 2 for input that cannot work (said
    in one sentence); 3 if some seeds have no policy; 4 if training ended since no seed is left; 5 if another process
    of the same run ended; 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    let_output_fall_back()
    console = Console(highlight=False)
    parser = argparse.ArgumentParser(
        prog="prune-rl",
        usage="prune-rl [-h] {train,evaluate,choose,report,export,launch,status} ...",
        description="Train reinforcement-learning policies that shrink while they learn.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("COMMAND", choices=COMMAND_NAMES, help=argparse.SUPPRESS)
    try:
        # Each command imports what it needs; before signals become exceptions, which could be lost in an import.
        command = importlib.import_module(f"prune_rl.cli.{parser.parse_args(arguments[:1]).COMMAND}")
        with signals_as_interrupts():
            status: int = command.run(arguments[1:], console)
            return status
    except BaseException as error:
        interrupt = interrupt_behind(error)
        if interrupt is not None:
            console.print(INTERRUPTED)
            return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
        if isinstance(error, EnvironmentCrashed):
            # Not our mistake: its author needs the lines of their own code.
            traceback.print_exception(error.__cause__ or error)
            print_error(error)
            return ENVIRONMENT_CRASHED
        if isinstance(error, ValueError | OSError) and not os.environ.get("PRUNE_RL_TRACEBACK"):
            print_error(error)
            return USAGE_ERROR
        raise
