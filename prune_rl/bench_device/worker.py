"""A process that measures cases and prints a line of JSON for each, as soon as it is known.

    python -m prune_rl.bench_device.worker '{"cases": [...], "options": {...}, "seconds": 60}'

Another process starts it, see `prune_rl.bench_device.process`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import cattrs

from prune_rl.bench_device.options import Options
from prune_rl.bench_device.sections import Case

# What begins a line of results: libraries may print, too.
PREFIX = "bench-device result: "
LONGEST_ERROR = 600


def describe_device(case: Case, options: Options) -> dict[str, Any]:
    """Device, versions and the precision of matrix products in this process."""
    del case, options
    import jax

    from prune_rl.runs.versions import current_versions

    versions = current_versions()
    config: Any = jax.config
    return {
        "device": versions.pop("device"),
        "backend": jax.default_backend(),
        "versions": versions,
        "matmul_precision": config.jax_default_matmul_precision or "default",
    }


def measure(case: Case, options: Options) -> dict[str, Any]:
    """The figures of one case."""
    if case.kind == "device":
        return describe_device(case, options)
    from prune_rl.bench_device import rollouts, trainings

    kinds: dict[str, Callable[[Case, Options], dict[str, Any]]] = {
        "training": trainings.training,
        "device rollouts": rollouts.on_the_device,
        "host rollouts": rollouts.on_the_host,
    }
    return kinds[case.kind](case, options)


def row_of(case: Case, options: Options) -> dict[str, Any]:
    """The case and its figures; or what is missing, or went wrong."""
    from prune_rl.envs.errors import UnsupportedEnvironment

    start = time.monotonic()
    row: dict[str, Any] = {"case": case.name, "seeds": case.seeds}
    try:
        row |= {"status": "measured", **measure(case, options)}
    except UnsupportedEnvironment as error:
        row |= {"status": "missing", "error": str(error)}
    except Exception as error:  # the next case may work, and the file names this one
        text = " ".join(str(error).split())[:LONGEST_ERROR]
        row |= {"status": "failed", "error": f"{type(error).__name__}: {text}"}
    row["took"] = round(time.monotonic() - start, 3)
    return row


def main(text: str) -> None:
    """Measure the cases; one that would not end in time, if it takes as long as the last, is not begun."""
    request = json.loads(text)
    options = cattrs.structure(request["options"], Options)
    end, last = time.monotonic() + request["seconds"], 0.0
    for each in request["cases"]:
        case = cattrs.structure(each, Case)
        if last > end - time.monotonic():
            return
        row = row_of(case, options)
        last = row["took"]
        print(PREFIX + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
