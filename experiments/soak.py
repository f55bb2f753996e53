"""`make soak`: kills, damages and option combinations at random for an hour, and what held.

Every trial is a tiny run of the real command in a folder of its own. One holds if no process ends in a traceback or a
hang, every refusal is one sentence with status 2, and every run that reaches its end has the policies of one that
nothing happened to, bit for bit. Folders of trials that did not hold are kept, with the commands that were given.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 900.0  # s; a run takes about 10 on an idle machine
BASE = {
    "ppo": "train CartPole-v1 --num-envs 2 --num-steps 32 --steps 1500 --num-minibatches 2 --update-epochs 1",
    "sac": "train Pendulum-v1 --algo sac --num-envs 2 --num-steps 16 --steps 640 --batch-size 16 --learning-starts 64 "
    "--utd-ratio 0.25",
}
ALWAYS = "--checkpoints 8 --episodes 2 --selection-episodes 1 --frontier 3 --no-control --run-dir run"
OPTIONS: dict[str, list[str]] = {
    "--hidden": ["8", "16 12", "6 6 6"],
    "--critic-hidden": ["8", "12 4"],
    "--activation": ["relu", "tanh", "gelu"],
    "--prune.sparsity": ["0.0", "0.5", "0.9", "1.0"],
    "--prune.score": ["taylor", "fisher", "magnitude", "output", "random", "surgeon"],
    "--prune.scope": ["layer", "global"],
    "--prune.begin": ["0.0", "0.3"],
    "--prune.end": ["0.3", "1.0"],
    "--prune.every": ["1", "3", "50"],
    "--prune.gate": ["0.0", "0.2"],
    "--prune.energy": ["0.05", "0.5"],
    "--prune.min-width": ["0", "1", "3"],
    "--prune.strength": ["0.0", "0.01"],
    "--prune.shrink": ["never", "always", "auto"],
    "--prune.tolerance": ["0.1"],
    "--prune.width-exponent": ["0.5"],
    "--method": ["dynamic", "dense", "linear"],
    "--backend": ["auto", "gymnasium"],
    "--seeds": ["2"],
    "--learning-rate": ["0.01"],
}
FLAGS = ["--prune.critic", "--prune.refit", "--skip", "--no-normalize-obs"]
NONSENSE = [b"", b"{", b"[" * 100_000, b'{"step":1e400}', b"\x00\xff" * 50, b"null", b"[1]", b'{"env": 5}']

Failure = str | None  # what did not hold


def main() -> int:
    """Run trials until the time is up; returns 1 if one did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of trials")
    parser.add_argument("--only", choices=["kills", "damages", "options"])
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="prune_rl-soak-"))
    trials: dict[str, Callable[[Path, random.Random], Failure]] = {
        "kills": kills,
        "damages": damages,
        "options": options,
    }
    tried, held = collections.Counter[str](), collections.Counter[str]()
    end, number = time.monotonic() + 60 * arguments.minutes, 0
    while time.monotonic() < end:
        number += 1
        kind = arguments.only or rng.choice(list(trials))
        place = folder / f"{number:04d}-{kind}"
        place.mkdir()
        failure = trials[kind](place, random.Random(rng.getrandbits(32)))
        tried[kind] += 1
        if failure is None:
            held[kind] += 1
            shutil.rmtree(place)
        else:
            print(f"did not hold: {place}: {failure}", flush=True)
        print(f"{number} trials, {sum(held.values())} held", end="\r", flush=True)
    print("\n| | tried | held |\n|---|---|---|")
    for kind in tried:
        print(f"| {kind} | {tried[kind]} | {held[kind]} |")
    print(f"runs to compare with and trials that did not hold: {folder}")
    return int(tried != held)


def kills(place: Path, rng: random.Random) -> Failure:
    """Signals at random moments of a run, which then ends like one without."""
    command, whole = _undisturbed(place, rng, 2)
    if isinstance(whole, str):
        return whole
    for _ in range(rng.randint(1, 4)):
        process = _start(place, command)
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        try:
            process.wait(rng.uniform(0.5, 12.0))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        failure = _ended(place, process, (0, 2, 130, 143, -signal.SIGKILL, -number))
        if failure:
            return f"after {signal.Signals(number).name}: {failure}"
    return _ended(place, _start(place, command), (0,)) or _same(place / "run", whole)


def damages(place: Path, rng: random.Random) -> Failure:
    """Files of a finished or interrupted run that are damaged: it goes on to the same end, or one sentence says why."""
    command, whole = _undisturbed(place, rng, 1)
    if isinstance(whole, str):
        return whole
    shutil.copytree(whole, place / "run")
    if rng.random() < 0.7:  # as between the last checkpoint and the policies
        for name in ("policy", "wide", "evaluation.json"):
            path = place / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for _ in range(rng.randint(1, 3)):
        _damage(rng.choice([path for path in (place / "run").rglob("*") if path.is_file()]), place, rng)
    for further in (["evaluate", "run", "--episodes", "1"], ["report", "run"]):
        failure = _ended(place, _start(place, further), (0, 2))
        if failure:
            return failure
    process = _start(place, command)
    failure = _ended(place, process, (0, 2))
    return failure or (_same(place / "run", whole) if process.returncode == 0 else None)


def options(place: Path, rng: random.Random) -> Failure:
    """A random combination of options: it trains to the end, or one sentence refuses it before anything is written."""
    command = _command(rng, 8)
    process = _start(place, command)
    failure = _ended(place, process, (0, 2))
    if failure is None and process.returncode == 2 and (place / "run").exists():
        return "refused after its folder was made"
    return failure


def _command(rng: random.Random, most: int) -> list[str]:
    words = shlex.split(f"{BASE[rng.choice(list(BASE))]} {ALWAYS}")
    for name in rng.sample([*OPTIONS, *FLAGS], rng.randint(0, most)):
        words += [name, *(rng.choice(OPTIONS[name]).split() if name in OPTIONS else [])]
    return words


def _undisturbed(place: Path, rng: random.Random, most: int) -> tuple[list[str], Path | str]:
    """A command with valid options, and the run of it that nothing happened to (made once), or what went wrong."""
    while True:
        command = _command(rng, most)
        folder = place.parent / "whole" / hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            failure = _ended(folder, _start(folder, command), (0, 2))
            if failure:
                return command, f"undisturbed, {folder}: {failure}"
            (folder / "done").touch()
        if (folder / "run").exists():
            return command, folder / "run"


def _start(place: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (place / "commands").open("a") as log:
        log.write(shlex.join(["prune-rl", *arguments]) + "\n")
    with (place / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prune_rl", *arguments],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _ended(place: Path, process: subprocess.Popen[bytes], allowed: tuple[int, ...]) -> Failure:
    try:
        status = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"it hung for {TIMEOUT:.0f} s"
    output = (place / "output").read_text(errors="replace")
    if "Traceback" in output:
        return "a traceback"
    return None if status in allowed else f"status {status}"


def _damage(file: Path, place: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    at = rng.randrange(len(content) + 1)
    changes: dict[str, bytes | None] = {
        "cut": content[:at],
        "flipped": content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        if at < len(content)
        else content[:-1],
        "doubled": content + content,
        "nonsense": rng.choice(NONSENSE),
        "gone": None,
        "folder": None,
    }
    how = rng.choice(list(changes))
    with (place / "commands").open("a") as log:
        log.write(json.dumps({"damaged": str(file.relative_to(place)), "how": how, "at": at}) + "\n")
    new = changes[how]
    if new is not None:
        file.write_bytes(new)
        return
    file.unlink()
    if how == "folder":
        file.mkdir()


def _same(run: Path, whole: Path) -> Failure:
    for file in whole.glob("policy/**/*"):
        if file.is_file() and (run / file.relative_to(whole)).read_bytes() != file.read_bytes():
            return f"{file.relative_to(whole)} differs from that of the undisturbed run"
    return None


if __name__ == "__main__":
    sys.exit(main())
