"""What runs have measured: reading it, differences between policies, and how numbers are written in reports.

evaluation.json, written after training:

    {"env_id": str, "episodes": int, "seeds": [{"seed": int, "policies": {name: P}}]}
    P = {"returns": [float], "lengths": [int], "widths": [int], "neurons": {"kept": int, "total": int},
         "weights": {"kept": int, "total": int}, "macs": int, "bytes": int, "latency_us": float}

with the names "masked" (the wide network with masks), "compact" and "dense" (the control), each where it was measured.
Episode i of every policy starts from the same state, so that returns can be compared in pairs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999

Policy = Mapping[str, Any]
Interval = tuple[float, float]

# --- reading


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
      ValueError: `run` is no run directory (the message says what it is instead), or the file is damaged.
    """
    if (run / "config.json").is_file():
        return read_json(run / "config.json", "restore the file, or train again in another --run-dir")
    if not run.exists():
        reason = "there is nothing of that name"
    elif not run.is_dir():
        reason = "it is a file"
    elif any(run.glob("*/config.json")):
        reason = f"it holds some; name those, as in {run}/*"
    else:
        reason = "it has no config.json"
    raise ValueError(f"{run} is not a run directory of prune-rl: {reason}")


def read_evaluation(run: Path) -> dict[str, Any]:
    """evaluation.json of a run, checked as far as the reports need it.

    Raises:
      ValueError: it is missing or damaged; the message says what to do.
    """
    path, remedy = run / "evaluation.json", f"measure it again with `prune-rl evaluate {run} --write`"
    if not path.exists():
        raise ValueError(f"{path} is missing, the run has not been evaluated: {remedy}")
    data = read_json(path, remedy)
    try:
        for entry in data["seeds"]:
            int(entry["seed"])
            for policy in entry["policies"].values():
                returns = [float(value) for value in policy["returns"]]
                if not returns or not all(math.isfinite(value) for value in returns):
                    raise ValueError("returns must be finite numbers, at least one")
                for key in ("neurons", "weights"):
                    int(policy[key]["kept"]), int(policy[key]["total"])
                int(policy["macs"]), int(policy["bytes"]), float(policy["latency_us"]), list(policy["widths"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    return data


def as_evaluated(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration with the evaluation's own seed and number of episodes, should it have been repeated."""
    keys = ("evaluation_seed", "episodes")
    return {**config, **{key: evaluation[key] for key in keys if key in evaluation}}


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file that exists; raises ``ValueError``, which ends in `remedy`, if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None


def own_policy(entry: Mapping[str, Any]) -> Policy | None:
    """What the run itself made of a seed: the compact policy, or the dense one of a dense run."""
    policy: Policy | None = entry["policies"].get("compact") or entry["policies"].get("dense")
    return policy


def target_widths(config: Mapping[str, Any]) -> list[int]:
    """Actor widths that the pruning schedule of `config` aims at; empty for a run that does not prune."""
    learner = config.get("learner") or {}
    prune = learner.get("prune") or {}
    if config.get("method") == "dense" or "sparsity" not in prune:
        return []
    # The small term: 1 - 0.95 is a little more than 1/20 in binary.
    return [
        max(int(prune.get("min_width", 1)), math.ceil(width * (1 - prune["sparsity"]) - 1e-6))
        for width in learner.get("hidden") or []
    ]


# --- differences


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean of paired differences, and its 95% interval where there is one; `unit` says over what both are taken."""

    mean: float
    interval: Interval | None
    count: int
    unit: Literal["seeds", "episodes"]

    def __str__(self) -> str:
        return signed(self.mean) + (f" [{', '.join(map(signed, self.interval))}]" if self.interval else "")

    @property
    def interval_name(self) -> str:
        """What kind of interval it is."""
        kind = "t" if self.unit == "seeds" else "bootstrap"
        return f"{CONFIDENCE:.0%} {kind} interval over {self.count} {self.unit}"


def paired_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Difference of mean return between two policies, with a 95% interval.

    Args:
      pairs: (returns, returns of the control) per training seed, each over the same episodes.

    With several seeds, the interval is Student's t over the seeds' mean differences: it speaks about training again.
    With one seed, it is a bootstrap over its episodes, and speaks about these two policies only. There is no interval
    over one value, or over values that are all equal, which say nothing of their spread.

    Raises:
      ValueError: there are no pairs, or a seed's two policies played different numbers of episodes.
    """
    if not pairs:
        raise ValueError("a paired difference needs at least one seed measured with both policies")
    for left, right in pairs:
        if len(left) != len(right) or not len(left):
            raise ValueError(f"paired policies must play the same episodes, got {len(left)} and {len(right)}")
    each = [np.subtract(left, right, dtype=np.float64) for left, right in pairs]
    if len(each) > 1:
        values = np.array([np.mean(differences) for differences in each])
        return Difference(float(np.mean(values)), t_interval(values), len(values), "seeds")
    return Difference(float(np.mean(each[0])), bootstrap_interval(each[0]), len(each[0]), "episodes")


def difference_to_dense(seeds: Sequence[Mapping[str, Any]], name: str) -> Difference | None:
    """Paired difference of a policy to the dense control, over the seeds that have both; None where none has."""
    both = [entry["policies"] for entry in seeds if {name, "dense"} <= set(entry["policies"])]
    pairs = [(policies[name]["returns"], policies["dense"]["returns"]) for policies in both]
    usable = [pair for pair in pairs if len(pair[0]) == len(pair[1])]
    return paired_difference(usable) if usable else None


def t_interval(values: NDArray[np.float64]) -> Interval | None:
    """Student's t interval of the mean of `values` [n]; None where they are fewer than two, or all equal.

    It holds its level for any n if the values are normal. A percentile bootstrap does not: of its intervals called
    95%, 76% cover the mean of 3 normal values, 85% that of 5, 90% that of 10.
    """
    if _without_spread(values):
        return None
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def bootstrap_interval(values: NDArray[np.float64]) -> Interval | None:
    """Percentile bootstrap of the mean of `values` [n] (Efron and Tibshirani 1993, section 13.3); None as above.

    The same values give the same interval. Fit for about 30 values or more, whatever their distribution.
    """
    if _without_spread(values):
        return None
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // len(values)),  # bounds the memory
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _without_spread(values: NDArray[np.float64]) -> bool:
    # Equal but for rounding: means of equal differences may differ in their last bits.
    return len(values) < 2 or bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.max(np.abs(values)))))


# --- numbers, cells and tables


def mean(values: Sequence[float]) -> float:
    """Mean in float64."""
    return float(np.mean(np.asarray(values, np.float64)))


def signed(value: float) -> str:
    """One decimal with its sign, and none for what rounds to 0."""
    text = f"{value:+.1f}"
    return text if float(text) else "0.0"


def number(value: float) -> str:
    """Thousands apart, a decimal only where there is one."""
    return "?" if math.isnan(value) else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def removed(size: Mapping[str, Any]) -> float:
    """Share that is gone of {"kept", "total"}."""
    return 1.0 - size["kept"] / size["total"] if size["total"] else 0.0


def widths_text(policies: Sequence[Policy]) -> str:
    """Hidden widths, "7·8"; where the policies differ, from the narrowest to the widest, "7·7–11"."""
    layers = list(zip(*(policy["widths"] for policy in policies), strict=False))
    return "·".join(
        str(min(layer)) if min(layer) == max(layer) else f"{min(layer)}–{max(layer)}" for layer in layers
    )


def return_text(policies: Sequence[Policy]) -> str:
    """Mean ± standard deviation: of the means of several seeds, or of the episodes of one."""
    several = len(policies) > 1
    values = [mean(policy["returns"]) for policy in policies] if several else policies[0]["returns"]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.1f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table that lines up in a terminal, too: the first `text_columns` to the left, numbers to the right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    lines = [
        [cell.ljust(width) if n < text_columns else cell.rjust(width)
         for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]  # fmt: skip
    rule = ["-" * width if n < text_columns else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
