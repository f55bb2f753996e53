"""The file of a benchmark, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune_rl.bench_device.process import NO_TIME_LEFT
from prune_rl.reporting.tables import table

NOTES = {
    "no time left": NO_TIME_LEFT,
    "missing": "not measured",
    "failed": "failed",
}
PRECISION = (
    "Products of matrices in the networks have JAX's default precision unless said otherwise: TF32 on recent NVIDIA "
    "GPUs, bfloat16 on TPUs. MJX and the least squares of a mask update use the highest, float32."
)


def markdown(report: Mapping[str, Any]) -> str:
    """A page with what was found, and the rows that it rests on.

    Args:
        report: the content of the JSON file.
    """
    device, versions = report["device"], report["versions"]
    kind = f"{device['count']} × {device['kind']} ({device['platform']})"
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "jax", "jaxlib", "prune_rl", "mujoco-mjx", "envpool")
        if versions.get(name)
    )  # fmt: skip
    lines = [
        "# Device benchmark",
        "",
        f"- device: {kind}, one of them used; processor {versions['cpu']}",
        f"- versions: {packages}",
        f"- matmul precision: {report['matmul_precision']}",
        f"- time: {report['took']:.0f} s of {report['options']['time_limit']:.0f} s",
        "",
        PRECISION,
        "",
    ]
    if report["device"]["platform"] == "cpu":
        lines += ["Measured on a CPU, to try the command: the figures say nothing about an accelerator.", ""]
    for section in report["sections"]:
        lines += [f"## {section['title']}", "", section["text"], ""]
        if section["findings"]:
            cells = [_finding(finding) for finding in section["findings"]]
            lines += [table(("found", "value", "to reach"), cells), ""]
        lines += [table(("case", "seconds", "lowest–highest", "note"), _rows(section["rows"])), ""]
    return "\n".join(lines)


def _finding(finding: Mapping[str, Any]) -> tuple[str, str, str]:
    value, target = finding["value"], finding.get("target")
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None:
        text = "none"
    else:
        text = f"1/{finding['one_in']:.1f}" if "one_in" in finding else f"{value:.3g}"
    reach = "" if target is None else f"1/{1 / target:.0f}, {'' if finding['reached'] else 'not '}reached"
    return finding["name"], text, reach


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [
        (row["case"], f"{row['seconds']:.3g}", f"{row['lowest']:.3g}–{row['highest']:.3g}", _note(row))
        if row["status"] == "measured"
        else (row["case"], "", "", _note(row))
        for row in rows
    ]


def _note(row: Mapping[str, Any]) -> str:
    if row["status"] == "measured":
        return f"{row['backend']}" if "backend" in row else ""
    note = NOTES[row["status"]]
    return f"{note}: {row['error']}" if "error" in row else note
