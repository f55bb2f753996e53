"""A policy file for other runtimes: ONNX, C99, StableHLO."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from prune_rl.atomic_files import write_bytes
from prune_rl.export.metadata import metadata_of
from prune_rl.export.policy import Policy, load_policy
from prune_rl.export.quantize import QuantizedPolicy, quantize

FORMATS: Mapping[str, tuple[str, ...]] = {"onnx": (".onnx",), "c": (".h", ".c"), "stablehlo": (".stablehlo",)}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What the files of one export have in common.

    Attributes:
        name: of the files and, in C, the prefix of all names.
        metadata: strings that say what the policy is, see `metadata_of`.
        quantized: the policy in 8-bit integers, if that is what is written.
    """

    name: str
    metadata: Mapping[str, str]
    quantized: QuantizedPolicy | None = None


def export_policy(
    policy: Policy | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str = "onnx",
    *,
    int8: bool = False,
    calibration: ArrayLike | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> tuple[Path, ...]:
    """Write a policy for another runtime; the file computes what `policy(obs)` does, normalisation and bounds included.

    - "onnx": one file, opset 17 (21 with ``int8``), input `obs` [batch, D], output `actions`; needs the package onnx.
    - "c": a header and a source file of C99 with a function `NAME_act`.
    - "stablehlo": what `jax.export.deserialize` reads, with a symbolic batch; needs JAX.

    Args:
        policy: a policy, or the path of its file as `load_policy` takes it.
        path: a folder, into which files named "policy" ("policy_int8") are written, or a file whose suffix is one of
            the format's: its name without the suffix is that of all files, and NAME in C.
        format: "onnx", "c" or "stablehlo".
        int8: in 8-bit integers; "onnx" and "c" only.
        calibration: for ``int8``: observations [N, …] such as those of a few episodes, from which the ranges of
            activations come.
        metadata: goes into the file beside what `prune_rl.export.metadata.metadata_of` says; values that are no
            strings are written as JSON.

    Returns:
        The paths of the files.

    Raises:
        ValueError: an unknown format, ``int8`` without ``calibration`` or with "stablehlo", a name that is no C
            identifier.
        PolicyFileError: ``policy`` cannot be loaded.
        ImportError: the package that the format needs is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if int8 and format == "stablehlo":
        raise ValueError("int8 is for the formats onnx and c; stablehlo is written in float32 only")
    if int8 and calibration is None:
        raise ValueError(
            "int8 needs calibration=…, observations of a few episodes that ranges are taken from"
        )
    loaded = policy if isinstance(policy, Policy) else load_policy(policy)
    target = Path(path)
    if target.suffix in FORMATS[format]:
        folder, name = target.parent, target.stem
    else:
        folder, name = target, "policy_int8" if int8 else "policy"
    quantized = quantize(loaded, calibration) if int8 and calibration is not None else None
    options = ExportOptions(name, metadata_of(loaded, metadata), quantized)
    files = rendered(loaded, format, options)
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        write_bytes(folder / file, data)
    return tuple(folder / file for file in files)


def rendered(policy: Policy, format: str, options: ExportOptions) -> dict[str, bytes]:
    """The content of the files of one format, by name; raises as `export_policy`."""
    name, metadata, quantized = options.name, options.metadata, options.quantized
    if format == "onnx":
        from prune_rl.export.onnx_model import onnx_int8_model, onnx_model

        model = onnx_model(policy, metadata) if quantized is None else onnx_int8_model(quantized, metadata)
        return {f"{name}.onnx": model.SerializeToString(deterministic=True)}
    if format == "c":
        from prune_rl.export.c.int8 import c_int8_source
        from prune_rl.export.c.source import c_source

        code = (
            c_source(policy, name, metadata)
            if quantized is None
            else c_int8_source(quantized, name, metadata)
        )
        return {f"{name}.h": code.header.encode(), f"{name}.c": code.source.encode()}
    from prune_rl.export.stablehlo import stablehlo

    return {f"{name}.stablehlo": stablehlo(policy)}


def parse_metadata(words: Sequence[str]) -> dict[str, str]:
    """{key: value} of texts KEY=VALUE; raises ``ValueError`` for others."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", key):
            raise ValueError(f"--meta must be KEY=VALUE, such as robot=crawler, got {word!r}")
        found[key] = value
    return found
