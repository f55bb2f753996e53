"""What `make bench` measures, as given on its command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

SECTIONS = (
    *("bare", "cartpole", "rollout", "pruning", "fresh", "export"),
    *("sbx", "rltools", "runs"),
)
DEFAULT_SECTIONS = SECTIONS[:6]


@dataclasses.dataclass(frozen=True)
class Options:
    """Speed of training in ratios: writes OUTPUT/benchmarks.md and OUTPUT/benchmarks.json.

    Sections: bare (gradient steps by hidden width), cartpole (PPO on the JAX-native CartPole-v1, and the same in one
    program), rollout (host environments by backend), pruning (what it adds to an update), fresh (peak memory of new
    processes, compilation with and without the cache), export (one action of exported policies), sbx (needs --sbx-
    python), rltools (needs --rltools-python), runs (needs --runs).
    """

    only: str = ""
    """Sections to measure, separated by commas; by default all for which what they need is given."""
    repeats: int = 5
    """Timed repeats of everything, in turns; each gives a ratio."""
    seconds: float = 0.5
    """About how long one repeat lasts where its length is free."""
    widths: tuple[int, ...] = (256, 128, 64, 32, 24, 17, 16, 8)
    """Hidden widths of section bare, relative to the first one."""
    mixed: tuple[int, ...] = (64, 32, 16)
    """Widths of actor or critics, with the other at the first width, in section bare."""
    hidden: int = 256
    """Hidden width of the sections cartpole, pruning, fresh and sbx."""
    narrow: int = 16
    """Hidden width of the small networks in sections fresh and sbx."""
    steps: int = 1792
    """Environment steps of a repeat of section sbx, rounded up to whole rollouts."""
    pendulum_steps: int = 10_000
    """Environment steps of one SAC training of section rltools; PPO makes 30 times as many."""
    sbx_python: Path | None = None
    """Python with experiments/benchmarks/sbx-requirements.txt; make bench SBX=1 gives it."""
    rltools_python: Path | None = None
    """Python with experiments/benchmarks/rltools-requirements.txt; make bench RLTOOLS=1 gives it."""
    runs: tuple[Path, ...] = ()
    """Run directories with a timing.json, in pairs: a pruned run and its dense twin."""
    output: Path = Path("runs/benchmarks")
    """Folder for the table and the picture."""

    def sections(self) -> list[str]:
        """The sections to measure; raises ``ValueError`` for unknown ones and for what cannot work."""
        if self.repeats < 1 or self.seconds <= 0 or self.steps < 1 or self.pendulum_steps < 1:
            raise ValueError("repeats, seconds, steps and pendulum_steps must be positive")
        if not self.widths:
            raise ValueError("widths must name at least one width")
        given = {"sbx": self.sbx_python, "rltools": self.rltools_python, "runs": self.runs}
        if not self.only:
            return [*DEFAULT_SECTIONS, *(name for name, value in given.items() if value)]
        names = [name.strip() for name in self.only.split(",")]
        for name in names:
            if name not in SECTIONS:
                raise ValueError(f"there is no section {name!r}; choose of {', '.join(SECTIONS)}")
            if name in given and not given[name]:
                flag = {"sbx": "--sbx-python", "rltools": "--rltools-python", "runs": "--runs"}[name]
                raise ValueError(f"section {name} needs {flag}")
        return names
