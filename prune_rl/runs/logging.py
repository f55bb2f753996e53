"""Log of a training run: metrics.jsonl, and the same records as TensorBoard events."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import replacing
from prune_rl.runs.json_text import entries, kind_of, number, parse_object, whole_number
from prune_rl.runs.tensorboard import Events

# TensorBoard gets one curve per seed up to this many seeds, and always the mean.
SEEDS_IN_TENSORBOARD = 16
_TO_JSON = {math.inf: "Infinity", -math.inf: "-Infinity"}
# What the reports read of a record: lists over seeds, and mappings from a group of neurons to such lists.
PER_SEED = ("return", "running_return", "episodes", "prune_progress")
PER_GROUP = ("widths", "threshold", "removed_importance", "nan_scores")
_FROM_JSON = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class MetricsLog:
    """Appends records to metrics.jsonl and to TensorBoard events in the folder tensorboard/ beside it.

    Opening an existing file removes an incomplete last line. A continued run calls `rewind` before its first
    `write`, so that its lines equal those of an uninterrupted run. Memory does not grow with the number of lines.

    Attributes:
      notes: sentences worth printing about lines that are missing or were left out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._events = Events(self.path.parent / "tensorboard")
        self._told = 0  # of the events' notes
        self._lines = 0
        if self.path.exists():
            self._lines = _cut_incomplete_line(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends one line {"step": step, …record}.

        Args:
          step: environment steps per seed so far.
          record: numbers, strings, arrays (JAX or NumPy) and lists of numbers, or mappings of these. JSON cannot
            represent non-finite values: NaN (no value, such as a return before any episode has ended) is written
            as null, infinities as "Infinity" and "-Infinity"; `read_metrics` converts them back.

        Raises:
          TypeError: a value is none of these.
          OSError: the disk is full. TensorBoard's events never raise; `take_notes` says what became of them.
        """
        plain = {"step": int(step)} | {
            key: _plain(value, key) for key, value in record.items() if key != "step"
        }
        self._file.write(json.dumps(plain, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n")
        self._file.flush()
        self._lines += 1
        self._events.write(step, _scalars(plain))

    def sync(self) -> int:
        """Flushes metrics.jsonl to the disk, before a checkpoint; returns its number of lines, for `rewind`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._lines

    def rewind(self, step: int, lines: int | None = None) -> None:
        """Removes every line after `step` (all of them for -1), here and in TensorBoard.

        Blank lines and those whose step does not lie after the one before, such as doubled ones, are removed too.
        `lines`, from `sync`, is how many there should be: fewer are a note, and no error, since training does not
        depend on its log.

        Raises:
          ValueError: a line other than the last one is damaged.
        """
        blank = _Count()
        doubled, kept, last = 0, 0, -1
        with replacing(self.path) as file:
            for line, record in _read_lines(self.path, blank):
                if record["step"] > step:
                    continue
                if record["step"] <= last:
                    doubled += 1
                    continue
                file.write(line)
                kept, last = kept + 1, record["step"]
        self._file.close()
        self._file = self.path.open("a", encoding="utf-8")
        self._lines = kept
        for count, what in ((blank.value, "blank"), (doubled, "doubled")):
            if count:
                self.notes.append(
                    f"{self.path.name} had {count} {what} line{'s' * (count > 1)}, now left out"
                )
        if lines is not None and kept < lines:
            self.notes.append(
                f"{self.path.name} lacks {lines - kept} of the {lines} lines that it had up to step {step}: its curves "
                "have holes, the training does not depend on them"
            )
        self._events.close()
        self._events, self._told = Events(self.path.parent / "tensorboard", purge_step=step + 1), 0

    def take_notes(self) -> list[str]:
        """The notes since the last call."""
        taken = self.notes + self._events.notes[self._told :]
        self.notes, self._told = [], len(self._events.notes)
        return taken

    def close(self) -> None:
        """Flushes and closes both logs."""
        self._file.close()
        self._events.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order, null as NaN.

    An incomplete last line, blank lines, and lines whose step does not lie after the one before are skipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another line is damaged; the message names it.
    """
    found: list[dict[str, Any]] = []
    for _, record in _read_lines(Path(path)):
        if not found or record["step"] > found[-1]["step"]:
            found.append(_restore(record))
    return found


def _plain(value: Any, key: str) -> Any:
    """JSON types; floats as the shortest decimal that identifies them in their own precision."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, f"{key}/{name}") for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, key) for entry in value]
    if not isinstance(value, (int, float)) and hasattr(value, "dtype"):
        array = np.asarray(value)
        if array.ndim:
            return [_plain(entry, key) for entry in array]
        if array.dtype == np.bool_:
            return bool(array)
        if np.issubdtype(array.dtype, np.integer):
            return int(array)
        if np.issubdtype(array.dtype, np.floating):
            value = float(str(array[()]))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _TO_JSON.get(value)
    raise TypeError(
        f"the metric {key} is a {type(value).__name__}: a record holds numbers, texts and lists of them"
    )


def _restore(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {name: _restore(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_restore(entry) for entry in value]
    return _FROM_JSON.get(value, value) if isinstance(value, str) else value


@dataclasses.dataclass
class _Count:
    value: int = 0


def _read_lines(path: Path, blank: _Count | None = None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line with what it holds. An incomplete last one, of a killed process, is not among them."""
    lists = _Lists()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if not line.strip():
                if blank is not None:
                    blank.value += 1
                continue
            try:
                record = parse_object(line)
                record["step"] = whole_number(record.get("step"))
                lists.check(record)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is damaged ({error}): delete that line") from None
            yield line, record


class _Lists:
    """Checks that the records of a log have the lists over seeds that the reports read, all of one length."""

    def __init__(self) -> None:
        self._length: int | None = None

    def check(self, record: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` for a value of another type or length."""
        for name in PER_SEED:
            if name in record:
                self._check_list(name, record[name])
        for name in PER_GROUP:
            if name in record:
                for group, values in entries(record[name]).items():
                    self._check_list(f"{name}/{group}", values)

    def _check_list(self, name: str, value: Any) -> None:
        if not isinstance(value, list):  # of a run without seeds, as other programs may log
            if name in PER_SEED and type(value) in (int, float):
                return
            raise ValueError(f"{name} is {kind_of(value)}, not a list over seeds")
        for entry in value:
            if entry is not None and not (isinstance(entry, str) and entry in _FROM_JSON):
                number(entry)
        self._length = len(value) if self._length is None else self._length
        if len(value) != self._length:
            raise ValueError(f"{name} has {len(value)} values, and the log {self._length} seeds")


def _cut_incomplete_line(path: Path) -> int:
    """Removes what follows the last line break, and returns the number of lines."""
    lines, size = 0, 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            lines, size = lines + 1, size + len(line)
        else:
            return lines
    with path.open("r+b") as file:
        file.truncate(size)
    return lines


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """TensorBoard's tags and values: of a list over seeds the mean and, for few seeds, each value."""
    for key, value in record.items():
        tag = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _scalars(value, f"{tag}/")
        elif isinstance(value, list):
            numbers = [entry for entry in value if isinstance(entry, (int, float))]
            if not numbers:
                continue
            if len(value) == 1:
                yield tag, float(numbers[0])
                continue
            yield f"{tag}/mean", sum(numbers) / len(numbers)
            if len(value) <= SEEDS_IN_TENSORBOARD:
                for seed, entry in enumerate(value):
                    if isinstance(entry, (int, float)):
                        yield f"{tag}/seed_{seed}", float(entry)
        elif isinstance(value, (int, float)) and tag != "step":
            yield tag, float(value)
