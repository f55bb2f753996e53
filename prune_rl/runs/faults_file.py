"""faults.json of a run: which of its seeds have no policy, and why. A run without such seeds has no such file.

The file is a list of objects, one per seed: {"seed": int, "sentence": str, …}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune_rl.atomic_files import write_json

FAULTS_FILE = "faults.json"


def write_faults(run: str | os.PathLike[str], faults: Sequence[dict[str, Any]]) -> None:
    """Replace faults.json by one with these entries; without any there is no file."""
    path = Path(run) / FAULTS_FILE
    if faults:
        write_json(path, list(faults))
    else:
        path.unlink(missing_ok=True)


def read_faults(run: str | os.PathLike[str]) -> dict[int, str]:
    """{seed: why it has no policy}, in order of seeds; empty if there is no file.

    Raises:
        ValueError: the file is damaged; the message says what to do.
    """
    path = Path(run) / FAULTS_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return dict(sorted((int(entry["seed"]), str(entry["sentence"])) for entry in entries))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it and give the command that trained the run "
            "again, which writes it anew"
        ) from None
