"""The command line of `python -m prune_rl.bench_device`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

SECTIONS = ("ppo", "sac", "mjx", "deterministic")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure on the accelerator of this machine what a seed costs among many, and more, in at most 8 minutes.

    Sections: ppo (JAX-native CartPole-v1, pruned), sac (Hopper-v3 on MJX, pruned), mjx (rollouts of Hopper-v3: the
    device against the host), deterministic (what XLA's deterministic operations cost, and whether two runs give equal
    bits). Writes OUTPUT/bench-device.json and OUTPUT/bench-device.md after every section. Needs no network.
    """

    output: Path = Path("runs/bench-device")
    """Folder of the two files."""
    only: str = ""
    """Sections to measure, separated by commas; by default all."""
    time_limit: float = 450.0
    """Seconds for everything. What is not measured by then is reported as such."""
    allow_cpu: bool = False
    """Go on without an accelerator, to try the command. Its figures then say nothing about one."""
    ppo_seeds: tuple[int, ...] = (1, 64, 300)
    """Numbers of seeds in section ppo; costs per seed are compared with those of the first one."""
    sac_seeds: tuple[int, ...] = (1, 64, 300)
    """The same for section sac."""
    mjx_seeds: tuple[int, ...] = (1, 8, 64, 300)
    """Numbers of seeds whose environments are on the device in section mjx."""
    host_seeds: tuple[int, ...] = (1, 8)
    """Numbers of seeds whose environments are on the host there. More are taken to cost per seed what the last does."""
    deterministic_seeds: int = 8
    """Seeds in section deterministic, which trains as section ppo does."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of actor and critics. All arrays keep them, while neurons are masked."""
    num_envs: int | None = None
    """Environments per seed, instead of those of the presets."""
    num_steps: int | None = None
    """Steps per environment between two updates, instead of those of the presets."""
    rollout_steps: int = 16
    """Steps per environment of one rollout in section mjx."""
    buffer_size: int = 20_000
    """Transitions in the replay buffer of each seed of SAC, less than in the preset: many seeds have to fit."""
    updates: int = 16
    """Updates of a training before it is timed; section deterministic compares the bits of two runs after them."""
    repeats: int = 3
    """Timed repeats of everything, after compilation."""
    repeat_seconds: float = 1.0
    """About how long one repeat lasts; it has at least one update."""
    matmul_precision: Annotated[
        Literal["default", "high", "highest"] | None, arg(metavar="{default,high,highest}")
    ] = None
    """jax_default_matmul_precision of all sections, as in `prune-rl train`; by default JAX's own."""

    def check(self) -> None:
        """Raise ``ValueError`` for what cannot work."""
        for name in self.sections():
            if name not in SECTIONS:
                raise ValueError(f"there is no section {name!r}; choose of {', '.join(SECTIONS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if field.name.endswith("_seeds") and not numbers:
                raise ValueError(f"{field.name} must name at least one number of seeds")
            for number in numbers:
                if isinstance(number, int | float) and not isinstance(number, bool) and number <= 0:
                    raise ValueError(f"{field.name} must be positive, got {number}")

    def sections(self) -> tuple[str, ...]:
        """The names of the sections to measure, in the order in which they are measured."""
        if not self.only:
            return SECTIONS
        return tuple(name.strip() for name in self.only.split(","))
