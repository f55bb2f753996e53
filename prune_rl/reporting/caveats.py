"""Caveats of one run's results: missing controls, few seeds or episodes, missed targets, an unclean checkout."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from prune_rl.reporting.pruning_schedule import (
    Config,
    Records,
    Window,
    is_pruned,
    target_neurons,
    target_widths,
)
from prune_rl.reporting.statistics import difference_to_dense
from prune_rl.reporting.tables import widths_text
from prune_rl.runs.evaluation_file import Entries

ENOUGH_SEEDS = 5
ENOUGH_EPISODES = 100
# Far above what is trained, and above the scale of an action that a head may contain.
HUGE_WEIGHT = 1e7


def remarks_on(
    config: Config, versions: Mapping[str, Any], records: Records, seeds: Entries, window: Window | None
) -> list[str]:
    """Caveats, one or two sentences each.

    Args:
      config: config.json in today's layout.
      versions: versions.json.
      records: lines of metrics.jsonl.
      seeds: evaluation.json["seeds"].
      window: the pruning window of the run.
    """
    remarks: list[str] = []
    if not seeds:
        remarks.append("The policies are not evaluated yet: run `prune-rl evaluate RUN --write`.")
    if not records:
        remarks.append("There is no metrics.jsonl, so there is no picture.")
    pruned = is_pruned(config)
    remarks += _no_episodes(config, records) + _huge_weights(seeds)
    if config.get("method") != "dense":
        remarks += _missing_control(config, seeds)
    if pruned:
        remarks += _schedule(config, records, window)
    if 0 < len(seeds) < ENOUGH_SEEDS:
        say = "One training seed only" if len(seeds) == 1 else f"Only {len(seeds)} training seeds"
        episodes_only = len(seeds) == 1 and difference_to_dense(seeds, "compact") is not None
        over = ", and the comparison is over its episodes" if episodes_only else ""
        remarks.append(f"{say}{over}: another can end elsewhere; a claim needs {ENOUGH_SEEDS} or more.")
    shortest = min((len(p["returns"]) for entry in seeds for p in entry["policies"].values()), default=None)
    if shortest is not None and shortest < ENOUGH_EPISODES:
        remarks.append(
            f"Only {shortest} evaluation episodes per policy; comparisons use {ENOUGH_EPISODES} or more."
        )
    remarks += _same_function(seeds) + _missed_target(config, seeds)
    if (versions.get("git") or {}).get("dirty"):
        remarks.append(
            "The checkout had uncommitted changes: the commit alone does not give this result again."
        )
    if versions.get("continued_with"):
        remarks.append("The run was continued with other versions than it began with, see versions.json.")
    if pruned:
        remarks.append(
            "The method is after Su et al. 2024 (arXiv 2402.05146); its equations are this project's own."
        )
    return remarks


def _no_episodes(config: Config, records: Records) -> list[str]:
    counts = records[-1].get("total_episodes") if records else None
    if not counts or any(count > 0 for count in counts):
        return []
    prune = (config.get("learner") or {}).get("prune") or {}
    what = ""
    if prune.get("tolerance") is not None:
        what = ", and no neuron could go"
    elif prune.get("gate") is not None:
        what = ", and the gate had none to look at and stayed open"
    return [f"No training episode ended, so training has no return{what}."]


def _huge_weights(seeds: Entries) -> list[str]:
    huge = [
        f"{name} policy of seed {entry['seed']} {policy['largest_weight']:.0e}"
        for entry in seeds
        for name, policy in entry["policies"].items()
        if policy.get("largest_weight", 0.0) > HUGE_WEIGHT
    ]
    if not huge:
        return []
    return [
        f"Weights are larger than training gives reason for ({', '.join(huge)}): a lower --learning-rate or "
        "--width-exponent keeps them small."
    ]


def _missing_control(config: Config, seeds: Entries) -> list[str]:
    missing = [entry["seed"] for entry in seeds if "dense" not in entry["policies"]]
    if not missing:
        return []
    which = "No dense control was found" + (f" for seeds {missing}" if len(missing) < len(seeds) else "")
    words = [word for word in shlex.split(config.get("command") or "") if word != "--no-control"]
    command = shlex.join(words) if words else f"prune-rl train {config.get('env', 'ENV')}"
    what = "pruning costs" if is_pruned(config) else "so few neurons cost"
    return [f"{which}, so nothing here says what {what}: `{command}` trains it, and nothing else again."]


def _same_function(seeds: Entries) -> list[str]:
    both = [entry["policies"] for entry in seeds if {"masked", "compact"} <= set(entry["policies"])]
    pairs = [
        pair for p in both for pair in zip(p["masked"]["returns"], p["compact"]["returns"], strict=False)
    ]
    unequal = sum(left != right for left, right in pairs)
    if not pairs:
        return []
    if not unequal:
        return [f"Masked and compact policy had the same return in all {len(pairs)} episodes."]
    return [
        f"Masked and compact policy had different returns in {unequal} of {len(pairs)} episodes: both compute the "
        "same function, but rounding can tip an action."
    ]


def _schedule(config: Config, records: Records, window: Window | None) -> list[str]:
    if window is None or not records:
        return []
    gate = config["learner"]["prune"].get("gate") is not None
    if not window.measured:
        prolonged = ", which the gate may have prolonged" * gate
        return [
            "metrics.jsonl does not record the progress of the pruning schedule: the window shown is the configured "
            f"one{prolonged}."
        ]
    first = config.get("seed", 0)
    rest = [
        f"seed {first + index} {progress:.1%}"
        for index, (end, progress) in enumerate(zip(window.ends, window.progress, strict=True))
        if end is None
    ]
    why = " It does not advance while the gate is closed." * gate
    return (
        [f"The pruning schedule was not complete at the end of the log ({', '.join(rest)} done).{why}"]
        if rest
        else []
    )


def _missed_target(config: Config, seeds: Entries) -> list[str]:
    total, layers = target_neurons(config), target_widths(config)
    kept = {entry["seed"]: entry["policies"].get("compact") for entry in seeds}
    missed = [
        f"seed {seed} kept {widths_text([policy])}"
        for seed, policy in kept.items()
        if policy and total is not None and sum(policy["widths"]) > total
    ]
    if not missed:
        return []
    target = widths_text([{"widths": layers}]) if layers else f"{total}"
    prune = config["learner"]["prune"]
    rules = [name for name in ("gate", "energy") if prune.get(name) is not None]
    why = f": its {' or '.join(rules)} rule limited what was removed" if rules else ""
    return [f"Not every seed reached the target of {target} neurons ({', '.join(missed)}){why}."]
