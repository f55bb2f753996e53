"""A sweep that is killed at random moments, again and again, against one that is not: what both leave, to the bit.

    .venv/bin/python -m experiments.sweep_kills

Two values of the learning rate and two seeds each train in one program. Every process gets SIGKILL after a random time
from its start, imports included, so that kills fall into the start, training, checkpoints, shrinking and evaluation.
Policies, masks, logs (without their times), returns and the table of the sweep are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = (
    "train CartPole-v1 --hidden 32 32 --num-envs 4 --num-steps 32 --steps 1000000 --checkpoints 200 --seeds 2 "
    "--episodes 4 --selection-episodes 4 --no-control --sweep learning_rate=1e-3,3e-3 --run-dir run"
)
COMPARED = (".safetensors", ".npz")


def main() -> int:
    """Returns 1 if the two sweeps differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--longest", type=float, default=10.0, help="seconds until a kill, at most")
    arguments = parser.parse_args()
    rng, folder = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="prune_rl-sweep-kills-"))
    assert run(folder / "whole", None) == 0
    kills = 0
    while kills < arguments.kills:
        status = run(folder / "killed", rng.uniform(0.1, arguments.longest))
        if status == 0:
            print(f"it ended after {kills} kills: choose shorter times or a longer sweep")
            return 1
        kills += 1
        print(f"{kills} kills", end="\r", flush=True)
    assert run(folder / "killed", None) == 0
    one, other = content(folder / "whole" / "run"), content(folder / "killed" / "run")
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{kills} kills; {len(one)} files compared, {len(different)} differ {different[:5]}")
    if different:
        print(f"both are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def run(place: Path, seconds: float | None) -> int | None:
    """The exit status of the command in ``place``; None if it was killed after so many seconds."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prune_rl", *shlex.split(COMMAND)],
            cwd=place,
            stdout=output,
            stderr=output,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def content(path: Path) -> dict[str, str]:
    """What is compared of each file, by its name within ``path``."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.suffix in COMPARED and "checkpoints" not in file.parts:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found[name] = json.dumps([{k: v for k, v in row.items() if k != "wall_time"} for row in rows])
        elif file.name in ("sweep.json", "evaluation.json", "frontier.json"):
            found[name] = json.dumps(without_times(json.loads(file.read_text(encoding="utf-8"))))
    return found


def without_times(data: object) -> object:
    """JSON data without latencies."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if "latency" not in key}
    return [without_times(value) for value in data] if isinstance(data, list) else data


if __name__ == "__main__":
    sys.exit(main())
