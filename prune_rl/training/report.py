"""What a run has shown, in words and numbers: summary.md of one run, and one table over many.

Both read what the run directories hold and measure nothing. evaluation.json:

    {"env_id": str, "episodes": int, "seeds": [{"seed": int, "policies": {name: P}}]}
    P = {"returns": [float], "lengths": [int], "widths": [int], "neurons": {"kept": int, "total": int},
         "weights": {"kept": int, "total": int}, "macs": int, "bytes": int, "latency_us": float}

with the names "masked" (the wide network with masks), "compact" and "dense" (the control), each where it was measured.
Episode i of every policy of a seed starts from the same state, so that returns can be compared in pairs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from prune_rl.training.files import write_bytes
from prune_rl.training.metrics import read_metrics
from prune_rl.training.plots import Marks, draw

COLUMNS = {"dense": "dense control", "masked": "masked (wide)", "compact": "compact"}
CONFIDENCE = 0.95
# Keys that do not change what one seed computes: which seeds ran together, how often they were saved, what was typed.
NOT_PART_OF_A_METHOD = ("seed", "seeds", "command", "run_dir", "checkpoints")

NARROW = (
    "A bootstrap over few seeds gives too narrow an interval: of those called 95 %, about 85 % cover the truth with 5 "
    "seeds, 90 % with 10."
)

Policy = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of paired differences with a bootstrap interval; `unit` says what was resampled."""

    mean: float
    low: float
    high: float
    count: int
    unit: str

    def __str__(self) -> str:
        interval = f" [{self.low:+.1f}, {self.high:+.1f}]" if self.count > 1 else " (one pair, no interval)"
        return f"{self.mean:+.1f}{interval}"


def paired_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Difference of mean return between two policies, with a 95 % percentile-bootstrap interval.

    Args:
      pairs: (returns, returns of the control) per training seed, each over the same episodes.

    With several seeds, the seeds' mean differences are resampled: that interval speaks about training again. With one
    seed, its episodes are: that one speaks about these two policies only. Over few values the percentile bootstrap is
    too narrow: of nominal 95 % intervals over n normal values, 76 % cover the mean for n = 3, 85 % for 5, 90 % for 10.

    Raises:
      ValueError: there are no pairs, or a seed's two policies played different numbers of episodes.
    """
    if not pairs:
        raise ValueError("a paired difference needs at least one seed measured with both policies")
    for left, right in pairs:
        if len(left) != len(right) or not len(left):
            raise ValueError(f"paired policies must play the same episodes, got {len(left)} and {len(right)}")
    each = [np.subtract(left, right, dtype=np.float64) for left, right in pairs]
    values = np.array([np.mean(d) for d in each]) if len(each) > 1 else each[0]
    mean = low = high = float(np.mean(values))
    if len(values) > 1:
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return Difference(mean, low, high, len(values), "seeds" if len(each) > 1 else "episodes")


def write_summary(run: str | os.PathLike[str]) -> Path:
    """Writes summary.md and, where there are metrics, summary.png into the run directory; returns summary.md.

    Raises:
      ValueError: config.json, metrics.jsonl or evaluation.json is there but damaged; or config.json is missing.
    """
    path = Path(run)
    config = _read(path / "config.json")
    versions = _read(path / "versions.json", {})
    evaluation = read_evaluation(path) if (path / "evaluation.json").exists() else None
    records = read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    seeds = evaluation["seeds"] if evaluation else []
    title = (
        f"{config.get('env', 'unknown environment')}, {config.get('algo', '?')}, {config.get('method', '?')}"
    )
    parts = [f"# {title}"]
    if records:
        write_bytes(path / "summary.png", draw(records, title, _marks(config, records, seeds)))
        parts.append("![training return and kept neurons over environment steps](summary.png)")
    if seeds:
        parts += ["## The policy", _policy_table(seeds)]
        if len(seeds) > 1:
            parts += ["## Each seed", _seed_table(seeds)]
    parts += ["## How it was made", _origin(config, versions, seeds)]
    remarks = _remarks(config, versions, records, seeds)
    if remarks:
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in remarks)]
    write_bytes(path / "summary.md", ("\n\n".join(parts) + "\n").encode())
    return path / "summary.md"


def read_evaluation(run: Path) -> dict[str, Any]:
    """evaluation.json of a run, checked as far as the report needs it.

    Raises:
      ValueError: it is missing or damaged; the message says what to do.
    """
    remedy = f"measure it again with `prune-rl evaluate {run} --write`"
    data: dict[str, Any] = _read(run / "evaluation.json", remedy=remedy)
    try:
        for entry in data["seeds"]:
            int(entry["seed"])
            for policy in entry["policies"].values():
                if not policy["returns"] or not all(
                    math.isfinite(float(value)) for value in policy["returns"]
                ):
                    raise ValueError("returns must be finite numbers, at least one")
                for key in ("neurons", "weights"):
                    int(policy[key]["kept"]), int(policy[key]["total"])
                int(policy["macs"]), int(policy["bytes"]), float(policy["latency_us"]), list(policy["widths"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{run / 'evaluation.json'} is damaged ({reason}): {remedy}") from None
    return data


def aggregate(runs: Sequence[str | os.PathLike[str]]) -> str:
    """Markdown over several runs: every seed, every method over its seeds, and paired differences to dense controls.

    Runs that differ only in their seeds count as one method; a method is compared with the dense runs that share
    everything but the method and its pruning options, seed by seed, or else with the controls measured beside it.

    Raises:
      ValueError: no run is given, or one of them lacks a readable config.json or evaluation.json.
    """
    methods: dict[str, _Method] = {}
    rows = []
    for path in dict.fromkeys(Path(run).resolve() for run in runs):
        config, evaluation = _read(path / "config.json"), read_evaluation(path)
        key = json.dumps(_without(config, NOT_PART_OF_A_METHOD), sort_keys=True)
        method = methods.setdefault(key, _Method(config))
        for entry in evaluation["seeds"]:
            own = _own_policy(entry)
            if own is None:
                continue
            if entry["seed"] in method.own:
                raise ValueError(
                    f"{path} and another run given hold the same configuration and seed: give one of them"
                )
            method.own[entry["seed"]] = own
            if own is not entry["policies"].get("dense") and "dense" in entry["policies"]:
                method.controls[entry["seed"]] = entry["policies"]["dense"]
            rows.append([path.name, method.name, str(entry["seed"]), *_policy_cells(own)])
    if not rows:
        raise ValueError(
            "there is nothing to report: give at least one run directory with an evaluated policy"
        )
    heads = [
        "run",
        "method",
        "seed",
        "return, mean ± std",
        "minimum",
        "widths",
        "neurons removed",
        "weights removed",
    ]
    parts = ["# Runs", _table(heads, rows), "# Methods over seeds", _methods_table(list(methods.values()))]
    return "\n\n".join([*parts, "# Paired differences to dense", _differences(list(methods.values()))]) + "\n"


@dataclasses.dataclass
class _Method:
    """Runs that differ only in their seeds: the policy of each seed, and the control measured beside it."""

    config: dict[str, Any]
    own: dict[int, Policy] = dataclasses.field(default_factory=dict)
    controls: dict[int, Policy] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return (
            f"{self.config.get('env', '?')} {self.config.get('algo', '?')} {self.config.get('method', '?')}"
        )

    @property
    def task(self) -> str:
        """Everything but the method and how it prunes: runs with equal tasks may be compared."""
        config = _without(self.config, (*NOT_PART_OF_A_METHOD, "method"))
        config["learner"] = _without(config.get("learner") or {}, ("prune",))
        return json.dumps(config, sort_keys=True)


def _methods_table(methods: list[_Method]) -> str:
    rows = []
    for method in methods:
        means = np.array([_mean(policy["returns"]) for policy in method.own.values()])
        interval = "-"
        if len(means) > 1:
            half = (
                float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1))
                * np.std(means, ddof=1)
                / len(means) ** 0.5
            )
            interval = f"[{np.mean(means) - half:.1f}, {np.mean(means) + half:.1f}]"
        removed = [
            f"{np.mean([_removed(p[key]) for p in method.own.values()]):.1%} "
            f"({min(_removed(p[key]) for p in method.own.values()):.1%})"
            for key in ("neurons", "weights")
        ]
        label = method.name + _options(method, methods)
        rows.append(
            [label, str(len(means)), f"{np.mean(means):.1f}", interval, f"{means.min():.1f}", *removed]
        )
    heads = ["method", "seeds", "mean return", "95 % t interval", "worst seed"]
    return _table([*heads, "neurons removed, mean (least)", "weights removed, mean (least)"], rows)


def _options(method: _Method, methods: list[_Method]) -> str:
    """The pruning options in which `method` differs from others of its name, to tell them apart."""
    same = [other for other in methods if other.name == method.name]
    mine = _flat(_without(method.config, NOT_PART_OF_A_METHOD))
    others = [_flat(_without(other.config, NOT_PART_OF_A_METHOD)) for other in same]
    differing = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    return "".join(f", {key.rpartition('.')[2]} {mine[key]}" for key in differing)


def _differences(methods: list[_Method]) -> str:
    rows = []
    for method in (method for method in methods if method.config.get("method") != "dense"):
        dense = [
            other for other in methods if other.config.get("method") == "dense" and other.task == method.task
        ]
        controls = method.controls | {seed: policy for other in dense for seed, policy in other.own.items()}
        seeds = [seed for seed in method.own if seed in controls]
        pairs = [(method.own[seed]["returns"], controls[seed]["returns"]) for seed in seeds]
        label = method.name + _options(method, methods)
        if not pairs or any(len(left) != len(right) for left, right in pairs):
            rows.append([label, "0", "no dense run of the same task, seeds and episodes", "-"])
            continue
        base = _mean([_mean(right) for _, right in pairs])
        kept = f"{1 + paired_difference(pairs).mean / base:.1%}" if base > 0 else "-"
        difference = paired_difference(pairs)
        rows.append([label, f"{len(pairs)}", f"{difference} over {difference.unit}", kept])
    if not rows:
        return "Only dense runs were given."
    table = _table(
        ["method", "seed pairs", "return minus dense, mean [95 % bootstrap interval]", "share of dense"], rows
    )
    return f"{table}\n\n{NARROW}"


def _policy_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in COLUMNS if any(name in entry["policies"] for entry in seeds)]
    columns = {
        name: [entry["policies"][name] for entry in seeds if name in entry["policies"]] for name in names
    }
    episodes = len(next(iter(columns.values()))[0]["returns"])

    def row(title: str, cell: Callable[[list[Policy]], str]) -> list[str]:
        return [title, *(cell(columns[name]) for name in names)]

    several = len(seeds) > 1
    spread = f"{len(seeds)} seeds of {episodes} episodes each" if several else f"{episodes} episodes"
    rows = [row(f"return, mean ± std over {spread}", _return_cell)]
    if several:
        rows.append(
            row("return, worst seed's mean", lambda ps: f"{min(_mean(p['returns']) for p in ps):.1f}")
        )
    rows += [
        row("return, minimum of all episodes", lambda ps: f"{min(min(p['returns']) for p in ps):.1f}"),
        row("hidden widths", _widths_cell),
        row("neurons (removed)", lambda ps: _size_cell(ps, "neurons")),
        row("weights (removed)", lambda ps: _size_cell(ps, "weights")),
        row("multiply-adds per action", lambda ps: _number(_mean([p["macs"] for p in ps]))),
        row("bytes of parameters", lambda ps: _number(_mean([p["bytes"] for p in ps]))),
        row("latency, batch of 1 (µs)", lambda ps: f"{_mean([p['latency_us'] for p in ps]):.1f}"),
    ]
    unit = ""
    if "dense" in columns and len(names) > 1:
        cells = []
        for name in names:
            difference = _difference_to_dense(seeds, name)
            cells.append("-" if name == "dense" or difference is None else str(difference))
            unit = difference.unit if difference else unit
        rows.append([f"return minus dense, paired, 95 % interval over {unit}", *cells])
    note = "Sizes are those of the actor, which alone is shipped" + (
        "; where seeds differ, their mean, and widths from the narrowest to the widest." if several else "."
    )
    return _table(["", *(COLUMNS[name] for name in names)], rows) + "\n\n" + note


def _seed_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    dense = any("dense" in entry["policies"] for entry in seeds)
    rows = []
    for entry in seeds:
        own, control = _own_policy(entry), entry["policies"].get("dense")
        if own is None:
            continue
        rows.append([str(entry["seed"]), *_policy_cells(own)])
        if dense and own is not control:
            compared = ["-", "-"]
            if control is not None:
                compared = [
                    f"{_mean(control['returns']):.1f}",
                    str(paired_difference([(own["returns"], control["returns"])])),
                ]
            rows[-1] += compared
    heads = ["seed", "return, mean ± std", "minimum", "widths", "neurons removed", "weights removed"]
    if rows and len(rows[0]) > len(heads):
        heads += ["dense control", "minus dense, over episodes"]
    return _table(heads, rows)


def _origin(
    config: Mapping[str, Any], versions: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]
) -> str:
    first, count = config.get("seed", 0), config.get("seeds", 1)
    device = versions.get("device") or {}
    git = versions.get("git") or {}
    commit = (
        f"{git.get('commit') or 'none yet'}{' with uncommitted changes' if git.get('dirty') else ''}"
        if git
        else "no checkout"
    )
    packages = ("python", "prune_rl", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy")
    lines = {
        "command": f"`{config.get('command', 'unknown')}`",
        "seeds": f"{first}" if count == 1 else f"{first} to {first + count - 1}",
        "steps per seed": _number(config.get("steps", math.nan)),
        "commit": commit,
        "device": f"{device.get('count', '?')} × {device.get('kind', '?')} ({device.get('platform', '?')}); "
        f"processor {versions.get('cpu', '?')}",
        "versions": ", ".join(f"{name} {versions[name]}" for name in packages if versions.get(name)),
    }
    if seeds:
        lines["evaluation"] = (
            f"episodes seeded from {config.get('evaluation_seed', '?')}, deterministic policy, last checkpoint"
        )
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _remarks(
    config: Mapping[str, Any],
    versions: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    seeds: Sequence[Mapping[str, Any]],
) -> list[str]:
    remarks = []
    if not seeds:
        remarks.append("The policies are not evaluated yet: run `prune-rl evaluate RUN --write`.")
    if not records:
        remarks.append("There is no metrics.jsonl, so there is no picture.")
    pruned = config.get("method") != "dense"
    missing = [entry["seed"] for entry in seeds if "dense" not in entry["policies"]]
    if pruned and missing:
        which = "No dense control was found" + (f" for seeds {missing}" if len(missing) < len(seeds) else "")
        words = [word for word in shlex.split(config.get("command") or "") if word != "--no-control"]
        command = shlex.join(words) if words else "prune-rl train ENV"
        remarks.append(f"{which}, so nothing here says what pruning costs: `{command} --control` trains it.")
    if 1 < len(seeds) < 20 and pruned and len(missing) < len(seeds):
        remarks.append(NARROW)
    if 0 < len(seeds) < 5:
        say = (
            "One training seed: the interval is over its episodes"
            if len(seeds) == 1
            else f"Only {len(seeds)} seeds"
        )
        remarks.append(f"{say}; another training run can end elsewhere, claims need five seeds or more.")
    shortest = min((len(p["returns"]) for entry in seeds for p in entry["policies"].values()), default=None)
    if shortest is not None and shortest < 100:
        remarks.append(f"Only {shortest} evaluation episodes per policy; comparisons here use 100 or more.")
    both = [entry["policies"] for entry in seeds if {"masked", "compact"} <= set(entry["policies"])]
    if both:
        unequal = sum(
            x != y
            for p in both
            for x, y in zip(p["masked"]["returns"], p["compact"]["returns"], strict=False)
        )
        total = sum(len(p["masked"]["returns"]) for p in both)
        remarks.append(
            f"Masked and compact policy had the same return in all {total} episodes."
            if not unequal
            else f"Masked and compact policy had different returns in {unequal} of {total} episodes: both compute the "
            "same function, but rounding can tip an action."
        )
    remarks += _missed_target(config, seeds)
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


def _missed_target(config: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    targets = target_widths(config)
    kept = {entry["seed"]: entry["policies"].get("compact", {}).get("widths", []) for entry in seeds}
    missed = [
        f"seed {seed} kept {_widths(widths)}" for seed, widths in kept.items() if sum(widths) > sum(targets)
    ]
    if not targets or not missed:
        return []
    return [
        f"Not every seed reached the target of {_widths(targets)} neurons ({', '.join(missed)}): "
        "another rule of the threshold (gate, energy, floor) held it back."
    ]


def target_widths(config: Mapping[str, Any]) -> list[int]:
    """Actor widths that the pruning schedule of `config` aims at; empty for a run that does not prune."""
    learner = config.get("learner") or {}
    prune = learner.get("prune") or {}
    if config.get("method") == "dense" or not prune.get("enabled") or "sparsity" not in prune:
        return []
    # The small term: 1 - 0.95 is a little more than 1/20 in binary.
    return [
        max(int(prune.get("min_width", 1)), math.ceil(width * (1 - prune["sparsity"]) - 1e-6))
        for width in learner.get("hidden") or []
    ]


def _marks(
    config: Mapping[str, Any], records: Sequence[Mapping[str, Any]], seeds: Sequence[Mapping[str, Any]]
) -> Marks:
    targets = target_widths(config)
    prune = (config.get("learner") or {}).get("prune") or {}
    layers = [name for name in records[-1].get("widths") or {} if name.startswith("actor")]
    steps = config.get("steps", records[-1]["step"])
    means = {
        name: [_mean(entry["policies"][name]["returns"]) for entry in seeds if name in entry["policies"]]
        for name in COLUMNS
    }
    return Marks(
        window=(prune["begin"] * steps, prune["end"] * steps)
        if targets and {"begin", "end"} <= set(prune)
        else None,
        # Ranked over all layers, a layer has no target of its own.
        target_widths=dict(zip(layers, targets, strict=False)) if prune.get("scope") != "global" else {},
        dense_return=_mean(means["dense"]) if means["dense"] and means["compact"] else None,
        compact_return=_mean(means["compact"]) if means["compact"] else None,
    )


def _difference_to_dense(seeds: Sequence[Mapping[str, Any]], name: str) -> Difference | None:
    pairs = [
        (entry["policies"][name]["returns"], entry["policies"]["dense"]["returns"])
        for entry in seeds
        if {name, "dense"} <= set(entry["policies"])
    ]
    usable = [pair for pair in pairs if len(pair[0]) == len(pair[1])]
    return paired_difference(usable) if usable else None


def _own_policy(entry: Mapping[str, Any]) -> Policy | None:
    """What the run itself made of a seed: the compact policy, or the dense one of a dense run."""
    policy: Policy | None = entry["policies"].get("compact") or entry["policies"].get("dense")
    return policy


def _policy_cells(policy: Policy) -> list[str]:
    removed = [f"{_removed(policy[key]):.1%}" for key in ("neurons", "weights")]
    return [_return_cell([policy]), f"{min(policy['returns']):.1f}", _widths(policy["widths"]), *removed]


def _return_cell(policies: Sequence[Policy]) -> str:
    """Over seeds the spread is that of the seeds' means, for one seed that of its episodes."""
    values = (
        [_mean(policy["returns"]) for policy in policies] if len(policies) > 1 else policies[0]["returns"]
    )
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.1f}"


def _widths_cell(policies: Sequence[Policy]) -> str:
    layers = list(zip(*(policy["widths"] for policy in policies), strict=False))
    return "·".join(
        str(min(layer)) if min(layer) == max(layer) else f"{min(layer)}–{max(layer)}" for layer in layers
    )


def _size_cell(policies: Sequence[Policy], key: str) -> str:
    kept, removed = (_mean([p[key]["kept"] for p in policies]), _mean([_removed(p[key]) for p in policies]))
    return f"{_number(kept)} ({removed:.1%})" if removed else _number(kept)


def _removed(size: Mapping[str, Any]) -> float:
    return 1.0 - size["kept"] / size["total"] if size["total"] else 0.0


def _widths(widths: Sequence[int]) -> str:
    return "·".join(str(width) for width in widths)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, np.float64)))


def _number(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal, too; numbers to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    lines = [
        [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    rule = ["-" * width if n == 0 else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, entry in value.items():
        result |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return result


def _read(
    path: Path, default: dict[str, Any] | None = None, remedy: str = "delete the run, or restore the file"
) -> Any:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if default is not None:
            return default
        raise ValueError(
            f"{path} is missing, so {path.parent} is no complete run directory: {remedy}"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None
