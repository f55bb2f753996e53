"""The same grid of short runs on every engine: local processes, submitit's local executor, and a local Ray cluster.

    python -m experiments.grid_engines                 # 3 environments × 2 methods × 3 seeds, on each engine
    python -m experiments.grid_engines --kill          # kill -9 the local launch and all its processes once, then go on

The results files have to be equal to the byte. Prints the seconds of each engine; exits with 1 if files differ.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import prune_rl

SPEC = """
[grid]
env = ["CartPole-v1", "Pendulum-v1", "LunarLander-v2"]
method = ["dynamic", "dense"]
seed = [0, 1, 2]

[options]
steps = {steps}
hidden = [16, 16]
num_envs = 4
num_steps = 64
episodes = 5
frontier = 3
selection_episodes = 5

[engine.slurm]
cluster = "local"
"""
ENGINES = ("local", "slurm", "ray")
FILES = ("results.json", "results.md")


def main(arguments: list[str] | None = None) -> int:
    """Run the grids; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--steps", type=int, default=4096, help="environment steps per seed")
    parser.add_argument("--kill", action="store_true", help="kill the first launch in the middle")
    parser.add_argument("--max-jobs", type=int, help="jobs at a time")
    parser.add_argument("--folder", type=Path, help="where to put the grids; by default a temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "grid.toml").write_text(SPEC.format(steps=options.steps))
        seconds = {}
        for engine in options.engines:
            if options.kill and engine == options.engines[0]:
                _kill_in_the_middle(folder, engine, options.max_jobs)
            began = time.monotonic()
            status = _start(folder, engine, options.max_jobs).wait()
            seconds[engine] = time.monotonic() - began
            if status != 0:
                print(f"{engine}: exit status {status}")
                return 1
        contents = {
            name: {engine: (folder / engine / name).read_bytes() for engine in options.engines}
            for name in FILES
        }
        for engine, each in seconds.items():
            print(f"{engine:6} {each:7.1f} s")
        different = [name for name, versions in contents.items() if len(set(versions.values())) > 1]
        print(f"different: {', '.join(different)}" if different else "the results files are equal")
        return 1 if different else 0


def _start(folder: Path, engine: str, max_jobs: int | None) -> subprocess.Popen[bytes]:
    """The launch of the grid on one engine."""
    package = str(Path(prune_rl.__file__).parents[1])
    command = ["launch", "grid.toml", "--engine", engine, "--output", engine]
    command += ["--max-jobs", str(max_jobs)] if max_jobs else []
    return subprocess.Popen(
        [sys.executable, "-m", "prune_rl", *command],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))},
    )


def _kill_in_the_middle(folder: Path, engine: str, max_jobs: int | None) -> None:
    """SIGKILL to the launch and everything that it started, once a job is done and others run."""
    process = _start(folder, engine, max_jobs)
    jobs = folder / engine / "jobs"
    while process.poll() is None and not any(jobs.glob("*/exit.json")):
        time.sleep(0.5)
    time.sleep(5)
    process.kill()
    process.wait()
    # Their command lines name the folder of this grid, and no other.
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inside = (path / "cwd").resolve() == folder
        except OSError:
            continue
        if inside and any(word.startswith(f"{engine}/") for word in words):
            os.kill(int(path.name), signal.SIGKILL)
    print(f"killed with {len(list(jobs.glob('*/exit.json')))} jobs done")


if __name__ == "__main__":
    sys.exit(main())
