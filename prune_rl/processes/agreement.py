"""What the processes of a group must have in common: the run, the libraries, and the folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_rl.processes.group import ProcessGroup

# Seconds that a network file system may take to show a new folder on other hosts.
PATIENCE = 60.0


def check_alike(group: ProcessGroup, what: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` in all processes if ``what``, JSON data, differs between them."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in what.items()}
    each = group.gather("agreement", texts)
    for index, other in enumerate(each):
        for key in sorted(each[0].keys() | other.keys()):
            if other.get(key) != each[0].get(key):
                raise ValueError(
                    f"all processes must run the same command with the same libraries, but {key} is "
                    f"{_short(each[0].get(key))} in process 0 and {_short(other.get(key))} in process {index}"
                )


def check_shared(group: ProcessGroup, folder: Path, patience: float = PATIENCE) -> None:
    """Raise ``ValueError`` in all processes if one of them does not see the first one's config.json in ``folder``."""
    if group.size == 1:
        return
    name = folder / "config.json"
    written = group.from_first("config.json", name.read_bytes)
    end = time.monotonic() + patience
    while not (seen := _is_same(name, written)) and time.monotonic() < end:
        time.sleep(0.5)
    each = group.gather("shared folder", seen)
    if not all(each):
        raise ValueError(
            f"process {each.index(False)} of {group.size} does not see the run directory {folder} of process 0: give a "
            "--run-dir on a file system that all hosts share"
        )


def _short(text: str | None) -> str:
    text = "absent" if text is None else text
    return text if len(text) <= 80 else text[:80] + "…"


def _is_same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
