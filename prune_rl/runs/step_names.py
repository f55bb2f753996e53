"""Files and folders that are named by a number of environment steps: step_000000001024, with a suffix or without."""

from __future__ import annotations

from pathlib import Path


def step_name(step: int, suffix: str = "") -> str:
    """The name of ``step``."""
    return f"step_{step:012d}{suffix}"


def named_steps(folder: Path, suffix: str = "") -> list[int]:
    """The steps that have a file or folder of exactly that name in ``folder``, in order; others are not looked at."""
    steps = []
    for path in folder.glob(f"step_*{suffix}"):
        digits = path.name.removeprefix("step_").removesuffix(suffix)
        if digits.isascii() and digits.isdigit() and path.name == step_name(int(digits), suffix):
            steps.append(int(digits))
    return sorted(steps)
