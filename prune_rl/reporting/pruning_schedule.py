"""What a run's pruning schedule aimed at, and over which steps it ran."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prune_rl.pruning.mask_schedule import target_width
from prune_rl.reporting.tables import span

# Progress is a float32 sum of many increments, which may end a little below 1. At this value the cubic schedule
# already equals its final share in float32.
COMPLETE = 0.999

Config = Mapping[str, Any]
Records = Sequence[Mapping[str, Any]]


def is_pruned(config: Config) -> bool:
    """Whether neurons were removed in such a run."""
    return bool(_prune(config))


def finds_widths(config: Config) -> bool:
    """Whether neurons went as long as the return held, not by a schedule."""
    return _prune(config).get("tolerance") is not None


def target_widths(config: Config) -> list[int]:
    """Width of each hidden layer of the actor at the end of the schedule.

    Empty for a dense run, where the run finds the widths itself, and where neurons are ranked over all layers together
    (`scope` "global"), where only `target_neurons` is fixed.
    """
    prune = _prune(config)
    if "sparsity" not in prune or finds_widths(config) or prune.get("scope") == "global":
        return []
    floor = _floor(config)
    return [target_width(size, prune["sparsity"], floor) for size in _hidden(config)]


def target_neurons(config: Config) -> int | None:
    """Hidden neurons of the actor at the end of the schedule; None for a dense run, and where the run finds them."""
    prune, hidden = _prune(config), _hidden(config)
    if "sparsity" not in prune or not hidden or finds_widths(config):
        return None
    if prune.get("scope") != "global":
        return sum(target_widths(config))
    floors = sum(min(_floor(config), size) for size in hidden)
    return target_width(sum(hidden), prune["sparsity"], floors)


@dataclasses.dataclass(frozen=True)
class Window:
    """Environment steps over which the pruning threshold rose.

    Attributes:
      begin: the last logged step before the first mask update of any seed.
      end: the step at which the last seed's schedule was complete; the last step of the log if one was not.
      ends: per seed, the step at which its schedule was complete, None if it was not. Empty if not measured.
      progress: per seed, the share of the schedule done at the end of the log. Empty if not measured.
      measured: True if read from the log, False if the log lacks the progress and these are the configured steps.
    """

    begin: float
    end: float
    ends: tuple[float | None, ...] = ()
    progress: tuple[float, ...] = ()
    measured: bool = True

    @property
    def complete(self) -> bool:
        """Whether the schedule was complete for every seed, as far as the log says."""
        return None not in self.ends

    @property
    def name(self) -> str:
        """A label for the picture."""
        kind = "" if self.measured and self.complete else "not complete" if self.measured else "configured"
        return "pruning schedule" + (f" ({kind})" if kind else "")

    def sentence(self, first_seed: int) -> str:
        """What the window is, for a caption; begins with a lower-case letter and has no full stop."""
        if not self.measured:
            return (
                "the steps over which the pruning schedule was configured to run; the log does not record when it "
                "was complete"
            )
        done = [end for end in self.ends if end is not None]
        if self.complete:
            until = span(min(done), max(done)) + (", depending on the seed" if len(set(done)) > 1 else "")
            return f"the steps over which the pruning schedule ran, from {span(self.begin, self.begin)} to {until}"
        seeds = [str(first_seed + index) for index, end in enumerate(self.ends) if end is None]
        who = f" of seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if len(self.ends) > 1 else ""
        return (
            f"the steps from the first mask update on; the pruning schedule{who} was not complete at the end of the "
            "log"
        )


def pruning_window(config: Config, records: Records) -> Window | None:
    """The pruning window of a run, from the log where it records `prune_progress`, else as configured.

    Args:
      config: config.json in today's layout.
      records: lines of metrics.jsonl, in order; "prune_progress" [S] is the share of the schedule done, 0 … 1.

    Returns:
      None for a dense run, and where neither the log nor the configuration says anything.
    """
    prune = _prune(config)
    if not prune:
        return None
    logged = [(record["step"], record["prune_progress"]) for record in records
              if isinstance(record.get("prune_progress"), list)]  # fmt: skip
    first = next((i for i, (_, progress) in enumerate(logged) if any(value > 0 for value in progress)), None)
    if first is not None:
        begin = logged[first - 1][0] if first else 0
        last_step, last = logged[-1]
        ends = tuple(
            next((step for step, progress in logged if progress[seed] >= COMPLETE), None)
            for seed in range(len(last))
        )
        known = [end for end in ends if end is not None]
        end = max(known) if len(known) == len(ends) else last_step
        return Window(begin, end, ends, tuple(last))
    total = config["learner"].get("total_timesteps")
    if total is None or not {"begin", "end"} <= set(prune):
        return None
    return Window(prune["begin"] * total, prune["end"] * total, measured=False)


def _prune(config: Config) -> Mapping[str, Any]:
    return (config.get("learner") or {}).get("prune") or {}


def _hidden(config: Config) -> list[int]:
    return list((config.get("learner") or {}).get("hidden") or [])


def _floor(config: Config) -> int:
    floor = _prune(config).get("min_width", 1)
    return int(not (config.get("learner") or {}).get("skip")) if floor is None else int(floor)
