"""Bounds of the cycles that a Cortex-M4 takes for a trace of instructions that the emulator executed.

QEMU has no model of time. Each executed instruction is given the cycles of the Cortex-M4 Technical Reference Manual
(Arm DDI 0439): tables 3-1 and 3-2 of section 3.3.1, section 3.3.2 for loads and stores, table 7-1 and the notes of
section 7.2.3 for the FPU. N: registers moved; P: cycles to fill the pipeline again.

| instruction | lower | upper |
|---|---|---|
| data processing, multiplications and the DSP extension's | 1 | 1 |
| UDIV, SDIV; the manual does not say on which operands it depends | 2 | 12 |
| LDR | 2; 1 directly after another LDR that does not load its address | 2 |
| LDR relative to PC | as LDR | 3 |
| STR with an immediate offset | 1 | 1 |
| STR with a register as its offset | as LDR | 2 |
| LDM, STM, PUSH, POP, LDRD, STRD | 1 + N | 1 + N |
| a jump | + P = 1 | + P = 3 |
| TBB, TBH | 2 + P | 3 + P |
| IT | 0 | 1 |
| what IT makes conditional, executed or not | 1 | as without IT |
| VLDR | as LDR | as LDR |
| VSTR | as LDR | 2 |
| VLDM, VSTM, VPUSH, VPOP | 1 + N, a double counts as two | 1 + N |
| VMLA, VMLS, VFMA, VFMS, VNMLA, VNMLS, VFNMA, VFNMS | 3 | 3 |
| VDIV, VSQRT | 1; the next floating-point instruction waits for 14 | 14 |
| VMOV between the register files | 1 | 2 |
| other floating-point instructions | 1 | 1 |

Both bounds add 1 where an address comes from the data-processing instruction before, 1 where the result of
floating-point arithmetic is used by the next instruction other than as the addend of a multiply-accumulate, and 1 or 2
for a load that is not aligned. Memory never waits in these bounds: that is so in RAM and in tightly coupled memory.

`flash_waits` counts what the flash memory of an STM32F405 at 168 MHz adds (RM0090, section 3): 5 wait states for every
line of 16 bytes that is not in its caches, of 64 lines for code and 8 for data, which are empty when an action begins.
Reading lines ahead is not modelled.

No bound contains interrupts and bus accesses of other masters. None was compared with a measurement on a real
processor.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

REFILL = (1, 3)  # P
WAIT_STATES, LINE, CODE_LINES, DATA_LINES = 5, 16, 64, 8
FLASH_END = 0x20000000
_SEVERAL = re.compile(r"v?(ldm|stm|push|pop)|ldrd|strd")
_ADDING = re.compile(r"v(f?n?m(la|ls)|fn?m[as])")
_ARITHMETIC = re.compile(r"v(add|sub|n?mul|div|sqrt|cvt|f?n?m(la|ls)|fn?m[as])")
_REGISTER = re.compile(r"\b(?:r(\d+)|(sl|fp|ip|sp|lr|pc))\b")
_FLOATS = re.compile(r"\b([sd])(\d+)(?:-[sd](\d+))?")
_NAMES = {"sl": 10, "fp": 11, "ip": 12, "sp": 13, "lr": 14, "pc": 15}
_PC = 15
_NO_RESULT = ("cmp", "cmn", "tst", "teq", "b", "cb", "it", "nop", "v", "tb")


class Step(NamedTuple):
    """An executed instruction: its address, and the registers r0 … r15 before it."""

    address: int
    registers: tuple[int, ...]


class Instruction(NamedTuple):
    """What the disassembly says about an instruction; ``size`` in bytes."""

    mnemonic: str
    operands: str
    size: int


class Cycles(NamedTuple):
    """Bounds of the processor's cycles, and what flash memory adds to either."""

    lower: int
    upper: int
    flash: int


def count(trace: Sequence[Step], code: Mapping[int, Instruction]) -> Cycles:
    """The cycles of ``trace``; ``code``: instructions by address. The last instruction of a trace jumps."""
    return Cycles(_bound(trace, code, 0), _bound(trace, code, 1), flash_waits(trace, code))


def _bound(trace: Sequence[Step], code: Mapping[int, Instruction], upper: int) -> int:
    now, divided, conditional = 0, 0, 0
    before = Instruction("nop", "", 2)
    for index, step in enumerate(trace):
        instruction = code[step.address]
        name = instruction.mnemonic
        following = trace[index + 1].address if index + 1 < len(trace) else None
        if name.startswith("v"):
            now = max(now, divided)
        cost = _cost(instruction, before, upper)
        if conditional and not upper:
            cost = min(cost, 1)
        else:
            cost += _stalls(instruction, before) + _unaligned(instruction, step.registers)
        if following != step.address + instruction.size:
            cost += REFILL[upper]
        if name.startswith(("vdiv", "vsqrt")) and not upper:
            divided = now + 14
        now += cost
        conditional = max(conditional - 1, 0)
        if re.match(r"it[te]*$", name):
            conditional = len(name) - 1
        before = instruction
    return now


def _cost(instruction: Instruction, before: Instruction, upper: int) -> int:
    """Without stalls and the jump."""
    name, operands, _ = instruction
    if _SEVERAL.match(name):
        return 1 + _moved(operands)
    if name.startswith(("ldr", "vldr", "str", "vstr")):
        if name.startswith("str") and len(address_registers(operands)) == 1:
            return 1
        follows = re.match(r"v?ldr(?!d)", before.mnemonic) is not None
        reads_it = _loaded(before) in address_registers(operands)
        double = operands.startswith("d")
        constant = upper and name.startswith("ldr") and "[pc" in operands
        return 2 + double + bool(constant) - (not upper and follows and not reads_it)
    if name.startswith(("tbb", "tbh")):
        return 2 + upper
    if re.match(r"it[te]*$", name):
        return upper
    if name.startswith(("udiv", "sdiv")):
        return 12 if upper else 2
    if name.startswith(("vdiv", "vsqrt")):
        return 14 if upper else 1
    if _ADDING.match(name):
        return 3
    if name.startswith("vmov") and _REGISTER.search(operands):
        return 1 + upper
    return 1


def _stalls(instruction: Instruction, before: Instruction) -> int:
    """Cycles of waiting for the result of the instruction before."""
    name, operands, _ = instruction
    stalls = 0
    if name.startswith(("ldr", "str", "vldr", "vstr", "ldm", "stm", "vldm", "vstm")):
        stalls += _computed(before) in address_registers(operands)
    if _ARITHMETIC.match(before.mnemonic) and name.startswith("v"):
        written = _floats(before.operands.split(",")[0])
        parts = operands.split("[")[0].split(",")
        # A multiply-accumulate needs its addend, which it also writes, a cycle later; others write the first operand.
        reads_first = name.startswith(("vstr", "vcmp", "vstm", "vpush")) or len(parts) == 1
        read = _floats(",".join(parts if reads_first else parts[1:]))
        stalls += bool(written & read)
    return stalls


def _unaligned(instruction: Instruction, registers: Sequence[int]) -> int:
    name, operands, _ = instruction
    if not name.startswith("ldr") or name.startswith(("ldrb", "ldrsb", "ldrd")):
        return 0
    address = data_address(operands, registers)
    if name.startswith(("ldrh", "ldrsh")):
        return address % 2
    return (0, 2, 1, 2)[address % 4]


def address_registers(operands: str) -> Collection[int]:
    """The registers that a load or store computes its address from, PC aside."""
    inside = re.search(r"\[(.*?)\]", operands)
    text = inside[1] if inside else operands.split(",")[0]
    return {number for number in _registers(text) if number != _PC}


def data_address(operands: str, registers: Sequence[int]) -> int:
    """The address that a load or store of one word, halfword or byte reads or writes."""
    inside = re.search(r"\[(.*?)\]", operands)
    if inside is None:
        return registers[next(iter(_registers(operands.split(",")[0])))]
    parts = [part.strip() for part in inside[1].split(",")]
    base = _registers(parts[0])[0]
    # PC reads as the address of the instruction and 4, rounded down to a word.
    address = registers[base] if base != _PC else (registers[_PC] + 4) // 4 * 4
    for part in parts[1:2]:
        if part.startswith("#"):
            return (address + int(part[1:])) % 2**32
        shift = int(parts[2].split("#")[1]) if len(parts) > 2 else 0
        address += registers[_registers(part)[0]] << shift
    return address % 2**32


def flash_waits(trace: Sequence[Step], code: Mapping[int, Instruction]) -> int:
    """Wait states of an STM32F405's flash memory at 168 MHz for a trace, with caches that are empty at its start."""
    waits = 0
    lines: dict[bool, list[int]] = {False: [], True: []}

    def read(address: int, size: int, data: bool) -> None:
        nonlocal waits
        cached, limit = lines[data], DATA_LINES if data else CODE_LINES
        for line in range(address // LINE, (address + size - 1) // LINE + 1):
            if line in cached:
                cached.remove(line)
            else:
                waits += WAIT_STATES
            cached.append(line)
            del cached[:-limit]

    for step in trace:
        name, operands, size = code[step.address]
        read(step.address, size, False)
        if re.match(r"v?ld[rm]", name):
            address = data_address(operands, step.registers)
            if address < FLASH_END:
                words = _moved(operands) if _SEVERAL.match(name) else 1
                read(address, 4 * words, True)
    return waits


def _registers(text: str) -> list[int]:
    return [int(number) if number else _NAMES[name] for number, name in _REGISTER.findall(text)]


def _floats(text: str) -> set[int]:
    """Single-precision registers; a double covers two."""
    found: set[int] = set()
    for kind, first, last in _FLOATS.findall(text):
        for number in range(int(first), int(last or first) + 1):
            found |= {2 * number, 2 * number + 1} if kind == "d" else {number}
    return found


def _loaded(instruction: Instruction) -> int | None:
    found = _registers(instruction.operands.split("[")[0]) if instruction.mnemonic.startswith("ldr") else []
    return found[0] if found else None


def _computed(instruction: Instruction) -> int | None:
    """The register that a data-processing instruction writes."""
    name, operands, _ = instruction
    if name.startswith(("ldr", "str", "ldm", "stm", "push", "pop")):
        return None
    if name.startswith(_NO_RESULT) and not name.startswith(("bic", "bfi", "bfc")):
        return None
    found = _registers(operands.split(",")[0])
    return found[0] if found else None


def _moved(operands: str) -> int:
    """How many words an instruction of several registers moves."""
    listed = re.search(r"\{(.*)\}", operands)
    if listed is None:
        return 2
    floats = _floats(listed[1])
    if floats:
        return len(floats)
    moved = 0
    for part in listed[1].split(","):
        ends = _registers(part)
        moved += ends[-1] - ends[0] + 1
    return moved


def disassembly(elf: Path) -> dict[int, Instruction]:
    """Every instruction of a program, by address."""
    done = subprocess.run(
        ["arm-none-eabi-objdump", "-d", str(elf)], capture_output=True, text=True, check=True
    )
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{4} ?)+)\s+(\S+)\s*([^@;]*)", line)
        if match:
            found[int(match[1], 16)] = Instruction(match[3], match[4].strip(), len(match[2].split()) * 2)
    return found


def function(elf: Path, name: str) -> tuple[int, int]:
    """First address and end of the function of a program."""
    done = subprocess.run(["arm-none-eabi-nm", "-S", str(elf)], capture_output=True, text=True, check=True)
    row = re.search(rf"^([0-9a-f]+) ([0-9a-f]+) [tT] {name}$", done.stdout, re.M)
    if row is None:
        raise ValueError(f"{elf} has no function {name}")
    return int(row[1], 16), int(row[1], 16) + int(row[2], 16)


def steps(log: str) -> list[Step]:
    """The trace that QEMU writes with ``-singlestep -d exec,nochain,cpu``."""
    found = []
    for block in log.split("Trace ")[1:]:
        registers = tuple(int(value, 16) for value in re.findall(r"R\d\d=([0-9a-f]{8})", block))
        found.append(Step(registers[_PC], registers))
    return found


def calls(trace: Sequence[Step], called: tuple[int, int], caller: tuple[int, int]) -> list[Sequence[Step]]:
    """The parts of a trace from the first instruction of ``called`` until ``caller`` goes on."""
    found, start = [], None
    for index, step in enumerate(trace):
        if start is None and step.address == called[0]:
            start = index
        elif start is not None and caller[0] <= step.address < caller[1]:
            found.append(trace[start:index])
            start = None
    return found
