"""The dense control goes on from the pruned run's last checkpoint before the two differ, see ``dense_part``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prune_rl.envs.task import Task
from prune_rl.runs.checkpoint_parts import Part
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.logging import PER_GROUP, MetricsLog, read_metrics
from prune_rl.training.config import Config

FOLDER = "dense_part"


def last_shared_checkpoint(num_dense: int, every: int) -> int:
    """Updates at the last of the checkpoints, ``every`` updates apart, up to which run and control are one; or 0."""
    return num_dense // every * every


def save_dense_part(
    path: Path, step: int, tree: Any, metadata: dict[str, Any], part: Part | None = None
) -> None:
    """Keep the control's part ``tree`` of a run in the folder ``path`` after ``step`` updates.

    ``part`` as in ``Checkpoints``.
    """
    checkpoints = Checkpoints(path / FOLDER, keep=1, part=part)
    try:
        if step not in checkpoints.steps():  # of a run that was interrupted after it
            checkpoints.save(step, tree, {**metadata, "widths": {}})
    finally:
        checkpoints.close()


def forget_dense_part(path: Path) -> None:
    """Remove what ``save_dense_part`` kept."""
    shutil.rmtree(path / FOLDER, ignore_errors=True)


def start_of_control(
    run: Path,
    dense: Config,
    task: Task,
    make_engine: Callable[[Config, Task], Any],
    say: Callable[[str], None],
) -> Callable[[Path], None]:
    """What fills the control's folder before its training begins; called with that folder, which is locked.

    The checkpoint and the log's lines are those that the control would have written itself. Where its training has
    begun, or ``run`` kept nothing that can be read, it does nothing.
    """

    def fill(path: Path) -> None:
        if not (run / FOLDER).is_dir() or (path / "metrics.jsonl").exists():
            return
        kept, checkpoints = Checkpoints(run / FOLDER), Checkpoints(path / "checkpoints")
        engine = make_engine(dense, task)
        try:
            found = kept.restore(lambda metadata: engine.template(metadata["widths"]))
            if found is None or checkpoints.steps():
                return
            steps = found.step * dense.learner.steps_per_update
            _copy_log(run, path, steps)
            say(f"the dense control goes on from {steps:,} steps of {run}: up to there both are the same run")
            # Last, since it says that all the rest is there.
            checkpoints.save(found.step, found.tree, found.metadata)
        finally:
            kept.close()
            checkpoints.close()
            engine.close()

    return fill


def _copy_log(run: Path, path: Path, steps: int) -> None:
    """The lines of the log up to ``steps``, without what a dense run does not report."""
    log = MetricsLog(path / "metrics.jsonl")
    try:
        for record in read_metrics(run / "metrics.jsonl"):
            if record["step"] <= steps:
                line = {key: value for key, value in record.items() if not _of_pruning(key)}
                log.write(record["step"], line)
    finally:
        log.close()


def _of_pruning(key: str) -> bool:
    return key.startswith("prune_") or key in PER_GROUP
