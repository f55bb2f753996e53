"""Bounds of a Cortex-M4's cycles, against counts by hand after its manual."""

from __future__ import annotations

import pytest

from experiments.device.cycles import Instruction, Step, calls, count, data_address, flash_waits, steps

RAM = 0x20000100


def counted(*lines: str, registers: dict[int, int] | None = None, base: int = 0) -> tuple[int, int]:
    """Bounds of instructions of four bytes one after the other, without the jump at the end."""
    values = tuple((registers or {}).get(number, RAM) for number in range(16))
    code, trace = {}, []
    for index, line in enumerate((*lines, "nop")):
        mnemonic, _, operands = line.partition(" ")
        code[base + 4 * index] = Instruction(mnemonic, operands, 4)
        trace.append(Step(base + 4 * index, (*values[:15], base + 4 * index)))
    found = count(trace, code)
    return found.lower - 2, found.upper - 4  # the last instruction and its jump


@pytest.mark.parametrize(
    ("lines", "lower", "upper"),
    [
        (("add r0, r1, r2", "smlad r0, r1, r2, r0", "mla r0, r1, r2, r3"), 3, 3),
        (("udiv r0, r1, r2",), 2, 12),
        # Examples of the manual, section 3.3.2.
        (("ldr r0, [r1]", "ldr r1, [r2]"), 3, 4),
        (("ldr r0, [r1, r2]", "str r0, [r3, #20]"), 3, 3),
        (("ldr r0, [r1, r2]", "str r1, [r3, r2]"), 3, 4),
        (("ldr r0, [r1, r5]", "ldr r1, [r2]", "ldr r2, [r3, #4]"), 4, 6),
        (("ldr r0, [r1]", "ldr r2, [r0]"), 4, 4),
        (("str r0, [r1, #4]", "ldr r2, [r3]"), 3, 3),
        (("ldmia r0!, {r1, r2, r3}",), 4, 4),
        (("stmdb sp!, {r4-r7, lr}",), 6, 6),
        (("ldrd r0, r1, [r2]",), 3, 3),
        (("add r0, r1, r2", "ldr r3, [r0]"), 4, 4),
        (("cmp r0, r1", "ldr r3, [r0]"), 3, 3),
        (("ldr r0, [pc, #8]",), 2, 3),
        # Section 7.2.3.
        (("vldr s0, [r1]", "vstr s0, [r2]"), 3, 4),
        (("vpush {d8-d9}",), 5, 5),
        (("vldmia r0!, {s13}",), 2, 2),
        (("vfma.f32 s0, s1, s2", "vnmls.f32 s3, s4, s5", "vfnms.f32 s6, s7, s8"), 9, 9),
        (("vadd.f32 s0, s1, s2", "vmul.f32 s3, s0, s0"), 3, 3),
        (("vadd.f32 s0, s1, s2", "vmul.f32 s3, s1, s1"), 2, 2),
        (("vmul.f32 s0, s1, s2", "vmla.f32 s0, s3, s4"), 4, 4),
        (("vcvt.s32.f32 s15, s15", "vmov r3, s15"), 3, 4),
        (("vdiv.f32 s0, s1, s2", "add r0, r1, r2"), 2, 15),
        (("vdiv.f32 s0, s1, s2", "vadd.f32 s3, s4, s5"), 15, 15),
        (("it gt", "ldrgt r0, [r1]"), 1, 3),
        (("ite gt", "movgt r0, r1", "movle r0, r2"), 2, 3),
    ],
)
def test_counts_of_the_manual(lines: tuple[str, ...], lower: int, upper: int) -> None:
    assert counted(*lines) == (lower, upper)


@pytest.mark.parametrize(("offset", "penalty"), [(0, 0), (1, 2), (2, 1), (3, 2)])
def test_a_load_that_is_not_aligned_takes_longer(offset: int, penalty: int) -> None:
    assert counted("ldr r0, [r1]", registers={1: RAM + offset}) == (2 + penalty, 2 + penalty)
    assert counted("ldrh r0, [r1]", registers={1: RAM + offset})[0] == 2 + offset % 2


def test_a_jump_fills_the_pipeline_again() -> None:
    code = {address: Instruction("b.n", "0", 2) for address in (0, 2)}
    trace = [Step(address, (0,) * 16) for address in (0, 2, 0)]
    assert count(trace, code)[:2] == (1 + 2 + 2, 1 + 4 + 4)


@pytest.mark.parametrize(
    ("operands", "address"),
    [("r0, [r1, #-4]", 96), ("r0, [r1], #4", 100), ("r0, [r1, r2, lsl #2]", 112), ("r0, [pc, #4]", 12)],
)
def test_addresses(operands: str, address: int) -> None:
    assert data_address(operands, (0, 100, 3, *(0,) * 12, 6)) == address


def test_flash_memory_waits_once_for_each_line_that_is_cached() -> None:
    code = {0: Instruction("ldr", "r0, [r1]", 2), 2: Instruction("nop", "", 2)}
    trace = [Step(address, (0, data, *(0,) * 14)) for data in (256, 260, RAM) for address in (0, 2)]
    assert flash_waits(trace, code) == 5 + 5
    far = [Step(0, (0, 256 + 16 * line, *(0,) * 14)) for line in (*range(9), 0)]
    assert flash_waits(far, code) == 5 + 5 * 10  # the ninth line of data takes the place of the first


def test_the_trace_of_the_emulator_is_cut_into_actions() -> None:
    def block(address: int) -> str:
        return "Trace 0: 0x7f [00/0/0/0] x\n" + "\n".join(
            f"R{number:02d}={address if number == 15 else number:08x}" for number in range(16)
        )

    trace = steps("\n".join(block(address) for address in (0, 8, 16, 100, 4, 8, 20, 4)))
    assert trace[2].address == 16
    assert trace[2].registers[3] == 3
    found = calls(trace, called=(8, 24), caller=(0, 8))
    assert [[step.address for step in part] for part in found] == [[8, 16, 100], [8, 20]]
