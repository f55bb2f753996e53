"""Checkpoints that survive `kill -9`, restore bit for bit, and detect damage.

orbax writes a checkpoint under a temporary name and renames it last, so an interrupted save is never restored. Two
checksums verify that the bytes read are those written, which orbax does not: one over the leaves, stored in the header,
and one per file, compared before orbax opens any of them (its reader threads report errors on their own).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from prune_rl.atomic_files import write_json
from prune_rl.runs import checkpoint_parts as parts
from prune_rl.runs import serialization as leaf_layout
from prune_rl.runs.checkpoint_parts import Part
from prune_rl.runs.json_text import read_object
from prune_rl.runs.orbax_errors import as_os_error, quiet, reason, silence_late_writes
from prune_rl.runs.serialization import Layout

FORMAT = 2
# Written by several processes: the header says which leaves are in parts, and has a checksum of each part.
PARTS_FORMAT = 3
DAMAGED_FOLDER = "damaged"
FILE_SUMS = "sha256.json"


class CheckpointMismatchError(ValueError):
    """An undamaged checkpoint has other leaves than the template: it belongs to another configuration."""


class _DamagedError(Exception):
    """A checkpoint is damaged; not raised outside this module."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint; the tree has the template's structure, dtypes, shapes and device placement."""

    step: int
    tree: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them, in the folder `path`.

    Attributes:
      notes: sentences worth printing, such as a damaged checkpoint that was skipped.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2, part: Part | None = None) -> None:
        """`part`: where several processes save together, what this one holds; all call the methods in step."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
        self.notes: list[str] = []
        self._path = Path(path).absolute()
        self._keep, self._part = keep, part
        self._path.mkdir(parents=True, exist_ok=True)
        # Each process reads by itself. What they write together is made when it is needed: reading changes folders.
        first = part is None or part.group.is_first
        self._reader = self._open(parts.alone(), cleanup=first)
        self._writer = self._reader if part is None else None

    def _open(self, processes: ocp.options.MultiprocessingOptions, cleanup: bool) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            step_prefix="step",
            step_format_fixed_length=12,
            cleanup_tmp_directories=cleanup,
            enable_async_checkpointing=False,
            lightweight_initialize=True,
            create=False,
            multiprocessing_options=processes,
        )
        with quiet():
            return ocp.CheckpointManager(self._path, options=options, item_names=("leaves", "header"))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first. Damage is detected by `restore` only."""
        return sorted(int(step) for step in (self._writer or self._reader).all_steps())

    def save(self, step: int, tree: Any, metadata: dict[str, Any] | None = None) -> None:
        """Writes one checkpoint; returns when it is complete on disk.

        Args:
          step: larger than every step saved before.
          tree: any pytree of arrays: JAX or NumPy, of every dtype, typed PRNG keys and empty arrays included. Of
            several processes each gives its part.
          metadata: JSON data, returned by `restore` with the tree.

        Raises:
          ValueError: `step` is not larger than the newest step.
          TypeError: a leaf is not an array, or `metadata` is not JSON data.
          OSError: it cannot be written, for example because the disk is full. Earlier checkpoints are untouched.
        """
        steps = self.steps()
        if step < 0 or (steps and step <= steps[-1]):
            newest = f"the newest checkpoint's, {steps[-1]}" if steps else "-1"
            raise ValueError(f"cannot save step {step}: the step must be larger than {newest}")
        arrays, layout = leaf_layout.flatten(tree)
        header: dict[str, Any] = {
            "format": FORMAT,
            "step": int(step),
            "leaves": layout,
            "metadata": json.loads(json.dumps(metadata or {})),
            "leaves_sha256": leaf_layout.digest(arrays),
        }
        # orbax rejects arrays without elements; those are restored from the layout alone.
        stored: dict[str, Any] = {name: array for name, array in arrays.items() if array.size}
        if self._part is not None:
            shared = self._part.shared_names(arrays)
            header |= {
                "format": PARTS_FORMAT,
                "leaves": self._part.whole_layout(layout, shared),
                "leaves_sha256": self._part.group.gather("checksum", header["leaves_sha256"]),
                "shared": sorted(shared),
            }
            stored = self._part.whole_arrays(stored, shared)
            if self._writer is None:
                self._writer = self._open(parts.together(self._part.group), cleanup=False)
        assert self._writer is not None
        header["sha256"] = _digest_json(header)
        try:
            with quiet():
                self._writer.save(
                    int(step),
                    args=ocp.args.Composite(
                        leaves=ocp.args.StandardSave(stored or {"empty": np.zeros(1, np.int8)}),
                        header=ocp.args.JsonSave(header),
                    ),
                    force=True,
                )
        except (
            Exception
        ) as error:  # orbax passes on what it gets: OSError, ValueError, errors of its C++ part
            silence_late_writes()
            raise as_os_error(error, step, self._path) from error
        if self._part is not None and not self._part.group.is_first:
            return
        folder = self._folder(int(step))
        # If the process is killed before this line, the header's checksum still verifies the checkpoint.
        write_json(folder / FILE_SUMS, _digest_files(folder))

    def restore(self, template: Any | Callable[[dict[str, Any]], Any]) -> Checkpoint | None:
        """Reads the newest checkpoint that is complete and undamaged; None if there is none.

        A damaged one is moved to the subdirectory "damaged", so that its step can be saved again, and is reported in
        `notes`.

        Args:
          template: a tree like the one saved; of its leaves (arrays or ShapeDtypeStruct) only type, shape,
            dtype and placement are used. Or a function that returns it for the checkpoint's metadata, for a tree
            whose shapes change.

        Raises:
          CheckpointMismatchError: the checkpoint is undamaged but has other leaves than the template.
        """
        if self._part is None:
            return self._restore_newest(template)
        own: list[Checkpoint | None] = []

        def newest() -> dict[str, int | None]:
            own.append(self._restore_newest(template))
            return {"step": None if own[0] is None else own[0].step}

        step = self._part.group.from_first("newest checkpoint", newest)["step"]
        if own or step is None:
            return own[0] if own else None
        try:
            return self._read(step, template)
        except _DamagedError as error:
            raise OSError(
                f"process {self._part.group.index} cannot read checkpoint {step} in {self._path}, which process 0 can "
                f"({error}): the folder has to be on a file system that all hosts share"
            ) from None

    def _restore_newest(self, template: Any) -> Checkpoint | None:
        damaged = 0
        for step in reversed(self.steps()):
            try:
                self._check_files(step)
                return self._read(step, template)
            except _DamagedError as error:
                damaged += 1
                self._move_aside(step, str(error))
        if damaged:
            self.notes.append(f"none of the {damaged} checkpoints in {self._path.name}/ is usable")
        return None

    def _read(self, step: int, template: Any) -> Checkpoint:
        header = self._read_header(step)
        wanted = template(header["metadata"]) if callable(template) else template
        layout: Layout = header["leaves"]
        shared = set[str]()
        if self._part is not None:
            shared = self._part.shared_names(layout)
            layout = self._part.own_layout(layout, shared)
        self._check_layout(step, wanted, layout)
        arrays = self._read_leaves(step, header)
        if self._part is not None:
            arrays = self._part.own_arrays(arrays, shared)
        return Checkpoint(step, leaf_layout.unflatten(wanted, layout, arrays), header["metadata"])

    def close(self) -> None:
        """Stops orbax's threads; the object cannot be used afterwards."""
        with quiet():
            self._reader.close()
            if self._writer is not None and self._writer is not self._reader:
                self._writer.close()

    def _folder(self, step: int) -> Path:
        for folder in self._path.glob("step_*"):
            number = folder.name.removeprefix("step_")
            if number.isascii() and number.isdigit() and int(number) == step:
                return folder
        raise _DamagedError("its folder is gone")

    def _check_files(self, step: int) -> None:
        folder = self._folder(step)
        try:
            sums = read_object(folder / FILE_SUMS)
        except (FileNotFoundError, ValueError):
            return  # the header's checksum is checked instead
        try:
            present = _digest_files(folder)
        except OSError as error:
            raise _DamagedError(f"a file cannot be read: {error.strerror}") from None
        for name in sorted(sums):
            if present.get(name) != sums[name]:
                raise _DamagedError(f"{name} is {'changed' if name in present else 'missing'}")

    def _read_header(self, step: int) -> dict[str, Any]:
        try:
            with quiet():
                read = self._reader.restore(step, args=ocp.args.Composite(header=ocp.args.JsonRestore()))
            header = dict(read["header"])
            digest = header.pop("sha256")
        except Exception as error:  # a damaged file can make orbax raise anything
            raise _DamagedError(f"its header cannot be read: {reason(error)}") from None
        if digest != _digest_json(header) or header["step"] != step:
            raise _DamagedError("its header does not match its checksum")
        if header["format"] not in (FORMAT, PARTS_FORMAT):
            raise CheckpointMismatchError(
                f"checkpoint {step} in {self._path} has format {header['format']}, this version reads "
                f"{FORMAT} and {PARTS_FORMAT}: continue with the version that wrote it, or start in another run "
                "directory"
            )
        return header

    def _check_layout(self, step: int, template: Any, layout: Layout) -> None:
        problem = leaf_layout.mismatch(template, layout)
        if problem is not None:
            raise CheckpointMismatchError(
                f"checkpoint {step} in {self._path} belongs to another configuration: {problem}; "
                "use the configuration it was made with, or another run directory"
            )

    def _read_leaves(self, step: int, header: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        empty = {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in header["leaves"].items()}
        wanted = {name: array for name, array in empty.items() if array.size}
        try:
            read: dict[str, Any] = {}
            if wanted:
                with quiet():
                    read = self._reader.restore(
                        step, args=ocp.args.Composite(leaves=ocp.args.StandardRestore(wanted))
                    )["leaves"]
            arrays = {name: np.asarray(read.get(name, array)) for name, array in empty.items()}
        except Exception as error:  # as above
            raise _DamagedError(f"its arrays cannot be read: {reason(error)}") from None
        sums = header["leaves_sha256"]
        found: Any = leaf_layout.digest(arrays) if isinstance(sums, str) else parts.digests(arrays, header)
        if found != sums:
            raise _DamagedError("its arrays do not match their checksum")
        return arrays

    def _move_aside(self, step: int, reason: str) -> None:
        self.notes.append(
            f"checkpoint {step} is damaged ({reason}); it is skipped and now lies in "
            f"{self._path.name}/{DAMAGED_FOLDER}/"
        )
        target = self._path / DAMAGED_FOLDER
        target.mkdir(exist_ok=True)
        with contextlib.suppress(_DamagedError):
            folder = self._folder(step)
            shutil.rmtree(target / folder.name, ignore_errors=True)
            os.replace(folder, target / folder.name)
        with quiet():
            self._reader.reload()


def _digest_files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != FILE_SUMS
    }


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
