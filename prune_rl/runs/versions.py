"""The versions of packages, platform and checkout that a run was made with."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "flashbax", "orbax-checkpoint"),
    *("gymnasium", "mujoco", "mujoco-mjx", "envpool", "numpy"),
)


def current_versions() -> dict[str, Any]:
    """Everything beside the configuration that can change a result: packages, platform, device, commit."""
    devices = jax.devices()
    versions: dict[str, Any] = {name: _package_version(name) for name in PACKAGES}
    return versions | {
        "python": platform.python_version(),
        "prune_rl": _package_version("prune_rl"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "git": _git_commit(),
    }


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> dict[str, Any] | None:
    """Commit and dirtiness of the checkout this package is imported from; None for an installed package."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package.parent), *arguments],
                check=False,
                capture_output=True,
                text=True,
                timeout=20,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A virtual environment inside somebody's repository is not a checkout of this project.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.parent:
        return None
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": None if status is None else bool(status)}
