"""The policies that a run kept while its network narrowed, and frontier.json: what they return and weigh.

    frontier/step_000000008192/seed_3/policy.{json,safetensors}

frontier.json is an object {"env_id", "backend", "episodes", "seed", "until", "points": [point, …],
"dense": {seed: [return per episode]}, "chosen": {seed: step}}, written after the training. "until" is the last step at
which a policy was kept; what was about to be chosen has played more than "episodes":

    point: {"seed": int, "step": int, "widths": [int per hidden layer], "neurons": int, "weights": int, "bytes": int,
            "returns": [float per episode]}

The episodes are those that policies are *selected* by. They start from other seeds than those of evaluation.json, so
that what is reported of the chosen policy was not part of the choice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_rl.export.policy import Policy, save_policy
from prune_rl.runs.config_file import read_json
from prune_rl.runs.evaluation_file import check_returns
from prune_rl.runs.json_text import entries, items, whole_number
from prune_rl.runs.step_names import named_steps, step_name

FRONTIER_FILE = "frontier.json"
Point = Mapping[str, Any]


class FrontierFolder:
    """The folders of the policies that were kept, by step and seed."""

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.path = Path(run) / "frontier"

    def policy(self, step: int, seed: int) -> Path:
        """Where the policy of a seed after ``step`` environment steps is."""
        return self._folder(step) / f"seed_{seed}"

    def steps(self) -> list[int]:
        """Steps at which policies were kept, in order."""
        return named_steps(self.path)

    def save(self, step: int, seed: int, policy: Policy) -> None:
        """Keep the policy of a seed after ``step``."""
        where = self.policy(step, seed)
        where.parent.mkdir(parents=True, exist_ok=True)
        save_policy(where, policy)

    def remove(self, step: int, seed: int) -> None:
        """Forget it again; a step without policies has no folder."""
        shutil.rmtree(self.policy(step, seed))
        with contextlib.suppress(OSError):  # others are left
            self._folder(step).rmdir()

    def rewind(self, step: int) -> None:
        """Removes what was kept after ``step``."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self._folder(later))

    def _folder(self, step: int) -> Path:
        return self.path / step_name(step)


def read_frontier(run: Path) -> dict[str, Any]:
    """frontier.json of a run, checked as far as it is used.

    Raises:
        ValueError: the file is missing or damaged; the message says what to do.
    """
    path = run / FRONTIER_FILE
    remedy = "give the command that trained the run again, which measures what it kept"
    if not path.exists():
        raise ValueError(f"{path} is missing: {remedy}")
    data = read_json(path, f"delete it and {remedy}")
    try:
        for point in items(data["points"]):
            for key in ("seed", "step", "neurons", "weights", "bytes"):
                whole_number(entries(point)[key])
            check_returns(point["returns"])
            for width in items(point["widths"]):
                whole_number(width)
        for returns in entries(data["dense"]).values():
            check_returns(returns)
        for step in entries(data["chosen"]).values():
            whole_number(step)
        whole_number(data["episodes"])
        whole_number(data.get("until", 0))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it and {remedy}"
        ) from None
    return data
