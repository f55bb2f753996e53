"""evaluation.json of a run: what every policy of every seed returned, and what it weighs.

The file is an object {"env_id", "episodes", "evaluation_seed", "seeds": [entry, …]} with one entry per training seed:

    {"seed": int, "policies": {name: policy}}
    policy: {"returns": [float per episode], "lengths": [int per episode], "widths": [int per hidden layer],
             "neurons": {"kept": int, "total": int}, "weights": {"kept": int, "total": int},
             "macs": int, "bytes": int, "latency_us": float, "largest_weight": float (absent in older files)}

The names of policies are "masked" (the network at its training width, with masks), "compact" and "dense" (the
control), and "onnx", "c" and "int8" for the exported code of the run's own policy, as far as they were measured.
Episode i of every policy starts from the same state, so that returns can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prune_rl.runs.config_file import read_json
from prune_rl.runs.json_text import check_types, entries, items, number, whole_number

Policy = Mapping[str, Any]
Entries = Sequence[Mapping[str, Any]]  # evaluation.json["seeds"]


def read_evaluation(run: Path) -> dict[str, Any]:
    """evaluation.json of a run, checked as far as the reports use it.

    Raises:
      ValueError: the file is missing or damaged; the message says what to do.
    """
    path, remedy = run / "evaluation.json", f"measure it again with `prune-rl evaluate {run} --write`"
    if not path.exists():
        raise ValueError(f"{path} is missing, the run has not been evaluated: {remedy}")
    data = read_json(path, remedy)
    try:
        for entry in items(data["seeds"]):
            whole_number(entries(entry)["seed"])
            for policy in entries(entry["policies"]).values():
                _check_policy(entries(policy))
        check_types(data, {"env_id": str, "episodes": int, "evaluation_seed": int})
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    return data


def as_evaluated(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the evaluation's own seed and number of episodes, in case it was repeated."""
    keys = ("evaluation_seed", "episodes")
    return {**config, **{key: evaluation[key] for key in keys if key in evaluation}}


def own_policy(entry: Mapping[str, Any]) -> Policy | None:
    """The policy that the run itself produced for a seed: the compact one, or the dense one of a dense run."""
    policy: Policy | None = entry["policies"].get("compact") or entry["policies"].get("dense")
    return policy


def _check_policy(policy: Policy) -> None:
    check_returns(policy["returns"])
    for key in ("neurons", "weights"):
        for part in ("kept", "total"):
            whole_number(entries(policy[key])[part])
    whole_number(policy["macs"]), whole_number(policy["bytes"]), number(policy["latency_us"])
    for width in items(policy["widths"]):
        whole_number(width)


def check_returns(returns: Any) -> None:
    """Raises ``ValueError`` unless it is a list of at least one number."""
    if not items(returns):
        raise ValueError("returns must be finite numbers, at least one")
    for value in returns:
        number(value)
