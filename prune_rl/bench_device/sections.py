"""What is measured: sections, whose cases run in one or several processes. Imports no JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from prune_rl.bench_device.options import Options

Kind = Literal["device", "training", "device rollouts", "host rollouts"]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Without the flag: said too, since the user's XLA_FLAGS may have it.
NOT_DETERMINISTIC = "--xla_gpu_deterministic_ops=false"
AS_TRAINED = (
    "Seconds per update after compilation, the environments' steps included, on one device. A run from its start, "
    "pruned with the options of the preset, but that neurons may go from the first update on and arrays keep their "
    "full width."
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure, with so many seeds; ``algo`` of trainings."""

    name: str
    kind: Kind
    seeds: int = 1
    env: str = ""
    algo: str = ""


@dataclasses.dataclass(frozen=True)
class Process:
    """Cases that are measured one after the other in a process of their own.

    ``xla_flags``: those that it has beside the user's. ``anew``: it takes no compiled program out of a cache.
    """

    cases: tuple[Case, ...]
    xla_flags: str = ""
    anew: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """Processes that belong together; ``text`` says what is measured, ``weight`` is the share of the time for it."""

    key: str
    title: str
    text: str
    weight: float
    processes: tuple[Process, ...]


DEVICE = Process((Case("device", "device"),))


def sections_of(options: Options) -> list[Section]:
    """The sections that are asked for."""
    made = {
        "ppo": Section(
            "ppo",
            "PPO on the JAX-native CartPole-v1",
            AS_TRAINED,
            3.0,
            (Process(_trainings(options.ppo_seeds, "CartPole-v1", "ppo")),),
        ),
        "sac": Section(
            "sac",
            "SAC on Hopper-v3 in MJX",
            f"{AS_TRAINED} The replay buffer holds {options.buffer_size:,} transitions per seed.",
            4.0,
            (Process(_trainings(options.sac_seeds, "Hopper-v3", "sac")),),
        ),
        "mjx": Section(
            "mjx",
            "Rollouts of Hopper-v3: MJX on the device, MuJoCo on the host",
            "Seconds per step of all environments of all seeds, with the policies of PPO's preset in the loop and no "
            "learning. On the host: EnvPool where it is installed, else Gymnasium; policies act on the device.",
            3.0,
            (
                Process(
                    tuple(
                        Case(f"host, {number_of_seeds(n)}", "host rollouts", n, "Hopper-v3")
                        for n in options.host_seeds
                    )
                    + tuple(
                        Case(f"device, {number_of_seeds(n)}", "device rollouts", n, "Hopper-v3")
                        for n in options.mjx_seeds
                    )
                ),
            ),
        ),
        "deterministic": Section(
            "deterministic",
            f"Deterministic operations ({DETERMINISTIC})",
            f"Trainings of {number_of_seeds(options.deterministic_seeds)} as in section ppo, each in a new process "
            f"that compiles anew: parameters after {options.updates} updates, and seconds per update.",
            3.0,
            tuple(
                Process(
                    (Case(name, "training", options.deterministic_seeds, "CartPole-v1", "ppo"),),
                    flag,
                    anew=True,
                )
                for name, flag in (
                    ("with the flag, first run", DETERMINISTIC),
                    ("without the flag, first run", NOT_DETERMINISTIC),
                    ("with the flag, second run", DETERMINISTIC),
                    ("without the flag, second run", NOT_DETERMINISTIC),
                )
            ),
        ),
    }
    return [made[name] for name in options.sections()]


def _trainings(seeds: tuple[int, ...], env: str, algo: str) -> tuple[Case, ...]:
    return tuple(Case(number_of_seeds(number), "training", number, env, algo) for number in seeds)


def number_of_seeds(number: int) -> str:
    """``1 seed``, ``64 seeds``."""
    return f"{number} seed{'s' if number > 1 else ''}"
