"""config.json of a run, as the reports read it: plain JSON data in today's layout, whatever version wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run, with `method`, `learner.total_timesteps` and `learner.prune` in today's layout.

    Earlier versions kept the number of steps at the top level, and pruning options in dense runs; `learner.prune` of
    the result is None for every dense run.

    Raises:
      ValueError: `run` is not a run directory, or config.json is damaged. The message says which.
    """
    path = run / "config.json"
    if path.is_file():
        remedy = "restore the file, or train again in another --run-dir"
        config = read_json(path, remedy)
        if not isinstance(config.get("learner") or {}, dict):
            raise ValueError(f"{path} is damaged (learner must be an object): {remedy}")
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
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None


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
