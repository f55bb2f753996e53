"""Reading and writing the two files of a policy without trusting either: bounded, checksummed, replaced as a pair.

Imports only the standard library, NumPy and safetensors. Nothing here executes what it reads: the tensors are raw
numbers, the description is JSON. The checksums find damage; they do not authenticate.
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

FORMAT = "prune_rl.policy"
VERSION = 1
TENSORS_FILE = "policy.safetensors"
DESCRIPTION_FILE = "policy.json"
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_TENSORS_BYTES = 1 << 30
MAX_HEADER_BYTES = 1 << 20

Shapes = Mapping[str, tuple[int, ...]]


class PolicyFileError(ValueError):
    """A policy file is missing, damaged, hostile, or of an unknown version; the message is one sentence."""


def write_pair(directory: Path, description: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write `policy.safetensors` and `policy.json` into `directory`, in place of an earlier pair if there is one.

    Both files are written and synced beside their final names first. Then the tensors are renamed, then the
    description; a crash between the two leaves the new description under its temporary name, where `read_pair` finds
    it. So one complete pair, old or new, can be read at every moment. Not meant for two writers at the same time.

    Raises:
        ValueError: the description is not JSON (NaN, other Python objects) or larger than 1 MiB, or the tensors are
            larger than 1 GiB: such a pair could be written but not read again.
    """
    if sum(tensor.nbytes for tensor in tensors.values()) > MAX_TENSORS_BYTES:
        raise ValueError(f"the policy's tensors take more than the {MAX_TENSORS_BYTES} bytes allowed")
    data = safetensors.numpy.save(dict(tensors))
    document = {**description, "format": FORMAT, "version": VERSION, "tensors_sha256": _sha256(data)}
    try:
        # What a reader will see, lists for tuples and str for other keys, is what the checksum has to be of.
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
    finals = [directory / TENSORS_FILE, directory / DESCRIPTION_FILE]
    for final, content in zip(finals, (data, text), strict=True):
        with _pending(final).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for final in finals:
        os.replace(_pending(final), final)
    _sync_directory(directory)


def read_pair(
    path: Path, expected_shapes: Callable[[dict[str, Any]], Shapes]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the description at `path` and the tensors beside it.

    Args:
        path: `…/policy.json`.
        expected_shapes: validates the fields of a description and returns names and shapes of the tensors that must
            go with it, before any tensor is read; its `ValueError`s become `PolicyFileError`s.

    Returns:
        The description, and float32 tensors of exactly the expected names and shapes; their values are not looked at.

    Raises:
        PolicyFileError: for anything else than a complete pair of files.
    """
    try:
        return _read_pair(path, expected_shapes)
    except PolicyFileError:
        if not _pending(path).exists():
            raise
        try:  # what a save leaves that was cut short before its last step, see write_pair
            return _read_pair(_pending(path), expected_shapes)
        except PolicyFileError:
            pass
        raise  # the error of the file that was asked for


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
    if type(version) is not int or version != VERSION:
        _fail(path, f"its format version is {_one_line(version)}, this program reads version {VERSION}")
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
    """Strict JSON: UTF-8 only, without the NaN and infinities that Python's parser lets through (also as 1e999)."""

    def finite(literal: str) -> float:
        if not math.isfinite(value := float(literal)):
            raise ValueError(f"{literal} is not a finite number")
        return value

    return json.loads(text.decode("utf-8"), parse_float=finite, parse_constant=finite)


def _checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything but the checksum itself, whatever the order of keys and the white space."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return _sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _one_line(value: object) -> str:
    text = " ".join((str(value) if isinstance(value, Exception) else reprlib.repr(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _pending(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":  # elsewhere a directory cannot be opened, nor synced
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fail(path: Path, reason: str) -> NoReturn:
    raise PolicyFileError(f"cannot load the policy file {path}: {reason}")
