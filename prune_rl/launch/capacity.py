"""How many jobs fit on this machine at a time, and on which devices. Imports no JAX, which would take the devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from prune_rl.cpu_cores import available_cores
from prune_rl.launch.spec import EngineOptions

_GB = 1e9


def places(options: EngineOptions, environment: Mapping[str, str] = os.environ) -> list[str | None]:
    """One entry per job at a time: its ``CUDA_VISIBLE_DEVICES``, None where it takes those of this process.

    With GPUs, each has one job, or ``gpus_per_job`` share one. Without, or with ``gpus_per_job = 0``, a job counts as
    ``cpus_per_job`` of the cores that this process may use, and ``memory_per_job`` of the memory that is free; at least
    one job fits. ``max_jobs`` replaces what is counted, but for the number of GPUs.

    Raises:
        ValueError: a job needs more GPUs than there are.
    """
    found = gpus(environment)
    each = options.gpus_per_job if options.gpus_per_job is not None else min(1, len(found))
    if each > len(found):
        raise ValueError(
            f"engine.gpus_per_job is {each}, and this machine shows {len(found)} (nvidia-smi, CUDA_VISIBLE_DEVICES): "
            "give fewer, or another engine"
        )
    if each:
        groups = [",".join(found[start : start + each]) for start in range(0, len(found) - each + 1, each)]
        return list(groups[: options.max_jobs])
    number = options.max_jobs or max(
        1, min(available_cores() // options.cpus_per_job, int(free_memory() / _GB / options.memory_per_job))
    )
    return [None if not found else ""] * number


def at_a_time(number: int) -> str:
    """So many jobs, in words."""
    return f"{number} job{'s' * (number != 1)} at a time"


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    There are none where ``JAX_PLATFORMS`` leaves them out.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return listed.split()
    return []


def free_memory() -> float:
    """Bytes of memory that are free, or may be taken in this control group; infinite where that is not known."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(float(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limits.append(
            float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())
        )
    return min(limits)
