"""The command `prune-rl evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg


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
    as_: Annotated[tuple[Literal["onnx", "c", "int8"], ...], arg(name="as")] = ()
    """Instead, play the compact policies as ONNX Runtime, C, or C in 8-bit integers compute them, on the episodes of
    the run's evaluation, and write what they return beside the others. C is compiled with the system's cc."""
    trust: bool = False
    """Import the Python module of an environment module:Name-v0 that the run names."""
    env: str | None = None
    """The environment that the run must name; a module in it is trusted."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    options = tyro.cli(Evaluate, prog="prune-rl evaluate", args=arguments)
    from prune_rl.training.run_evaluation import evaluate_run
    from prune_rl.training.trust import Trust

    if options.as_:
        from prune_rl.training.artefact_evaluation import evaluate_artefacts

        if (options.episodes, options.seed) != (None, None):
            raise ValueError(
                "--as plays the episodes of the run's evaluation: leave out --episodes and --seed"
            )
        evaluate_artefacts(options.run, options.as_, console, Trust(options.trust, options.env))
        return 0
    video = options.video_path or (options.run / "video.mp4" if options.video else None)
    trust = Trust(options.trust, options.env)
    evaluate_run(options.run, options.episodes, options.seed, options.write, video, console, trust)
    return 0
