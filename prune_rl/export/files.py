"""Reading and writing the two files of a policy: bounded sizes, checksums, replaced as a pair.

Imports only the standard library, NumPy and safetensors. Files are treated as untrusted input and nothing in them is
executed: tensors are raw numbers, the description is JSON. The checksums detect damage; they do not authenticate.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy

from prune_rl.atomic_files import pending, write_together

FORMAT = "prune_rl.policy"
VERSION = 2
# Version 1 lacks the start of Discrete actions, the dtype of Box ones, the observation's shape, and the spread.
READABLE_VERSIONS = (1, 2)
TENSORS_FILE = "policy.safetensors"
DESCRIPTION_FILE = "policy.json"
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_TENSORS_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 20

Shapes = Mapping[str, tuple[int, ...]]


class PolicyFileError(ValueError):
    """A policy file is missing, damaged, malformed, or of an unknown version; the message is one sentence."""


def write_pair(directory: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write `policy.safetensors` and `policy.json` into `directory`, replacing an earlier pair.

    Both files are written and flushed under temporary names, then the tensors are renamed, then the description. A
    crash between the two renames leaves the new description under its temporary name, where `read_pair` finds it, and
    the next write completes that pair first. At every moment one complete pair, old or new, can be read, however many
    writes in a row are cut short. Not safe for concurrent writers.

    Raises:
        ValueError: the description cannot be represented as JSON (NaN, other Python objects) or exceeds 1 MiB, or the
            tensors exceed 64 MiB: such a pair could be written but not read again.
        OSError: the files cannot be written.
    """
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_TENSORS_BYTES:
        raise ValueError(f"the policy's tensors take more than the {MAX_TENSORS_BYTES} bytes allowed")
    data = safetensors.numpy.save(dict(tensors))
    document = {**description, "format": FORMAT, "version": VERSION, "tensors_sha256": _sha256(data)}
    try:
        # The checksum covers what a reader will see: lists instead of tuples, strings instead of other keys.
        document = _parse(json.dumps(document, allow_nan=False).encode())
        text = json.dumps({**document, "sha256": _checksum(document)}, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the policy's metadata cannot be written as JSON ({_one_line(error)})") from None
    if len(text) > MAX_DESCRIPTION_BYTES:
        raise ValueError(
            f"the policy's description takes {len(text)} bytes, more than the {MAX_DESCRIPTION_BYTES} allowed: "
            "put less into its metadata"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _complete_pending(directory)
    write_together({directory / TENSORS_FILE: data, directory / DESCRIPTION_FILE: text})


def _complete_pending(directory: Path) -> None:
    """Make the last rename of a write that was cut short: the description under its temporary name is that of the
    tensors, and may be the only one.
    """
    description = pending(directory / DESCRIPTION_FILE)
    if not os.path.lexists(description):
        return
    try:
        document = _parse(_read_bounded(description, MAX_DESCRIPTION_BYTES))
        tensors = _read_bounded(directory / TENSORS_FILE, MAX_TENSORS_BYTES + 8 + MAX_HEADER_BYTES)
        complete = document["sha256"] == _checksum(document) and document["tensors_sha256"] == _sha256(
            tensors
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ):  # half a file, or another's tensors
        return
    if complete:
        os.replace(description, directory / DESCRIPTION_FILE)


def description_path(path: Path) -> Path:
    """The `policy.json` that `path` stands for: itself, in that directory, or in its `policy/`."""
    if path.suffix == ".json":
        return path
    candidates = [folder / DESCRIPTION_FILE for folder in (path, path / "policy")]
    # What cannot be looked at does not exist here; reading it says why. (`Path.exists` raises.)
    return next(filter(os.path.exists, candidates), candidates[0])


def read_pair(
    path: Path, expected_shapes: Callable[[dict[str, Any]], Shapes]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description at `path` and the tensors in the same directory.

    Args:
        path: `…/policy.json`.
        expected_shapes: validates a description and returns the names and shapes of its tensors. Called before any
            tensor is read; a `ValueError` it raises becomes a `PolicyFileError`.

    Returns:
        The description, and float32 tensors with exactly the expected names and shapes. Values are not checked.

    Raises:
        PolicyFileError: the files are not a complete, undamaged pair.
    """
    try:
        return _read_pair(path, expected_shapes)
    except PolicyFileError:
        if not os.path.exists(pending(path)):
            raise
        try:  # left by a `write_pair` that was interrupted before its last rename
            return _read_pair(pending(path), expected_shapes)
        except PolicyFileError:
            pass
        raise  # the error of the requested file


def _read_pair(
    path: Path, expected_shapes: Callable[[dict[str, Any]], Shapes]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    text = _read_bounded(path, MAX_DESCRIPTION_BYTES)
    try:
        description = _parse(text)
        checksum = _checksum(description) if isinstance(description, dict) else None
    except (ValueError, RecursionError) as error:
        _fail(path, f"it is not valid JSON ({_one_line(error)})")
    if not isinstance(description, dict):
        _fail(path, f"it holds a JSON {type(description).__name__}, not an object")
    if description.get("format") != FORMAT:
        _fail(path, f"its format is {_one_line(description.get('format'))}, not {FORMAT!r}")
    version = description.get("version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        _fail(
            path, f"its format version is {_one_line(version)}, this program reads versions 1 and {VERSION}"
        )
    if description.get("sha256") != checksum:
        _fail(path, "its content does not match its own SHA-256 checksum: it was damaged or edited")
    try:
        shapes = expected_shapes(description)
    except ValueError as error:
        _fail(path, str(error))
    return description, _read_tensors(path.with_name(TENSORS_FILE), shapes, description.get("tensors_sha256"))


def _read_tensors(path: Path, shapes: Shapes, checksum: object) -> dict[str, np.ndarray]:
    num_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    if num_bytes > MAX_TENSORS_BYTES:
        _fail(path, f"its description asks for {num_bytes} bytes, more than the {MAX_TENSORS_BYTES} allowed")
    data = _read_bounded(path, num_bytes + 8 + MAX_HEADER_BYTES)
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > len(data) - 8:
        _fail(path, f"it is truncated: {len(data)} bytes, its header alone is said to take {header_bytes}")
    if header_bytes > MAX_HEADER_BYTES:
        _fail(
            path, f"its header is said to take {header_bytes} bytes, more than the {MAX_HEADER_BYTES} allowed"
        )
    if _sha256(data) != checksum:
        _fail(path, "its SHA-256 checksum is not the one in the description")
    try:
        tensors = safetensors.numpy.load(data)
    except Exception as error:  # the parser has its own type and, for dtypes that NumPy lacks, several others
        _fail(path, f"it is not a readable safetensors file ({_one_line(error)})")
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())[:4]
        _fail(path, f"its tensors are not those described (missing or unexpected: {_one_line(odd)})")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            _fail(path, f"tensor {name!r} is {tensor.dtype}, not float32")
        if tensor.shape != shapes[name]:
            _fail(path, f"tensor {name!r} has shape {tensor.shape}, its description says {shapes[name]}")
    return tensors


def _read_bounded(path: Path, limit: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device would never end
            _fail(path, "it is not a regular file")
        if status.st_size > limit:
            _fail(path, f"it takes {status.st_size} bytes, more than the {limit} allowed here")
        with path.open("rb") as file:
            return file.read(status.st_size)
    except OSError as error:
        _fail(path, error.strerror or type(error).__name__)
    except ValueError as error:  # a zero character in the path; keep our own errors as they are
        if isinstance(error, PolicyFileError):
            raise
        _fail(path, str(error))


def _parse(text: bytes) -> Any:
    """Strict JSON in UTF-8: rejects NaN and infinities (1e999 too), which Python's parser accepts."""

    def finite(literal: str) -> float:
        if not math.isfinite(value := float(literal)):
            raise ValueError(f"{literal} is not a finite number")
        return value

    return json.loads(text.decode("utf-8"), parse_float=finite, parse_constant=finite)


def _checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but the checksum itself, independent of key order and whitespace."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return _sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _one_line(value: object) -> str:
    text = " ".join((str(value) if isinstance(value, Exception) else reprlib.repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _fail(path: Path, reason: str) -> NoReturn:
    raise PolicyFileError(f"cannot load the policy file {path}: {reason}")
