"""The exported C code against what onnx2c and ONNX Runtime make of the exported ONNX file: same actions, time and size.

onnx2c (github.com/kraiskil/onnx2c) translates ONNX graphs to C. It has no ArgMax, so that only policies with continuous
actions can be compared. Needs gcc or another cc, and for the columns of a Cortex-M4 what `make device` needs.

    python -m experiments.device.onnx2c --onnx2c /path/to/onnx2c
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro
from tyro.conf import Positional, arg

from experiments.benchmarks.exported_policies import LIBM, Called, InC
from experiments.benchmarks.turns import Contender, take_turns, time_ratio
from experiments.device.__main__ import default_policies
from experiments.device.cortex_m4_emulator import missing, run_on_device
from prune_rl.export.c.library import FLAGS, CPolicy, compile_library, compiler
from prune_rl.export.c.source import CSource, c_source
from prune_rl.export.onnx_model import onnx_model
from prune_rl.export.onnx_runtime import OnnxPolicy
from prune_rl.export.policy import Policy, load_policy
from prune_rl.spaces import Box

OBSERVATIONS = 256
TOLERANCE = 2e-6
RUNTIME = "ONNX Runtime, from Python"
NO_WARNINGS = "-w"  # of generated code; given to both


@dataclasses.dataclass(frozen=True)
class Options:
    """Time and size of exported C code and of onnx2c's; fails if their actions differ."""

    policies: Annotated[Positional[tuple[Path, ...]], arg(metavar="POLICY ...")] = ()
    """Run directories or folders of policies; by default random ones of the sizes of Hopper-v3."""
    onnx2c: Path = Path("onnx2c")
    """The program, or its name on PATH."""
    repeats: int = 15
    """How often both are timed, in turns."""
    seconds: float = 0.1
    """How long a repeat lasts."""


def translated(policy: Policy, onnx2c: Path, name: str = "policy") -> CSource:
    """onnx2c's code for the ONNX file of ``policy``, behind the function that our own code has.

    Raises:
        ValueError: onnx2c refused the file; the message is its own.
    """
    with tempfile.TemporaryDirectory(prefix="prune_rl-onnx2c-") as folder:
        file = Path(folder) / "policy.onnx"
        file.write_bytes(onnx_model(policy).SerializeToString())
        command = [str(onnx2c), "-d", "batch:1", "-l", "1", "-f", f"{name}_entry", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{onnx2c} failed: {done.stderr.strip() or done.returncode}")
    own = c_source(policy, name)
    wrapper = (
        f'#include "{name}.h"\n{done.stdout}\n'
        f"int32_t {name}_act(const float *observation, float *action)\n{{\n"
        f"    {name}_entry((const void *)observation, (void *)action);\n    return 0;\n}}\n"
    )
    return dataclasses.replace(own, source=wrapper)


def check_actions(policy: Policy, ours: CSource, theirs: CSource, obs: npt.NDArray[np.float32]) -> None:
    """Raises ``ValueError`` if an action of either is not NumPy's."""
    expected = np.asarray(policy(obs))
    for who, source in (("our own C", ours), ("onnx2c", theirs)):
        with tempfile.TemporaryDirectory(prefix="prune_rl-onnx2c-") as folder:
            library = compile_library([source], Path(folder), (*FLAGS, NO_WARNINGS, "-lm"))
        difference = float(np.abs(CPolicy(policy, source.name, library)(obs) - expected).max())
        if not difference <= TOLERANCE:
            raise ValueError(f"actions of {who} differ from NumPy's by up to {difference}")


def object_bytes(source: CSource) -> int:
    """Code, constants and static variables of the compiled file on this machine, without libm."""
    with tempfile.TemporaryDirectory(prefix="prune_rl-onnx2c-") as folder:
        path = Path(folder)
        (path / f"{source.name}.h").write_text(source.header, encoding="utf-8")
        (path / f"{source.name}.c").write_text(source.source, encoding="utf-8")
        flags = [*FLAGS, NO_WARNINGS, "-c", str(path / f"{source.name}.c"), "-o", str(path / "policy.o")]
        subprocess.run([*compiler(), *flags], check=True)
        sizes = subprocess.run(["size", str(path / "policy.o")], capture_output=True, text=True, check=True)
    return int(sizes.stdout.split("\n")[1].split()[3])


def rows(policy: Policy, options: Options) -> list[list[str]]:
    """The cells of the three rows for ``policy``."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((OBSERVATIONS, policy.observation_size))
    mean, std, _ = policy.normalisation or (0.0, 1.0, 0.0)
    obs = np.ascontiguousarray(x * std + mean, np.float32)
    sources = {"our own C": c_source(policy), "onnx2c": translated(policy, options.onnx2c)}
    check_actions(policy, sources["our own C"], sources["onnx2c"], obs)
    flags = (NO_WARNINGS, *LIBM[1:])
    contenders: dict[str, Contender] = {
        who: InC(policy, source, flags, obs, options.seconds) for who, source in sources.items()
    }
    model = onnx_model(policy).SerializeToString()
    session: Any = OnnxPolicy(policy, model).session
    run = functools.partial(session.run, ["actions"])
    contenders[RUNTIME] = Called(run, [{"obs": row[None]} for row in obs], options.seconds)
    timings = take_turns(contenders, options.repeats)
    found = []
    for who in contenders:
        ratio = time_ratio(timings[who], timings["our own C"])
        speed = float(np.median([timing.speed for timing in timings[who]]))
        cells = [who, f"{1e9 / speed:.0f}", f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"]
        source = sources.get(who)
        cells.append(f"{len(model) if source is None else object_bytes(source):,}")
        if source is None or missing():
            found.append([*cells, "", "", ""])
            continue
        with tempfile.TemporaryDirectory(prefix="prune_rl-onnx2c-") as folder:
            on = run_on_device(policy, source, obs[:50], Path(folder), warnings=("-std=c99", NO_WARNINGS))
        sections = on.text + on.rodata + on.data + on.bss
        found.append([*cells, f"{sections:,}", f"{on.stack:,}", f"{on.cycles.lower:,}–{on.cycles.upper:,}"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = tyro.cli(Options, prog="python -m experiments.device.onnx2c", args=arguments)
    if shutil.which(options.onnx2c) is None:
        sys.exit(
            f"error: there is no program {options.onnx2c}: build github.com/kraiskil/onnx2c (with cmake and protobuf) "
            "and name it with --onnx2c"
        )
    policies = {path.name: load_policy(path) for path in options.policies} or {
        name: policy for name, policy in default_policies().items() if isinstance(policy.action, Box)
    }
    import onnxruntime

    for name, policy in policies.items():
        if not isinstance(policy.action, Box):
            sys.exit(f"error: {name} has discrete actions, and onnx2c has no ArgMax")
    print(
        "| policy | code | ns per action | time against our own | bytes | Cortex-M4: bytes | stack | cycles |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, policy in policies.items():
        for cells in rows(policy, options):
            print(f"| {name} | {' | '.join(cells)} |")
    library = sum(path.stat().st_size for path in Path(onnxruntime.__file__).parent.rglob("*.so*"))
    print(
        "\nEvery action of C was that of NumPy. Bytes: code, constants and static variables, without libm; for ONNX "
        f"Runtime the model, beside libraries of {library / 1e6:.0f} MB."
    )


if __name__ == "__main__":
    main()
