"""RLtools on its Pendulum-v1 in C++, driven line by line by `experiments.benchmarks.against_rltools`.

Runs in the environment of rltools-requirements.txt, without prune_rl. The first line that it writes names the versions;
then each line "run" it reads makes one whole training, of which it writes the seconds. Compilation comes before.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PENDULUM = """
#include <rl_tools/rl/environments/pendulum/operations_cpu.h>
template <typename T, typename TI>
using ENVIRONMENT_FACTORY =
    rl_tools::rl::environments::Pendulum<rl_tools::rl::environments::pendulum::Specification<T, TI>>;
"""


def compiled(algo: str, settings: dict[str, Any]) -> Any:
    """Its module for these settings, compiled now or by an earlier call."""
    package = importlib.import_module("rltools")
    # A fixed place, since the path is part of the command by which RLtools finds what it compiled before.
    folder = Path(tempfile.gettempdir()) / f"prune_rl-bench-rltools-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "environment.h").write_text(PENDULUM)
    environment = {"path": str(folder), "observation_dim": 3, "action_dim": 1}
    make = {"sac": package.SAC, "ppo": package.PPO}[algo]
    name = f"bench_{algo}_{settings.get('STEP_LIMIT', 0)}"
    return make(environment, enable_evaluation=False, interface_name=name, EPISODE_STEP_LIMIT=200, **settings)


def run(module: Any, seed: int) -> dict[str, float]:
    """Seconds for one whole training."""
    state = module.State(seed)
    started = time.perf_counter()
    while not state.step():
        pass
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=("sac", "ppo"))
    parser.add_argument("settings", type=json.loads, help="JSON object of RLtools' own names")
    options = parser.parse_args()
    # Libraries may print: what they print goes to stderr, so that stdout carries the replies alone.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        module = compiled(options.algo, options.settings)
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies)
        sys.exit(1)
    versions = {"RLtools": metadata.version("rltools"), "Python": platform.python_version()}
    print(json.dumps({**versions, "BLAS": f"MKL {metadata.version('mkl')}", "device": "cpu"}), file=replies)
    for seed, line in enumerate(sys.stdin):
        if line.strip() != "run":
            raise ValueError(f"the only command is 'run', got {line!r}")
        print(json.dumps(run(module, seed)), file=replies)


if __name__ == "__main__":
    main()
