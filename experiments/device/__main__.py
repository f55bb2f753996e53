"""`make device`: exported C code on an emulated Cortex-M4, as a table in Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tyro.conf import Positional, arg

from experiments.device.cortex_m4_emulator import OnDevice, missing, run_on_device
from prune_rl.export.c.int8 import c_int8_source
from prune_rl.export.c.source import c_source
from prune_rl.export.policy import Policy, load_policy
from prune_rl.export.quantize import quantize
from prune_rl.spaces import Box, Discrete

MEGAHERTZ = 168
OPTIMISATIONS = ("-Os", "-O2")


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes, stack and instructions of exported policies on a Cortex-M4 under QEMU; fails if an action is wrong."""

    policies: Annotated[Positional[tuple[Path, ...]], arg(metavar="POLICY ...")] = ()
    """Run directories or folders of policies; by default random ones of the sizes of Hopper-v3 and LunarLander-v2."""


def random_policy(sizes: tuple[int, ...], action: Box | Discrete) -> Policy:
    """With tanh and observation statistics, as PPO's policies have them."""
    rng = np.random.default_rng(0)
    layers: Any = tuple(
        (rng.standard_normal((a, b)) / np.sqrt(a), 0.1 * rng.standard_normal(b))
        for a, b in itertools.pairwise(sizes)
    )
    mean, std = rng.standard_normal(sizes[0]), rng.uniform(0.5, 2.0, sizes[0])
    return Policy(layers, "tanh", action, np.asarray(mean, np.float32), np.asarray(std, np.float32))


def default_policies() -> dict[str, Policy]:
    """One of each size that the documentation speaks of."""
    hopper = Box((-1.0,) * 3, (1.0,) * 3, (3,))
    return {
        "Hopper-v3, 17·17": random_policy((11, 17, 17, 3), hopper),
        "LunarLander-v2, 7·7": random_policy((8, 7, 7, 4), Discrete(4)),
        "Hopper-v3, 64·64": random_policy((11, 64, 64, 3), hopper),
    }


def variants(policy: Policy, folder: Path) -> dict[str, OnDevice]:
    """A policy in float32 and in 8-bit integers, with each optimisation.

    Raises:
        ValueError: actions differ from NumPy's: by more than rounding, or for integers at all.
    """
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, policy.observation_size))
    if policy.normalisation is not None:
        mean, std, _ = policy.normalisation
        x = x * std + mean
    obs = x[:50].astype(np.float32)
    quantized = quantize(policy, x)
    found = {}
    for name, source, act in (
        ("float32", c_source(policy), policy),
        ("int8", c_int8_source(quantized), quantized),
    ):
        for level in OPTIMISATIONS:
            measured = run_on_device(policy, source, obs, folder, level)
            expected = np.asarray(act(obs)).reshape(measured.actions.shape).astype(np.float64)
            difference = float(np.abs(measured.actions.astype(np.float64) - expected).max())
            if difference > (0.0 if name == "int8" or isinstance(policy.action, Discrete) else 2e-6):
                raise ValueError(f"actions in {name} differ from NumPy's by up to {difference}")
            found[f"{name}, {level}"] = measured
    return found


def main() -> None:
    """Print the table."""
    options = tyro.cli(Options, prog="python -m experiments.device")
    if absent := missing():
        sys.exit(f"error: {', '.join(absent)} not installed; Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi "
                 "qemu-system-arm (`make device` installs them where it may)")  # fmt: skip
    policies = {path.name: load_policy(path) for path in options.policies} or default_policies()
    print(
        "| policy | code | .text | .rodata | .data | .bss | stack | instructions | cycles | flash waits | "
        f"µs at {MEGAHERTZ} MHz | with flash |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, policy in policies.items():
        with tempfile.TemporaryDirectory(prefix="prune_rl-device-") as folder:
            for variant, on in variants(policy, Path(folder)).items():
                lower, upper, flash = on.cycles
                cells = (
                    on.text,
                    on.rodata,
                    on.data,
                    on.bss,
                    on.stack,
                    f"{on.instructions:,}",
                    f"{lower:,}–{upper:,}",
                    flash,
                    f"{lower / MEGAHERTZ:.1f}–{upper / MEGAHERTZ:.1f}",
                    f"{(upper + flash) / MEGAHERTZ:.1f}",
                )
                print(f"| {name} | {variant} | {' | '.join(map(str, cells))} |")
    print(
        "\nEvery action was that of NumPy. Cycles are bounds for memory that never waits; `flash waits` are those of "
        "an STM32F405 with empty caches, `with flash` the upper bound with them. See experiments/device/cycles.py."
    )


if __name__ == "__main__":
    main()
