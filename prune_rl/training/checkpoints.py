"""Checkpoints that survive `kill -9`, come back bit for bit, and notice damage.

orbax writes a checkpoint beside its final name and renames it last, so an interrupted save never counts. What
orbax does not promise, that the bytes read are those written, two checksums do: one over the leaves, stored
in the header, and one per file, compared before orbax opens any of them (it reads in threads, which complain
on their own).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from prune_rl.training.files import write_json

FORMAT = 1
DAMAGED_FOLDER = "damaged"
FILE_SUMS = "sha256.json"


class CheckpointMismatchError(ValueError):
    """A checkpoint is whole but holds other leaves than the template: it belongs to another configuration."""


class _DamagedError(Exception):
    """A checkpoint that cannot be trusted; never leaves this module."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.restore` found: the tree has the template's structure, dtypes, shapes and
    placement.
    """

    step: int
    tree: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them, in the folder `path`.

    Attributes:
      notes: sentences worth printing, such as a damaged checkpoint that was skipped.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
        self.notes: list[str] = []
        self._path = Path(path).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            step_prefix="step",
            step_format_fixed_length=12,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
            lightweight_initialize=True,
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self._path, options=options, item_names=("leaves", "header")
            )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first; whether they are undamaged shows only in
        `restore`.
        """
        return sorted(int(step) for step in self._manager.all_steps())

    def save(self, step: int, tree: Any, metadata: dict[str, Any] | None = None) -> None:
        """Writes one checkpoint, and returns when it is complete on disk.

        Args:
          step: larger than every step saved before.
          tree: any pytree of arrays: JAX or NumPy, of every dtype, typed PRNG keys and empty arrays included.
          metadata: JSON data that comes back beside the tree.

        Raises:
          ValueError: `step` is not larger than the newest step.
          TypeError: a leaf is not an array, or `metadata` is not JSON data.
        """
        steps = self.steps()
        if step < 0 or (steps and step <= steps[-1]):
            newest = f"the newest checkpoint's, {steps[-1]}" if steps else "-1"
            raise ValueError(f"cannot save step {step}: the step must be larger than {newest}")
        arrays, layout = _flatten(tree)
        header: dict[str, Any] = {
            "format": FORMAT,
            "step": int(step),
            "leaves": layout,
            "metadata": json.loads(json.dumps(metadata or {})),
            "leaves_sha256": _digest_arrays(arrays),
        }
        header["sha256"] = _digest_json(header)
        # orbax refuses arrays without elements; the layout alone brings those back.
        stored = {name: array for name, array in arrays.items() if array.size} or {
            "empty": np.zeros(1, np.int8)
        }
        with _quiet():
            self._manager.save(
                int(step),
                args=ocp.args.Composite(
                    leaves=ocp.args.StandardSave(stored), header=ocp.args.JsonSave(header)
                ),
                force=True,
            )
        folder = self._folder(int(step))
        # A process killed before this line leaves a checkpoint that the header's checksum still vouches for.
        write_json(folder / FILE_SUMS, _digest_files(folder))

    def restore(self, template: Any) -> Checkpoint | None:
        """Reads the newest checkpoint that is complete and undamaged; None if there is none.

        A damaged one is moved to the subfolder "damaged", so that its step can be saved again, and leaves a
        sentence in `notes`.

        Args:
          template: a tree like the one saved; of its leaves (arrays or ShapeDtypeStruct) only type, shape,
            dtype and placement are used.

        Raises:
          CheckpointMismatchError: the checkpoint is undamaged but has other leaves than the template.
        """
        damaged = 0
        for step in reversed(self.steps()):
            try:
                self._check_files(step)
                header = self._read_header(step)
                _check_layout(template, header["leaves"], step, self._path)
                arrays = self._read_leaves(step, header)
            except CheckpointMismatchError:
                raise
            except _DamagedError as error:
                damaged += 1
                self._move_aside(step, str(error))
                continue
            return Checkpoint(step, _unflatten(template, header["leaves"], arrays), header["metadata"])
        if damaged:
            self.notes.append(f"none of the {damaged} checkpoints in {self._path.name}/ is usable")
        return None

    def close(self) -> None:
        """Ends orbax's helpers; the object is not used afterwards."""
        with _quiet():
            self._manager.close()

    def _folder(self, step: int) -> Path:
        for folder in self._path.glob("step_*"):
            number = folder.name.removeprefix("step_")
            if number.isdigit() and int(number) == step:
                return folder
        raise _DamagedError("its folder is gone")

    def _check_files(self, step: int) -> None:
        folder = self._folder(step)
        try:
            sums = dict(json.loads((folder / FILE_SUMS).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return  # the header's checksum decides
        present = _digest_files(folder)
        for name in sorted(sums):
            if present.get(name) != sums[name]:
                raise _DamagedError(f"{name} is {'changed' if name in present else 'missing'}")

    def _read_header(self, step: int) -> dict[str, Any]:
        try:
            with _quiet():
                read = self._manager.restore(step, args=ocp.args.Composite(header=ocp.args.JsonRestore()))
            header = dict(read["header"])
            digest = header.pop("sha256")
        except Exception as error:  # a damaged file can make orbax raise anything
            raise _DamagedError(f"its header cannot be read: {_reason(error)}") from None
        if digest != _digest_json(header) or header["step"] != step:
            raise _DamagedError("its header does not match its checksum")
        if header["format"] != FORMAT:
            raise CheckpointMismatchError(
                f"checkpoint {step} in {self._path} has format {header['format']}, this version reads "
                f"{FORMAT}: continue with the version that wrote it, or start in another run directory"
            )
        return header

    def _read_leaves(self, step: int, header: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        empty = {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in header["leaves"].items()}
        wanted = {name: array for name, array in empty.items() if array.size}
        try:
            read: dict[str, Any] = {}
            if wanted:
                with _quiet():
                    read = self._manager.restore(
                        step, args=ocp.args.Composite(leaves=ocp.args.StandardRestore(wanted))
                    )["leaves"]
            arrays = {name: np.asarray(read.get(name, array)) for name, array in empty.items()}
        except Exception as error:  # as above
            raise _DamagedError(f"its arrays cannot be read: {_reason(error)}") from None
        if _digest_arrays(arrays) != header["leaves_sha256"]:
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
        with _quiet():
            self._manager.reload()


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _flatten(tree: Any) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, dict[str, Any]]]:
    """The leaves as NumPy arrays under short names, and what each of them was."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    layout: dict[str, dict[str, Any]] = {}
    for number, (path, leaf) in enumerate(_leaves_by_path(tree).items()):
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"the leaf {path} is a {type(leaf).__name__}: a checkpoint holds arrays only")
        name = f"leaf_{number:05d}"
        key = _is_key(leaf)
        array = np.asarray(jax.device_get(jax.random.key_data(leaf) if key else leaf))
        arrays[name] = array
        layout[name] = {"path": path, "shape": list(array.shape), "dtype": str(array.dtype)}
        if key:
            layout[name] |= {"key": str(leaf.dtype), "implementation": str(jax.random.key_impl(leaf))}
    return arrays, layout


def _check_layout(template: Any, layout: dict[str, dict[str, Any]], step: int, path: Path) -> None:
    found = {leaf["path"]: leaf for leaf in layout.values()}
    wanted = _leaves_by_path(template)
    problem = None
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted:
            problem = f"it has a leaf {name} that is not wanted"
        elif name not in found:
            problem = f"it has no leaf {name}"
        elif _describe_template(wanted[name]) != _describe_saved(found[name]):
            problem = (
                f"{name} is {_describe_saved(found[name])} there, {_describe_template(wanted[name])} here"
            )
        if problem:
            raise CheckpointMismatchError(
                f"checkpoint {step} in {path} belongs to another configuration: {problem}; "
                "use the configuration it was made with, or another run directory"
            )


def _describe_template(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def _describe_saved(leaf: dict[str, Any]) -> str:
    # The data of a typed key has one axis more than the key.
    return f"{leaf['key']}{leaf['shape'][:-1]}" if "key" in leaf else f"{leaf['dtype']}{leaf['shape']}"


def _unflatten(
    template: Any, layout: dict[str, dict[str, Any]], arrays: dict[str, np.ndarray[Any, Any]]
) -> Any:
    by_path = {leaf["path"]: (leaf, arrays[name]) for name, leaf in layout.items()}
    restored: list[Any] = []
    for path, wanted in _leaves_by_path(template).items():
        leaf, array = by_path[path]
        if "key" in leaf:
            restored.append(
                _place(jax.random.wrap_key_data(jnp.array(array), impl=leaf["implementation"]), wanted)
            )
        elif isinstance(wanted, (np.ndarray, np.generic)):
            restored.append(array[()] if isinstance(wanted, np.generic) else array)
        else:
            # A copy: JAX must not keep a view of NumPy's memory that it may be asked to donate.
            restored.append(_place(jnp.array(array, copy=True), wanted))
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), restored)


def _place(array: jax.Array, wanted: Any) -> jax.Array:
    """Puts `array` where the template's leaf was put on purpose, and leaves it free where that one was
    free.
    """
    if isinstance(wanted, jax.Array) and (wanted.committed or len(wanted.sharding.device_set) > 1):
        array = jax.device_put(array, wanted.sharding)
    return array


def _digest_files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != FILE_SUMS
    }


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_arrays(arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= 160 else lines[0][:160] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells its progress, and each damaged file it meets, on the absl logger; `notes` says what
    matters.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
