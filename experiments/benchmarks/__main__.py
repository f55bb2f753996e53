"""Measure, and write the tables: `make bench ARGS="--only bare,pruning --repeats 3"`."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Callable
from typing import Any

import tyro
from rich.console import Console

from experiments.benchmarks.options import Options
from experiments.benchmarks.table import Section, markdown, to_json
from prune_rl import compilation_cache
from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.cpu_cores import available_cores
from prune_rl.runs.versions import current_versions

MODULES = {
    "bare": "bare_updates",
    "cartpole": "native_cartpole",
    "rollout": "host_rollout",
    "pruning": "pruning_overhead",
    "fresh": "fresh_processes",
    "export": "exported_policies",
    "sbx": "against_sbx",
    "rltools": "against_rltools",
    "runs": "whole_runs",
}


def header() -> dict[str, Any]:
    """Machine, versions and commit; no path and no name of a host."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"versions": current_versions(), "cores": available_cores(), "load_at_start": load}


def header_lines(header: dict[str, Any]) -> list[str]:
    """The same for readers."""
    versions = header["versions"]
    git = versions["git"] or {"commit": "unknown", "dirty": None}
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in ("jax", "optax", "gymnasium", "mujoco", "envpool", "numpy")
        if versions[name]
    )
    load = "" if header["load_at_start"] is None else f", load {header['load_at_start']:.1f} before the start"
    return [
        f"- machine: {header['cores']} cores of {versions['cpu']}, JAX on {versions['device']['platform']}{load}",
        f"- versions: Python {versions['python']}, {packages}",
        f"- commit: {git['commit']}{' and uncommitted changes' if git['dirty'] else ''}",
        "",
        "Everything in a section ran in turns; a ratio is the median over the repeats, beside it the lowest and the "
        "highest one. Absolute figures hold for this machine only.",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure section by section; the files are written anew after each, so that nothing is lost by an interruption."""
    options = tyro.cli(Options, prog="python -m experiments.benchmarks", args=arguments)
    try:
        names = options.sections()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    console = Console(highlight=False, soft_wrap=True)
    note = compilation_cache.enable()
    if note:
        console.print(note, markup=False)
    options.output.mkdir(parents=True, exist_ok=True)
    found = header()
    sections: list[Section] = []
    for name in names:
        started = datetime.datetime.now()
        module = importlib.import_module(f"experiments.benchmarks.{MODULES[name]}")
        measure: Callable[[Options], list[Section]] = module.measure
        new = measure(options)
        sections += new
        page = markdown(sections, header_lines(found))
        write_bytes(options.output / "benchmarks.md", page.encode())
        write_json(options.output / "benchmarks.json", to_json(sections, found))
        console.print(markdown(new, []).partition("\n")[2], markup=False)
        seconds = (datetime.datetime.now() - started).total_seconds()
        console.print(f"section {name} took {seconds:.0f} s\n", markup=False)
    console.print(f"written to {options.output}", markup=False)


if __name__ == "__main__":
    main()
