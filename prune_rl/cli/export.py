"""The command `prune-rl export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from prune_rl.export.export_policy import parse_metadata
from prune_rl.training.export_run import ExportRequest, To, export_run


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the compact policies of a run for other runtimes, with normalisation and action bounds inside.

    RUN may also be the folder of a policy. JAX is imported for stablehlo only.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run directory, or the folder of a policy."""
    to: tuple[To, ...] = ("onnx", "c")
    """Formats: onnx (policy.onnx), c (policy.h and policy.c, C99), stablehlo (policy.stablehlo), and hub-folder (hub/:
    a model card with all that the Hugging Face hub reads; nothing is uploaded)."""
    int8: bool = False
    """Write ONNX and C in 8-bit integers, too (policy_int8.onnx, policy_int8.h, policy_int8.c). The policy plays a few
    episodes to see how large activations are."""
    calibration_episodes: int = 10
    """How many, for --int8."""
    meta: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE ...")] = ()
    """More for the metadata of the files."""
    output: Path | None = None
    """Folder for the files; by default RUN/export."""
    trust: bool = False
    """Import the Python module of an environment module:Name-v0 that the run names."""


def run(arguments: list[str], console: Console) -> int:
    """Run it; returns the exit status."""
    options = tyro.cli(Export, prog="prune-rl export", args=arguments)
    request = ExportRequest(
        to=options.to,
        int8=options.int8,
        metadata=parse_metadata(options.meta),
        output=options.output,
        episodes=options.calibration_episodes,
        trusted=options.trust,
    )
    export_run(options.run, request, lambda text: console.print(escape(text), soft_wrap=True))
    return 0
