"""Compile exported C code for a Cortex-M4 with an FPU, and run it in QEMU."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.device.cycles import Cycles, calls, count, disassembly, function, steps
from prune_rl.export.c.actions import action_type
from prune_rl.export.c.literals import array
from prune_rl.export.c.source import CSource
from prune_rl.export.policy import Policy
from prune_rl.spaces import Discrete

TRACED = 4  # actions
COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
TARGET = ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
_FILES = Path(__file__).with_name("cortex_m4")
_NUMPY = {"float": "float32", "double": "float64"}


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """What a policy's code takes, and does, on the device.

    Attributes:
        text, rodata, data, bss: bytes of the sections of the policy's object file.
        stack: bytes of stack that one action takes.
        instructions: per action, the mean over the observations.
        cycles: per action, bounds from a trace of a few, see `experiments.device.cycles`.
        actions: [N, size] for the observations, in the C type's dtype.
    """

    text: int
    rodata: int
    data: int
    bss: int
    stack: int
    instructions: int
    cycles: Cycles
    actions: npt.NDArray[np.generic]


def missing() -> list[str]:
    """The programs that are not installed, and the compiler's C library if that is not."""
    absent = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
    # The compiler answers with the name alone where it has no such file.
    if COMPILER not in absent and _run([COMPILER, "-print-file-name=rdimon.specs"]).strip() == "rdimon.specs":
        absent.append("newlib for arm-none-eabi")
    return absent


def run_on_device(
    policy: Policy,
    source: CSource,
    observations: npt.NDArray[np.float32],
    folder: Path,
    optimisation: str = "-O2",
    defines: tuple[str, ...] = (),
    warnings: tuple[str, ...] = WARNINGS,
) -> OnDevice:
    """Compile ``source``, whose name must be "policy", and let it act on ``observations`` [N, D] in the emulator.

    Raises:
        subprocess.CalledProcessError: the compiler refused the code, or the emulator failed.
    """
    kind = action_type(policy.action)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.h").write_text(source.header, encoding="utf-8")
    (folder / "policy.c").write_text(source.source, encoding="utf-8")
    size = policy.observation_size
    rows = array("float", "numbers", observations)
    (folder / "observations.h").write_text(
        f"#define OBSERVATIONS {len(observations)}U\n{rows}"
        f"static const float (*const observations)[{size}] = (const float (*)[{size}])numbers;\n",
        encoding="utf-8",
    )
    build = [COMPILER, *TARGET, optimisation, *defines, f"-I{folder}"]
    _run([*build, *warnings, "-c", str(folder / "policy.c"), "-o", str(folder / "policy.o")])
    program = [str(folder / "policy.o"), *(str(_FILES / name) for name in ("startup.c", "measure.c"))]
    link = ["-nostartfiles", "--specs=rdimon.specs", f"-T{_FILES / 'memory.ld'}", "-lm"]
    _run([*build, f"-DACTION={kind}", *program, *link, "-o", str(folder / "policy.elf")])
    emulator = [EMULATOR, "-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0"]
    output = _run([*emulator, "-kernel", str(folder / "policy.elf")], timeout=120)
    lines = output.split()
    count = 1 if isinstance(policy.action, Discrete) else policy.action.size
    dtype = np.dtype(_NUMPY.get(kind, kind.removesuffix("_t")))
    actions = np.frombuffer(bytes.fromhex("".join(lines[4:])), dtype).reshape(len(observations), count)
    sections = _sections(folder / "policy.o")
    _run([*build, f"-DACTION={kind}", f"-DTRACE={TRACED}U", *program, *link, "-o", str(folder / "trace.elf")])
    return OnDevice(
        **sections,
        instructions=int(lines[1]),
        cycles=_traced_cycles(folder / "trace.elf", folder / "trace.log"),
        stack=int(lines[3]),
        actions=actions,
    )


def _traced_cycles(elf: Path, log: Path) -> Cycles:
    """The least lower bound and the largest upper ones of the traced actions, with all that they call."""
    command = [EMULATOR, "-M", "mps2-an386", "-nographic", "-semihosting", "-singlestep", "-kernel", str(elf)]
    _run([*command, "-d", "exec,nochain,cpu", "-D", str(log)], timeout=120)
    code = disassembly(elf)
    traces = calls(steps(log.read_text()), function(elf, "policy_act"), function(elf, "main"))
    if len(traces) != TRACED:
        raise RuntimeError(f"the trace has {len(traces)} actions, expected {TRACED}")
    lower, upper, flash = zip(*(count(trace, code) for trace in traces), strict=True)
    return Cycles(min(lower), max(upper), max(flash))


def _sections(file: Path) -> dict[str, int]:
    sizes = dict.fromkeys(("text", "rodata", "data", "bss"), 0)
    for name, size in re.findall(r"^\.(\w+)\S*\s+(\d+)", _run(["arm-none-eabi-size", "-A", str(file)]), re.M):
        if name in sizes:
            sizes[name] += int(size)
    return sizes


def _run(command: list[str], timeout: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout
