"""The configuration of a run directory."""

from __future__ import annotations

from pathlib import Path

from prune_rl.runs.config_file import COPY_NAME
from prune_rl.runs.directory import RunDirectoryError
from prune_rl.runs.json_text import read_object
from prune_rl.training.config import Config
from prune_rl.training.structuring import from_json


def read_config(run: Path) -> Config:
    """The configuration of a run; raises ``RunDirectoryError`` if there is none, or a damaged one."""
    try:
        data = read_object(run / "config.json")
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{run} is not a run directory of prune-rl: {error}") from error
    except ValueError as error:
        raise RunDirectoryError(
            f"{run} is not a run directory of prune-rl: its config.json is damaged ({error}); restore it from "
            f"{COPY_NAME} beside it, or give the command that trained the run again, which does so"
        ) from error
    data.pop("command", None)
    if "sweep" in data:
        inside = sorted(each.parent.name for each in run.glob("*/config.json"))
        example = f", such as {run / inside[0]}" if inside else ""
        raise RunDirectoryError(
            f"{run} is a sweep, not a run: give one of the run directories in it{example}"
        )
    try:
        return from_json(data)
    except (ValueError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{run} is not a run directory of prune-rl: {error}") from error
