"""summary.md of one run: returns and sizes of its policies, how they were made, and caveats.

Everything is read from the run directory; nothing is measured here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prune_rl.atomic_files import write_bytes
from prune_rl.methods.registry import METHODS
from prune_rl.reporting.caveats import remarks_on
from prune_rl.reporting.frontier_choice import best_of, choose_within
from prune_rl.reporting.plots import Marks, draw
from prune_rl.reporting.provenance import provenance
from prune_rl.reporting.pruning_schedule import (
    Config,
    Records,
    Window,
    is_pruned,
    pruning_window,
    target_widths,
)
from prune_rl.reporting.statistics import difference_to_dense, mean
from prune_rl.reporting.tables import (
    difference_text,
    number,
    removed,
    return_text,
    span,
    table,
    widths_text,
)
from prune_rl.runs.config_file import read_config, read_json
from prune_rl.runs.evaluation_file import Entries, Policy, as_evaluated, own_policy, read_evaluation
from prune_rl.runs.faults_file import read_faults
from prune_rl.runs.frontier import FRONTIER_FILE, is_chosen, read_frontier
from prune_rl.runs.json_text import check_types
from prune_rl.runs.logging import read_metrics

COLUMNS = {
    "dense": "dense control",
    "masked": "masked",
    "compact": "compact",
    # what `prune-rl evaluate --as` adds
    "onnx": "ONNX Runtime",
    "c": "C",
    "int8": "C, int8",
}


def write_summary(run: str | os.PathLike[str]) -> Path:
    """Writes summary.md and, if there are metrics, summary.png into the run directory; returns the path of summary.md.

    Raises:
      ValueError: `run` is not a run directory, or one of its JSON files is damaged.
    """
    path = Path(run)
    config = read_config(path)
    versions: dict[str, Any] = {}
    if (path / "versions.json").exists():
        remedy = "delete it, only the summary reads it"
        versions = read_json(path / "versions.json", remedy)
        try:
            check_types(
                versions, {"git": dict, "device": dict, "continued_with": list, "cpu": str}, null=True
            )
            check_types(versions.get("git") or {}, {"commit": str, "dirty": bool}, "git.", null=True)
        except ValueError as error:
            raise ValueError(f"{path / 'versions.json'} is damaged ({error}): {remedy}") from None
    evaluation = read_evaluation(path) if (path / "evaluation.json").exists() else {"seeds": []}
    seeds: Entries = evaluation["seeds"]
    config = as_evaluated(config, evaluation)
    records = read_metrics(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    window = pruning_window(config, records)
    title = _title(config)
    parts = [f"# {title}"]
    if seeds:
        parts.append(_verdict(config, seeds))
    faults = read_faults(path)
    parts += [f"**Seed {seed} has no policy**: {sentence}." for seed, sentence in faults.items()]
    if records:
        write_bytes(path / "summary.png", draw(records, title, _marks(config, records, seeds, window)))
        caption = _caption(config, records, window)
        parts += ["![return and kept neurons over environment steps](summary.png)", caption]
    if seeds:
        parts += ["## The policy", _policy_table(config, seeds)]
        if len(seeds) > 1:
            parts += ["## Each seed", _seed_table(seeds)]
    if is_pruned(config) and (path / FRONTIER_FILE).exists():
        tolerance = config["learner"]["prune"].get("tolerance")
        parts += ["## The frontier", _frontier(read_frontier(path), tolerance)]
    parts += ["## How it was made", provenance(config, versions, seeds)]
    remarks = remarks_on(config, versions, records, seeds, window)
    if remarks:
        parts += ["## Remarks", "\n".join(f"- {remark}" for remark in remarks)]
    write_bytes(path / "summary.md", ("\n\n".join(parts) + "\n").encode())
    return path / "summary.md"


def _title(config: Config) -> str:
    method = config.get("method", "?")
    how = METHODS[method].TITLE if method in METHODS else f"method {method}"
    seeds = config.get("seeds", 1)
    which = f"seed {config.get('seed', 0)}" if seeds == 1 else f"{seeds} seeds"
    return f"{config.get('env', '?')}, {str(config.get('algo', '?')).upper()}, {how}, {which}"


def _verdict(config: Config, seeds: Entries) -> str:
    """The result in two sentences."""
    own = [policy for policy in map(own_policy, seeds) if policy is not None]
    if not own:
        return "No policy of this run has been evaluated."
    over = f", on the mean of {len(own)} seeds," if len(own) > 1 else ""
    returns = f"{mean([mean(policy['returns']) for policy in own]):.1f}"
    if all("compact" not in entry["policies"] for entry in seeds):
        return f"The dense policy{over} returns **{returns}**. Nothing was pruned."
    what = {"neurons": "hidden neurons", "weights": "weights"}
    sizes = {key: number(mean([policy[key]["kept"] for policy in own])) for key in what}
    if is_pruned(config):
        kept = f"The compact policy{over} keeps " + " and ".join(
            f"**{sizes[key]} of {number(own[0][key]['total'])} {words}**" for key, words in what.items()
        ) + " of the actor."  # fmt: skip
    else:
        has = " and ".join(f"**{sizes[key]} {words}**" for key, words in what.items())
        kept = f"The actor, trained from scratch at its size, has{over} {has}."
    difference = difference_to_dense(seeds, "compact")
    if difference is None:
        return f"{kept} It returns **{returns}**; there is no dense control to compare it with."
    dense = mean([mean(e["policies"]["dense"]["returns"]) for e in seeds if "dense" in e["policies"]])
    interval = f" ({difference.interval_name})" if difference.interval else ""
    compared = f"the dense control {dense:.1f}; paired difference {difference_text(difference)}{interval}."
    return f"{kept} It returns **{returns}**, {compared}"


def _caption(config: Config, records: Records, window: Window | None) -> str:
    text = (
        "Lines are returns during training, with exploration (smoothed over updates); diamonds are the policies "
        "evaluated after training, which act greedily."
    )
    if any(record.get("widths") for record in records):
        grey = f"; grey: {window.sentence(config.get('seed', 0))}" if window else ""
        text += f" Below, the number of neurons kept{grey}."
    return text


def _policy_table(config: Config, seeds: Entries) -> str:
    names = [name for name in COLUMNS if any(name in entry["policies"] for entry in seeds)]
    columns = {
        name: [entry["policies"][name] for entry in seeds if name in entry["policies"]] for name in names
    }
    pruned, several = names != ["dense"], len(seeds) > 1
    labels = COLUMNS if is_pruned(config) else {**COLUMNS, "compact": str(config.get("method"))}
    episodes = len(columns[names[0]][0]["returns"])

    def row(title: str, cell: Callable[[list[Policy]], str]) -> list[str]:
        return [title, *(cell(columns[name]) for name in names)]

    spread = f"over the means of {len(seeds)} seeds" if several else f"over {episodes} episodes"
    rows = [row(f"return, mean ± std {spread}", return_text)]
    if several:
        rows.append(row("return, worst seed's mean", lambda ps: f"{min(mean(p['returns']) for p in ps):.1f}"))
    worst = f"return, worst of all {number(len(seeds) * episodes)} episodes"
    rows += [
        row(worst, lambda ps: f"{min(min(p['returns']) for p in ps):.1f}"),
        row("hidden widths", widths_text),
        row(f"hidden neurons{' (removed)' * pruned}", lambda ps: _size_cell(ps, "neurons")),
        row(f"weights and biases{' (removed)' * pruned}", lambda ps: _size_cell(ps, "weights")),
        row("multiply-adds per action", lambda ps: number(mean([p["macs"] for p in ps]))),
        row("bytes, with observation statistics", lambda ps: number(mean([p["bytes"] for p in ps]))),
        row("latency of one action in NumPy (µs)", lambda ps: f"{mean([p['latency_us'] for p in ps]):.1f}"),
    ]
    differences = {name: difference_to_dense(seeds, name) for name in names if name != "dense"}
    found = [difference for difference in differences.values() if difference]
    if found:
        kind = next((f" [{d.interval_name}]" for d in found if d.interval), f", equal in all {found[0].unit}")
        cells = [difference_text(d) if (d := differences.get(name)) else "-" for name in names]
        rows.append([f"paired difference to dense{kind}", *cells])
    notes = ["Sizes are those of the actor, which alone is shipped" + (
        "; where seeds differ, their mean, and widths from the narrowest to the widest." if several else "."
    )]  # fmt: skip
    if {"onnx", "c", "int8"} & set(names):
        notes.append("*ONNX Runtime* and *C* are the compact policy's exported code, called from Python.")
    if "masked" in names:
        notes.append(
            "*masked* is the network at the width it started with, its removed neurons set to zero; *compact*, the "
            "same function with them taken out, is the file in policy/. Latency at small sizes is mostly the cost of "
            "NumPy's calls, whatever the widths."
        )
    heads = ["", *(labels[name] if pruned else name for name in names)]
    return table(heads, rows) + "\n\n" + " ".join(notes)


def _frontier(data: Mapping[str, Any], tolerance: float | None) -> str:
    """The policies that the run kept while it narrowed, of all seeds together by their number of neurons."""
    rows = []
    for neurons in sorted({point["neurons"] for point in data["points"]}):
        points = [point for point in data["points"] if point["neurons"] == neurons]
        means = [mean(point["returns"]) for point in points]
        weights = [point["weights"] for point in points]
        chosen = sum(is_chosen(data, point) for point in points)
        rows.append(
            [number(neurons), widths_text(points), span(min(weights), max(weights)), f"{mean(means):.1f}",
             f"{min(means):.1f}", str(len({point["seed"] for point in points})), str(chosen) if chosen else ""]
        )  # fmt: skip
    heads = ["hidden neurons", "widths", "weights", "mean return", "worst policy's mean", "seeds", "chosen"]
    note = (
        f"Policies kept while the network narrowed, each over {data['episodes']} episodes or more that serve the "
        "choice alone: the evaluation above has others. `prune-rl choose` takes another one."
    )
    chosen_points = [point for point in data["points"] if is_chosen(data, point)]
    if sizes := [point["averaged"] for point in chosen_points if point["averaged"] > 1]:
        note += (
            f" Of the chosen policies, {len(sizes)} of {len(chosen_points)} are the mean of kept policies with the "
            f"same neurons ({span(min(sizes), max(sizes))} each)."
        )
    missed = [] if tolerance is None else _seeds_beyond(data, tolerance)
    return "\n\n".join(
        ["![return against hidden neurons](frontier.png)", note, table(heads, rows, 2), *missed]
    )


def _seeds_beyond(data: Mapping[str, Any], tolerance: float) -> list[str]:
    """A sentence for each seed of which no policy keeps the tolerance of its dense control's return."""
    sentences = []
    for name, dense in sorted(data["dense"].items(), key=lambda item: int(item[0])):
        points = [point for point in data["points"] if str(point["seed"]) == name]
        if not points:
            continue
        chosen, missed = choose_within(points, dense, tolerance)
        if missed is not None:
            best = best_of(points)["returns"]
            sentences.append(
                f"**Seed {name} does not keep the tolerance** of {tolerance:.1%}: the best of its policies returns "
                f"{mean(best):.1f} in these episodes, the dense control {mean(dense[: len(best)]):.1f}. The "
                f"smallest that keeps it of this best has {chosen['neurons']} hidden neurons."
            )
    return sentences


def _seed_table(seeds: Entries) -> str:
    pruned = any("compact" in entry["policies"] for entry in seeds)
    compared = pruned and any("dense" in entry["policies"] for entry in seeds)
    rows, bootstrapped = [], False
    for entry in seeds:
        own, control = own_policy(entry), entry["policies"].get("dense")
        if own is None:
            continue
        rows.append(
            [str(entry["seed"]), return_text([own]), f"{min(own['returns']):.1f}", widths_text([own])]
        )
        if pruned:
            rows[-1] += [f"{removed(own[key]):.1%}" for key in ("neurons", "weights")]
        if compared:
            difference = difference_to_dense([entry], "compact")
            bootstrapped |= difference is not None and difference.interval is not None
            rows[-1] += [
                f"{mean(control['returns']):.1f}" if control else "-",
                difference_text(difference) if difference else "-",
            ]
    heads = ["seed", "return, mean ± std over episodes", "worst episode", "widths"]
    if pruned:
        heads += ["neurons removed", "weights removed"]
    if compared:
        kind = " [95% bootstrap interval over episodes]" if bootstrapped else ""
        heads += ["dense control", f"paired difference{kind}"]
    return table(heads, rows)


def _marks(config: Config, records: Records, seeds: Entries, window: Window | None) -> Marks:
    layers = [name for name in records[-1].get("widths") or {} if name.startswith("actor")]
    own = [policy for policy in map(own_policy, seeds) if policy is not None]
    control = [entry["policies"]["dense"] for entry in seeds if "dense" in entry["policies"]]
    compared = config.get("method") != "dense"
    return Marks(
        window=(window.begin, window.end) if window else None,
        window_name=window.name if window else "",
        target_widths=dict(zip(layers, target_widths(config), strict=False)),
        evaluated=tuple(mean(policy["returns"]) for policy in own),
        evaluated_name="compact policy" if is_pruned(config) else f"{config.get('method')} policy",
        control=mean([mean(policy["returns"]) for policy in control]) if control and compared else None,
    )


def _size_cell(policies: list[Policy], key: str) -> str:
    kept, share = mean([p[key]["kept"] for p in policies]), mean([removed(p[key]) for p in policies])
    return f"{number(kept)} ({share:.1%})" if share else number(kept)
