"""Log of a training run: metrics.jsonl, and the same records as TensorBoard events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import write_bytes

# TensorBoard gets one curve per seed up to this many seeds, and always the mean.
SEEDS_IN_TENSORBOARD = 16
_TO_JSON = {math.inf: "Infinity", -math.inf: "-Infinity"}
_FROM_JSON = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class MetricsLog:
    """Appends records to metrics.jsonl and to TensorBoard events in the folder tensorboard/ beside it.

    Opening an existing file removes an incomplete last line. A continued run calls `rewind` before its first
    `write`, so that its lines equal those of an uninterrupted run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._purge_step: int | None = None
        self._events: Any = None
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                write_bytes(self.path, whole)
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
        """
        plain = {"step": int(step)} | {
            key: _plain(value, key) for key, value in record.items() if key != "step"
        }
        self._file.write(json.dumps(plain, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n")
        self._file.flush()
        for tag, value in _scalars(plain):
            self._tensorboard().add_scalar(tag, value, step)

    def rewind(self, step: int) -> None:
        """Removes every line after `step` (all of them for -1), here and in TensorBoard.

        Raises:
          ValueError: a line other than the last one is damaged.
        """
        kept = [json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n"
                for record in _read_lines(self.path) if record["step"] <= step]  # fmt: skip
        self._file.close()
        write_bytes(self.path, "".join(kept).encode())
        self._file = self.path.open("a", encoding="utf-8")
        if self._events is not None:
            self._events.close()
            self._events = None
        self._purge_step = step + 1

    def close(self) -> None:
        """Flushes and closes both logs."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def _tensorboard(self) -> Any:
        # Created at the first write, when purge_step, from which on older events are ignored, is known.
        if self._events is None:
            from tensorboardX import SummaryWriter

            folder = self.path.parent / "tensorboard"
            # Event files are named by the second; the number keeps two writers in one second apart.
            number = len(list(folder.glob("events.*")))
            self._events = SummaryWriter(
                str(folder), purge_step=self._purge_step, flush_secs=10, filename_suffix=f".{number:03d}"
            )
            self._purge_step = None
        return self._events


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order, null as NaN. An incomplete last line is skipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another line is damaged; the message names it.
    """
    return [_restore(record) for record in _read_lines(Path(path))]


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


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        # What follows the last line break is empty, or the incomplete line of a killed process.
        if number == len(lines):
            return
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({type(error).__name__}: {error}): delete that line"
            ) from None
        yield record


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
