"""The configuration of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

from prune_rl.runs.directory import RunDirectoryError
from prune_rl.training.config import Config
from prune_rl.training.structuring import from_json


def read_config(run: Path) -> Config:
    """The configuration of a run; raises ``RunDirectoryError`` if there is none, or a damaged one."""
    try:
        data = json.loads((run / "config.json").read_text(encoding="utf-8"))
        data.pop("command", None)
        return from_json(data)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{run} is not a run directory of prune-rl: {error}") from error
