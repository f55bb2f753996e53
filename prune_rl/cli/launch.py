"""The command `prune-rl launch`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from prune_rl.exit_status import NO_SEED_LEFT, SEED_WITHOUT_POLICY
from prune_rl.training.config import Config


@dataclasses.dataclass(frozen=True)
class Launch:
    """Train a grid of runs, environments × methods × seeds, from one TOML file, and make one table of their results.

    Each job is one prune-rl train command in a process of its own. Given again, the command keeps finished jobs,
    continues those that were interrupted or killed, and tries failed ones once more.
    """

    spec: Annotated[Positional[Path], arg(metavar="SPEC")]
    """TOML file of the grid, see docs/grids.md."""
    engine: Literal["local", "slurm", "ray"] | None = None
    """Where jobs run, instead of what the file says: local (processes of this machine, one per GPU, or as many as its
    cores and memory allow), slurm (the queue of a cluster), ray (a Ray cluster)."""
    max_jobs: int | None = None
    """Jobs at a time, instead of what the file says."""
    output: Path | None = None
    """Folder of the grid, instead of what the file says; by default runs/ and the name of the file."""
    wait: bool = False
    """With slurm: wait until all jobs have ended. Otherwise the command returns once they are in the queue; given again
    later, it writes the results."""
    dry_run: bool = False
    """Check everything and print the commands of the jobs; start nothing."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status: 0, 3 if a job failed or a seed has no policy, 4 if no job is done."""
    options = tyro.cli(Launch, prog="prune-rl launch", args=arguments)
    from prune_rl.launch.grid import Grid, runs_of
    from prune_rl.launch.jobs import plan
    from prune_rl.launch.launcher import launch
    from prune_rl.launch.spec import folder_of, read_spec
    from prune_rl.runs.faults_file import read_faults

    spec = read_spec(options.spec)
    if options.max_jobs is not None and options.max_jobs < 1:
        raise ValueError(f"--max-jobs must be >= 1, got {options.max_jobs}")
    engine = dataclasses.replace(
        spec.engine,
        kind=options.engine or spec.engine.kind,
        max_jobs=options.max_jobs or spec.engine.max_jobs,
    )
    folder = folder_of(options.spec, spec, options.output)
    grid = Grid(folder, tuple(plan(spec, runs_of(folder), _parse)))
    if options.dry_run:
        for job in grid.jobs:
            console.print(escape(job.command), soft_wrap=True)
        return 0
    grid.write(Path.cwd())
    states = launch(grid, engine, console, wait=options.wait)
    unfinished = [state for state in states if state.state in ("failed", "stopped", "waiting")]
    done = [state for state in states if state.state == "done"]
    if unfinished and len(unfinished) == len(states):
        return NO_SEED_LEFT
    faults = any(read_faults(grid.run(state.job)) for state in done)
    return SEED_WITHOUT_POLICY if unfinished or faults else 0


def _parse(arguments: list[str]) -> tuple[Config, bool]:
    """What `prune-rl train` makes of a command line; what it says to a wrong one is a ``ValueError`` here."""
    from prune_rl.cli.train import parse_train

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config, train = parse_train(arguments)
    except SystemExit:
        raise ValueError(_sentence(said.getvalue())) from None
    if train.export:
        from prune_rl.training.export_run import ExportRequest

        ExportRequest(train.export, trusted=True).check()
    return config, train.control


def _sentence(text: str) -> str:
    """What tyro says of a wrong command line, in one line: the paragraph between the title and the first rule.

    The title is in the frame, or above a rule where the output has no characters for frames.
    """
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        words = line.strip().strip("│|").strip()
        if words.startswith(("╭", "╰")) or (words and set(words) <= set("─-")):
            paragraphs.append([])
        elif words:
            paragraphs[-1].append(words)
    sentences = [" ".join(words) for words in paragraphs]
    return (sentences[1] if len(sentences) > 1 else sentences[0]) or "prune-rl train refuses its options"
