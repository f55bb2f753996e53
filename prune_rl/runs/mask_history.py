"""The masks of a training run over time."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prune_rl.atomic_files import write_bytes
from prune_rl.runs.step_names import named_steps, step_name


class MaskHistory:
    """The masks over time, one small file per change: masks/step_000000001024.npz.

    Each file holds bool[S, n] per group. Masks equal to the previous ones are not written again: the masks at a step
    are those of the newest file up to it.

    Attributes:
      notes: sentences worth printing about damaged files; training does not depend on them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.notes: list[str] = []
        self._last: dict[str, np.ndarray[Any, Any]] | None = None
        self._looked_back = False

    def steps(self) -> list[int]:
        """Steps at which the masks changed, in order."""
        return named_steps(self.path, ".npz")

    def write(self, step: int, masks: Mapping[str, Any]) -> None:
        """Stores bool[S, n] per group, unless they are equal to the last ones.

        Raises:
          TypeError: a mask is not boolean.
        """
        arrays = {name: np.asarray(mask) for name, mask in masks.items()}
        for name, array in arrays.items():
            if array.dtype != np.bool_:
                raise TypeError(f"the mask of {name} has dtype {array.dtype}, it must be bool")
        if not self._looked_back:
            self._last = self._newest()
        if self._last is not None and _equal(self._last, arrays):
            return
        buffer = io.BytesIO()
        # The prefix avoids a clash of a group named "file" with savez's parameter of that name.
        members: dict[str, Any] = {f"masks/{name}": array for name, array in arrays.items()}
        np.savez_compressed(buffer, **members)
        write_bytes(self._file(step), buffer.getvalue())
        self._last = {name: array.copy() for name, array in arrays.items()}

    def read(self, step: int) -> dict[str, np.ndarray[Any, Any]]:
        """The masks at `step`: those of the newest change up to it, bool[S, n] per group.

        Raises:
          ValueError: no masks were stored up to `step`, or the file is damaged.
        """
        at = max((known for known in self.steps() if known <= step), default=None)
        if at is None:
            raise ValueError(f"{self.path} holds no masks up to step {step}")
        try:
            content = io.BytesIO(self._file(at).read_bytes())  # NumPy would not close a damaged file
            with np.load(content, allow_pickle=False) as stored:
                return {name.removeprefix("masks/"): stored[name] for name in stored.files}
        except (
            OSError,
            ValueError,
            EOFError,
            KeyError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise ValueError(f"{self._file(at)} is damaged ({error}): delete it") from None

    def rewind(self, step: int) -> None:
        """Removes the masks stored after `step` (all of them for -1), and notes which others are damaged."""
        for known in self.steps():
            if known > step:
                self._file(known).unlink()
                continue
            try:
                self.read(known)
            except ValueError as error:
                self.notes.append(
                    f"{error}; the masks from step {known} to the next change are lost, nothing else is"
                )
        self._looked_back = False

    def _newest(self) -> dict[str, np.ndarray[Any, Any]] | None:
        self._looked_back = True
        steps = self.steps()
        try:
            return self.read(steps[-1]) if steps else None
        except ValueError:
            return None  # then the next masks are written even if they are equal

    def _file(self, step: int) -> Path:
        return self.path / step_name(step, ".npz")


def _equal(left: dict[str, np.ndarray[Any, Any]], right: dict[str, np.ndarray[Any, Any]]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)
