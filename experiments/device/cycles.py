"""Cycles of a Cortex-M4, estimated from a trace of the instructions that the emulator executed.

QEMU has no model of time. Each executed instruction is given the cycles of the Cortex-M4 Technical Reference Manual
(section 3.3.1, and 7.2.3 for the FPU) with memory that never waits; where the manual gives a range, the larger value:

- a load 2 cycles, 1 directly after another load or store; a store 1; of n registers 1 + n;
- a branch that is taken 4, else 1;
- UDIV and SDIV 12, VDIV 14, VMLA and VFMA 3, VLDR 2, other instructions 1.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TAKEN = 4
_CYCLES = {"udiv": 12, "sdiv": 12, "vdiv": 14, "vsqrt": 14, "vmla": 3, "vmls": 3, "vfma": 3, "vfms": 3}
_SEVERAL = ("ldm", "stm", "push", "pop", "ldrd", "strd", "vldm", "vstm", "vpush", "vpop")


def cycles(trace: Sequence[int], code: Mapping[int, tuple[str, str]]) -> int:
    """Of the instructions at the addresses ``trace``; ``code``: mnemonic and operands by address."""
    total, after_memory = 0, False
    for index, address in enumerate(trace):
        mnemonic, operands = code[address]
        name = mnemonic.split(".")[0]
        memory = name.startswith(("ldr", "str", "vldr", "vstr", *_SEVERAL))
        following = trace[index + 1] if index + 1 < len(trace) else None
        jumped = following is not None and not 0 < following - address <= 4
        if name.startswith(_SEVERAL):
            cost = 1 + _registers(operands)
        elif memory:
            cost = 1 if after_memory or name.startswith(("str", "vstr")) else 2
        else:
            cost = next((value for key, value in _CYCLES.items() if name.startswith(key)), 1)
        total += max(cost, TAKEN) if jumped else cost
        after_memory = memory
    return total


def _registers(operands: str) -> int:
    """How many an instruction of several registers moves."""
    listed = re.search(r"\{(.*)\}", operands)
    if listed is None:
        return 2
    count = 0
    for part in listed[1].split(","):
        ends = [int(number) for number in re.findall(r"[rs](\d+)", part)]
        count += ends[1] - ends[0] + 1 if len(ends) == 2 else 1
    return count


def disassembly(elf: Path) -> dict[int, tuple[str, str]]:
    """Mnemonic and operands of every instruction of a program, by address."""
    done = subprocess.run(
        ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", str(elf)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)
        if match:
            found[int(match[1], 16)] = (match[2], match[3])
    return found


def functions(elf: Path, prefix: str) -> list[tuple[int, int]]:
    """First address and end of every function whose name begins with ``prefix``."""
    done = subprocess.run(["arm-none-eabi-nm", "-S", str(elf)], capture_output=True, text=True, check=True)
    rows = re.findall(rf"^([0-9a-f]+) ([0-9a-f]+) [tT] {prefix}\S*$", done.stdout, re.M)
    return [(int(start, 16), int(start, 16) + int(size, 16)) for start, size in rows]
