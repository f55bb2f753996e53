"""One Markdown report over several runs: each seed, each method over its seeds, and paired differences to dense runs.

Everything is read from the run directories; nothing is measured here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.methods.registry import METHODS
from prune_rl.reporting.statistics import Difference, mean, paired_difference, t_interval
from prune_rl.reporting.tables import removed, return_text, signed, table, widths_text
from prune_rl.runs.config_file import read_config
from prune_rl.runs.evaluation_file import Policy, as_evaluated, own_policy, read_evaluation

# What does not change the result of a seed: which seeds ran together, how they were started, how often they were saved.
NOT_PART_OF_A_METHOD = ("seed", "seeds", "command", "run_dir", "checkpoints")


@dataclasses.dataclass
class _Method:
    """Runs that differ only in their seeds: per seed its policy, run directory, and control measured with it."""

    config: dict[str, Any]
    own: dict[int, Policy] = dataclasses.field(default_factory=dict)
    sources: dict[int, Path] = dataclasses.field(default_factory=dict)
    controls: dict[int, Policy] = dataclasses.field(default_factory=dict)

    @property
    def dense(self) -> bool:
        return bool(self.config.get("method") == "dense")

    @property
    def name(self) -> str:
        return " ".join(str(self.config.get(key, "?")) for key in ("env", "algo", "method"))

    @property
    def settings(self) -> dict[str, Any]:
        """The options that runs of one method have in common."""
        return _without(self.config, NOT_PART_OF_A_METHOD)

    @property
    def task(self) -> dict[str, Any]:
        """All options but those of the method; runs with equal tasks can be compared.

        Of the networks that is the width of the critic, and that of the actor where the method leaves it to the user.
        """
        config = _without(self.config, (*NOT_PART_OF_A_METHOD, "method"))
        learner = config.get("learner") or {}
        critic = learner.get("critic_hidden") or learner.get("hidden")
        method = METHODS.get(str(self.config.get("method")))
        actor = critic if method is not None and method.SETS_ACTOR_WIDTHS else learner.get("hidden")
        config["learner"] = _without(learner, ("prune", "hidden", "critic_hidden"))
        config["networks"] = [actor, critic]
        return config


def aggregate(runs: Sequence[str | os.PathLike[str]]) -> str:
    """Markdown tables over several runs: every seed, every method over its seeds, and paired differences to dense.

    Runs that differ only in their seeds, and in how often they were saved, count as one method. A method is compared
    seed by seed with the dense control measured with it, or else with a dense run among `runs` that has the same
    options apart from pruning.

    Raises:
      ValueError: no run is given; one of them is not a run directory or not evaluated; two have the same method and
        seed.
    """
    methods: dict[str, _Method] = {}
    found = []
    for path, typed in {Path(run).resolve(): Path(run) for run in runs}.items():
        config, evaluation = read_config(typed), read_evaluation(typed)
        if not config.get("env_kwargs"):  # runs from before this option do not have it
            config.pop("env_kwargs", None)
        method = _Method(as_evaluated(config, evaluation))
        method = methods.setdefault(json.dumps(method.settings, sort_keys=True), method)
        for entry in evaluation["seeds"]:
            own, seed = own_policy(entry), entry["seed"]
            if own is None:
                continue
            if seed in method.own:
                raise ValueError(
                    f"{method.sources[seed]} and {path} hold the same method and seed {seed}: give one of them"
                )
            method.own[seed], method.sources[seed] = own, path
            if not method.dense and "dense" in entry["policies"]:
                method.controls[seed] = entry["policies"]["dense"]
            found.append((method, seed))
    if not found:
        raise ValueError(
            "there is nothing to report: give at least one run directory with an evaluated policy"
        )
    labels = _labels(list(methods.values()))
    return "\n\n".join(
        [
            "# Return of every seed",
            _seeds_table(found, labels),
            "# Methods over seeds",
            _methods_table(labels),
            "# Difference to dense",
            _differences(labels),
        ]
    ) + "\n"  # fmt: skip


Labels = list[tuple[_Method, str]]


def _labels(methods: list[_Method]) -> Labels:
    """Each method with its name, followed by the options in which it differs from methods of the same name."""
    flat = [_flat(method.settings) for method in methods]
    labels = []
    for method, mine in zip(methods, flat, strict=True):
        same = [other for each, other in zip(methods, flat, strict=True) if each.name == method.name]
        differing = [key for key, value in mine.items() if any(other.get(key) != value for other in same)]
        labels.append(
            (method, method.name + "".join(f", {key.rpartition('.')[2]} {mine[key]}" for key in differing))
        )
    return labels


def _seeds_table(found: list[tuple[_Method, int]], labels: Labels) -> str:
    heads = ["run", "method", "seed", "return, mean ± std", "minimum", "widths", "neurons removed"]
    rows = []
    for method, seed in found:
        policy, label = method.own[seed], next(label for each, label in labels if each is method)
        rows.append(
            [
                method.sources[seed].name,
                label,
                str(seed),
                return_text([policy]),
                f"{min(policy['returns']):.1f}",
                widths_text([policy]),
                *(f"{removed(policy[key]):.1%}" for key in ("neurons", "weights")),
            ]
        )
    counts = sorted({len(method.own[seed]["returns"]) for method, seed in found})
    episodes = " or ".join(map(str, counts))
    note = f"Mean, standard deviation and minimum are over {episodes} evaluation episodes per seed."
    return table([*heads, "weights removed"], rows, text_columns=2) + "\n\n" + note


def _methods_table(labels: Labels) -> str:
    rows = []
    for method, label in labels:
        means = np.array([mean(policy["returns"]) for policy in method.own.values()])
        interval = t_interval(means)
        shares = [[removed(policy[key]) for policy in method.own.values()] for key in ("neurons", "weights")]
        rows.append(
            [
                label,
                str(len(means)),
                f"{np.mean(means):.1f}",
                f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "-",
                f"{means.min():.1f}",
                *(_share_text(share) for share in shares),
            ]
        )
    heads = ["method", "seeds", "mean return", "95% t interval", "worst seed's mean", "neurons removed"]
    return table([*heads, "weights removed"], rows) + "\n\n" + (
        "Student's t interval over the seeds' means; none for one seed, or where all seeds are equal. It is symmetric, "
        "so it can reach beyond the highest return there is. Shares removed are means over seeds, with their range "
        "where seeds differ."
    )  # fmt: skip


def _share_text(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return f"{mean(shares):.1%}" + (f" ({low}–{high})" if low != high else "")


def _differences(labels: Labels) -> str:
    rows, over = [], set()
    for method, label in labels:
        if method.dense:
            continue
        pairs = _pairs(method, [other for other, _ in labels])
        if not pairs:
            rows.append([label, "0", "no dense run of the same task, seeds and episodes", "-", "-"])
            continue
        difference = paired_difference(pairs)
        over.add(difference.unit)
        base = mean([mean(right) for _, right in pairs])
        kept = f"{1 + difference.mean / base:.1%}" if base > 0 else "-"
        rows.append([label, str(len(pairs)), signed(difference.mean), _interval_text(difference), kept])
    if not rows:
        return "Only dense runs were given."
    notes = ["Each method is compared with dense policies of the same seeds on the same evaluation episodes."]
    if "seeds" in over:
        notes.append(
            "An interval over seeds is Student's t over the seeds' differences, and speaks about training again."
        )
    if "episodes" in over:
        notes.append(
            "An interval over the episodes of one seed is a percentile bootstrap; it speaks about these two policies "
            "only, and another training run can end elsewhere."
        )
    heads = ["method", "seed pairs", "return minus dense", "95% interval", "share of dense return"]
    return table(heads, rows) + "\n\n" + " ".join(notes)


def _interval_text(difference: Difference) -> str:
    if difference.interval is None:
        return f"none, equal in all {difference.unit}" if difference.count > 1 else "none, one episode"
    return f"[{', '.join(map(signed, difference.interval))}] over {difference.count} {difference.unit}"


def _pairs(method: _Method, methods: list[_Method]) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Returns of the method and of its control, per seed that has both over the same number of episodes."""
    controls: dict[int, Policy] = {}
    for other in methods:
        if other.dense and other.task == method.task:
            controls |= other.own
    controls |= method.controls  # measured in the same evaluation, hence on the same episodes
    pairs = [
        (method.own[seed]["returns"], controls[seed]["returns"]) for seed in method.own if seed in controls
    ]
    return [pair for pair in pairs if len(pair[0]) == len(pair[1])]


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, entry in value.items():
        result |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return result
