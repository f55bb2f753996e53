"""`python -m prune_rl.bench_device`, which `make bench-device` runs. Needs the installed package and no network."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import cattrs
import tyro

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.bench_device import process
from prune_rl.bench_device.findings import findings
from prune_rl.bench_device.options import Options
from prune_rl.bench_device.report import markdown
from prune_rl.bench_device.sections import DEVICE, Section, sections_of
from prune_rl.exit_status import NO_ACCELERATOR, NOT_ALL_MEASURED, USAGE_ERROR

FORMAT_VERSION = 1
# Seconds in which JAX has to find its devices.
START_UP = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the report.

    Returns the exit status: 0; 2 for options that cannot work; 6 without an accelerator; 7 if something failed, which
    the report names. What lacks time or an extra is reported, and no failure.
    """
    options = tyro.cli(Options, prog="python -m prune_rl.bench_device", args=arguments)
    begin = time.monotonic()
    try:
        options.check()
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    (found,) = process.run(DEVICE, options, min(START_UP, options.time_limit), lambda row: None)
    if found["status"] != "measured":
        reason = found.get("error", f"no answer within {min(START_UP, options.time_limit):.0f} s")
        print(f"error: JAX does not find its devices: {reason}", file=sys.stderr)
        return NOT_ALL_MEASURED
    if found["backend"] == "cpu" and not options.allow_cpu:
        print(
            "error: JAX finds no accelerator on this machine, so there is nothing to measure; install JAX for it "
            "(pip install 'prune_rl[cuda]'), or try the command on the CPU with --allow-cpu",
            file=sys.stderr,
        )
        return NO_ACCELERATOR
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "device": found["device"],
        "versions": found["versions"],
        "matmul_precision": found["matmul_precision"],
        "options": cattrs.unstructure(options) | {"output": None},
        "sections": [],
    }
    print(f"{found['device']['count']} × {found['device']['kind']}, at most {options.time_limit:.0f} s")
    sections = sections_of(options)
    for number, section in enumerate(sections):
        left = options.time_limit - (time.monotonic() - begin)
        share = left * section.weight / sum(each.weight for each in sections[number:])
        print(f"{section.title} (at most {share:.0f} s)", flush=True)
        report["sections"].append(measure(section, options, share, _print_row))
        report["took"] = round(time.monotonic() - begin, 3)
        _write(report, options)
    rows = [row for section in report["sections"] for row in section["rows"]]
    for path in (_path(options, suffix) for suffix in ("json", "md")):
        print(path)
    return NOT_ALL_MEASURED if any(row["status"] == "failed" for row in rows) else 0


def measure(
    section: Section, options: Options, seconds: float, say: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The processes of a section one after the other, in ``seconds`` altogether; what the report says of it."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    for each in section.processes:
        rows += process.run(each, options, seconds - (time.monotonic() - begin), say)
    return {
        "key": section.key,
        "title": section.title,
        "text": section.text,
        "took": round(time.monotonic() - begin, 3),
        "findings": findings(section.key, rows),
        "rows": rows,
    }


def _print_row(row: dict[str, Any]) -> None:
    text = f"{row['seconds']:.3g} s" if row["status"] == "measured" else row.get("error", row["status"])
    print(f"  {row['case']}: {text}", flush=True)


def _write(report: dict[str, Any], options: Options) -> None:
    write_json(_path(options, "json"), report)
    write_bytes(_path(options, "md"), markdown(report).encode())


def _path(options: Options, suffix: str) -> Any:
    return options.output / f"bench-device.{suffix}"


if __name__ == "__main__":
    sys.exit(main())
