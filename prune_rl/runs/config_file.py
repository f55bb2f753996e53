"""config.json of a run, as the reports read it: plain JSON data in today's layout, whatever version wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_rl.runs.json_text import check_types, items, read_object, whole_number

# A second config.json, for the case that the first one is damaged.
COPY_NAME = ".config-copy.json"


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run, with `method`, `learner.total_timesteps` and `learner.prune` in today's layout.

    Earlier versions kept the number of steps at the top level, and pruning options in dense runs; `learner.prune` of
    the result is None for every dense run.

    Raises:
      ValueError: `run` is not a run directory, or config.json is damaged. The message says which.
    """
    path = run / "config.json"
    if path.is_file():
        remedy = (
            f"restore the file from {COPY_NAME} beside it, or give the command that trained the run again, which does "
            "so"
        )
        config = read_json(path, remedy)
        try:
            _check(config)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from None
        return _in_todays_layout(config)
    if not run.exists():
        reason = "it does not exist"
    elif not run.is_dir():
        reason = "it is a file"
    elif any(run.glob("*/config.json")):
        reason = f"it contains run directories; name those, as in {run}/*"
    else:
        reason = "it has no config.json"
    raise ValueError(f"{run} is not a run directory of prune-rl: {reason}")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from an existing file.

    Raises:
      ValueError: the file is damaged; the message ends in `remedy`.
    """
    try:
        return read_object(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None


# Fields that the reports read, with their types in JSON.
_NUMBER = (int, float)
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("env", "algo", "method", "command"), str),
    **dict.fromkeys(("seed", "seeds", "episodes", "evaluation_seed", "steps"), int),
}
_LEARNER: dict[str, Any] = {
    **dict.fromkeys(("num_envs", "num_steps", "total_timesteps"), int),
    "hidden": list,
    "width_exponent": _NUMBER,
}
_PRUNE: dict[str, Any] = {
    **dict.fromkeys(("sparsity", "begin", "end", "strength", "width_exponent"), _NUMBER),
    **dict.fromkeys(("scope", "score"), str),
}


def _check(config: Mapping[str, Any]) -> None:
    check_types(config, _FIELDS)
    check_types(config, {"learner": dict}, null=True)
    learner = config.get("learner") or {}
    check_types(learner, _LEARNER, "learner.")
    check_types(learner, {"critic_hidden": list, "prune": dict}, "learner.", null=True)
    prune = learner.get("prune") or {}
    check_types(prune, _PRUNE, "learner.prune.")
    rules = dict.fromkeys(("tolerance", "gate", "energy"), _NUMBER)
    check_types(prune, {**rules, "min_width": int}, "learner.prune.", null=True)
    for whole in (learner.get("hidden"), learner.get("critic_hidden"), config.get("extends")):
        for value in items(whole or []):
            whole_number(value)


def _in_todays_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    learner = dict(config.get("learner") or {})
    prune = learner.get("prune")
    if prune is not None:
        prune = {key: value for key, value in prune.items() if key != "enabled"} or None
    method = config.get("method", "dense" if prune is None else "dynamic")
    learner["prune"] = None if method == "dense" else prune
    learner.pop("total_updates", None)
    if "steps" in config:
        learner["total_timesteps"] = config["steps"]
    rest = {key: value for key, value in config.items() if key != "steps"}
    return {**rest, "method": method, "learner": learner}
