"""What one run writes while it trains: its log, its masks over time, and the policies of its frontier.

Runs that train in one program have one each, and share checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prune_rl.learners.registry import Metrics
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.runs.frontier import FrontierFolder
from prune_rl.runs.log_rows import joined, record
from prune_rl.runs.logging import MetricsLog
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.training.config import Config
from prune_rl.training.engines import Engine
from prune_rl.training.frontier import FrontierKeeper


class RunRecords:
    """The records of one run in ``path``, whose seeds are the members of an engine from ``first`` on.

    Of the processes of ``group``, the first one writes all but the policies, which each writes of its own seeds.

    Attributes:
        config: of the run, resolved.
        path: the folder of the run.
        members: of the engine.
    """

    def __init__(self, config: Config, path: Path, first: int = 0, group: ProcessGroup = ALONE) -> None:
        self.config, self.path = config, path
        self.members = range(first, first + config.seeds)
        self._log = MetricsLog(path / "metrics.jsonl") if group.is_first else None
        self._history = MaskHistory(path / "masks") if group.is_first else None
        self._rows: list[Metrics] = []
        self._keeper: FrontierKeeper | None = None

    def rewind(self, done: int, lines: int | None) -> list[str]:
        """Forget what came after ``done`` updates; ``lines``: of the log up to there, if known. Returns notes."""
        assert self._log is not None, "only the first process rewinds"
        assert self._history is not None
        steps = self._steps(done)
        self._log.rewind(steps, lines)
        self._history.rewind(steps)
        FrontierFolder(self.path).rewind(steps)
        return [*self._log.take_notes(), *self._history.notes]

    def add(self, metrics: Metrics, done: int, end: bool, start: float) -> list[str]:
        """The metrics [S] of all members in one update, the one that makes it ``done`` updates. Returns notes.

        ``end``: a line of the log ends here; ``start``: when the clock of the log began.
        """
        if self._log is None:
            return []
        self._rows.append(self._mine(metrics))
        if not end:
            return []
        self._log.write(self._steps(done), record(joined(self._rows), done, start))
        self._rows.clear()
        return self._log.take_notes()

    def add_masks(self, masks: dict[str, Any], done: int) -> None:
        """The masks [S, size] of all members after ``done`` updates."""
        if self._history is not None:
            self._history.write(self._steps(done), self._mine(masks))

    def keep_policies(self, engine: Engine[Any], done: int) -> None:
        """Save the policies of this run for its frontier."""
        if self._keeper is None:
            first = self.members.start
            self._keeper = FrontierKeeper(self.config, engine.spec, self.path, first, engine.held)
        frozen = engine.faults.frozen[self._slice].tolist()
        self._keeper.keep(engine.state, self._steps(done), frozen)

    def sync(self) -> int:
        """Put the log on the disk; returns its number of lines, 0 in other processes than the first."""
        return 0 if self._log is None else self._log.sync()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    @property
    def _slice(self) -> slice:
        return slice(self.members.start, self.members.stop)

    def _mine(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[self._slice], tree)

    def _steps(self, done: int) -> int:
        return done * self.config.learner.steps_per_update


def records_of(runs: Sequence[tuple[Config, Path]], group: ProcessGroup = ALONE) -> list[RunRecords]:
    """The records of runs that train together, in the order of the engine's members."""
    records: list[RunRecords] = []
    for config, path in runs:
        records.append(RunRecords(config, path, records[-1].members.stop if records else 0, group))
    return records
