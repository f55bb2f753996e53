"""The policies that a run kept while its network narrowed, and frontier.json: what they return and weigh.

    frontier/step_000000008192/seed_3/policy.{json,safetensors}
    frontier/step_000000008192/seed_3_average/…   the mean of policies with the same neurons, of which this is the last

frontier.json is an object {"env_id", "backend", "episodes", "seed", "until", "points": [point, …],
"dense": {seed: [return per episode]}, "chosen": {seed: {"step": int, "averaged": int}}}, written after the training.
"until" is the last step at which a policy was kept; what was about to be chosen has played more than "episodes":

    point: {"seed": int, "step": int, "averaged": int, "widths": [int per hidden layer], "neurons": int, "weights": int,
            "bytes": int, "returns": [float per episode]}

"averaged" is the number of policies that a policy is the mean of, 1 for one of them. Files of before have none of it,
and the step alone in "chosen".

The episodes are those that policies are *selected* by. They start from other seeds than those of evaluation.json, so
that what is reported of the chosen policy was not part of the choice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prune_rl.export.policy import Policy, save_policy
from prune_rl.runs.config_file import read_json
from prune_rl.runs.evaluation_file import check_returns
from prune_rl.runs.json_text import entries, items, whole_number
from prune_rl.runs.step_names import named_steps, step_name

FRONTIER_FILE = "frontier.json"
Point = Mapping[str, Any]


class Kept(NamedTuple):
    """Names one of the policies that were kept.

    Attributes:
        seed: of the training.
        step: environment steps after which it was kept.
        averaged: it is the mean of several, of which the last was kept after ``step``.
    """

    seed: int
    step: int
    averaged: bool = False


def kept_of(point: Point) -> Kept:
    """The policy that a point of frontier.json is about."""
    return Kept(point["seed"], point["step"], point["averaged"] > 1)


def is_chosen(data: Mapping[str, Any], point: Point) -> bool:
    """Whether a point of frontier.json is the one that policy/ was taken from."""
    chosen = data["chosen"].get(str(point["seed"]))
    return chosen is not None and kept_of(point) == kept_of({"seed": point["seed"], **chosen})


class FrontierFolder:
    """The folders of the policies that were kept."""

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self.path = Path(run) / "frontier"

    def policy(self, key: Kept) -> Path:
        """Where a policy is, or would be."""
        return self._folder(key.step) / f"seed_{key.seed}{'_average' if key.averaged else ''}"

    def kept(self, seed: int) -> list[Kept]:
        """What is kept of a seed, in order."""
        keys = [Kept(seed, step, averaged) for step in self.steps() for averaged in (False, True)]
        return [key for key in keys if self.policy(key).exists()]

    def steps(self) -> list[int]:
        """Steps at which policies were kept, in order."""
        return named_steps(self.path)

    def save(self, key: Kept, policy: Policy) -> None:
        """Keep a policy."""
        where = self.policy(key)
        where.parent.mkdir(parents=True, exist_ok=True)
        save_policy(where, policy)

    def remove(self, key: Kept) -> None:
        """Forget it again; a step without policies has no folder."""
        shutil.rmtree(self.policy(key))
        with contextlib.suppress(OSError):  # others are left
            self._folder(key.step).rmdir()

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
        points = [{"averaged": 1, **entries(point)} for point in items(data["points"])]
        for point in points:
            for key in ("seed", "step", "neurons", "weights", "bytes", "averaged"):
                whole_number(point[key])
            check_returns(point["returns"])
            for width in items(point["widths"]):
                whole_number(width)
        for returns in entries(data["dense"]).values():
            check_returns(returns)
        chosen = {seed: _choice(choice) for seed, choice in entries(data["chosen"]).items()}
        whole_number(data["episodes"])
        whole_number(data.get("until", 0))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it and {remedy}"
        ) from None
    return {**data, "points": points, "chosen": chosen}


def _choice(value: Any) -> dict[str, int]:
    """An entry of "chosen"; before there were averages it was the step alone."""
    choice = {"averaged": 1, **({"step": value} if isinstance(value, int) else entries(value))}
    return {name: whole_number(choice[name]) for name in ("step", "averaged")}
