"""From the rows of a section to its ratios: plain arithmetic on what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from prune_rl.bench_device.sections import number_of_seeds

Row = dict[str, Any]

# Cost per seed against one seed alone, to be reached: {section: {number of seeds: ratio}}. SAC's is for any number.
TARGETS: dict[str, dict[int | None, float]] = {
    "ppo": {64: 1 / 20, 300: 1 / 170},
    "sac": {None: 1 / 60},
}


def findings(key: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the measured rows of a section say, each {"name", "value"}; more where there is something to reach.

    Args:
        key: of the section.
        rows: all of its rows; those that are not measured count for nothing.
    """
    measured = [row for row in rows if row["status"] == "measured"]
    if key in ("ppo", "sac"):
        return _cost_per_seed(key, measured)
    return _crossing(measured) if key == "mjx" else _determinism(measured)


def _cost_per_seed(key: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    if not rows or rows[0]["seeds"] != 1:
        return []
    found = []
    one = rows[0]["seconds"]
    for row in rows[1:]:
        ratio = row["seconds"] / row["seeds"] / one
        finding = {
            "name": f"cost per seed of {row['seeds']} seeds, against one seed alone",
            "value": ratio,
            "one_in": 1 / ratio,
        }
        target = TARGETS[key].get(row["seeds"], TARGETS[key].get(None))
        if target is not None and row["seeds"] * target >= 1:  # fewer seeds cannot reach it
            finding |= {"target": target, "reached": ratio <= target}
        found.append(finding)
    return found


def _crossing(rows: Sequence[Row]) -> list[dict[str, Any]]:
    device = {row["seeds"]: row for row in rows if row["backend"] == "jax"}
    host = {row["seeds"]: row for row in rows if row["backend"] != "jax"}
    if not device or not host:
        return []
    found: list[dict[str, Any]] = []
    faster: dict[int, bool] = {}
    for seeds, row in sorted(device.items()):
        # The host's cores are busy from some number on: more seeds then cost in proportion.
        like = max((number for number in host if number <= seeds), default=min(host))
        on_host = host[like]["seconds"] * seeds / like
        backend = host[like]["backend"]
        found.append(
            {
                "name": f"time of {number_of_seeds(seeds)} on the device, against {backend} on the host"
                + (f" ({number_of_seeds(like)}, in proportion)" if like != seeds else ""),
                "value": row["seconds"] / on_host,
            }
        )
        faster[seeds] = row["seconds"] < on_host
    slower = [seeds for seeds, is_faster in faster.items() if not is_faster]
    enough = [seeds for seeds in faster if seeds > max(slower, default=0)]
    crossing = {"name": "seeds from which MJX on the device is faster, of those measured"}
    return [*found, {**crossing, "value": min(enough, default=None)}]


def _determinism(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    runs = {flag: [row for row in rows if row["case"].startswith(flag)] for flag in ("with ", "without ")}
    if all(runs.values()):
        on, off = (statistics.mean(row["seconds"] for row in both) for both in runs.values())
        found.append({"name": "time of an update with the flag, against without", "value": on / off})
    for flag, both in runs.items():
        if len(both) == 2:
            equal = both[0]["sha256"] == both[1]["sha256"]
            found.append({"name": f"two runs {flag}the flag have equal bits", "value": equal})
    return found
