"""Which devices share the seeds, and that sharing them changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from prune_rl.training.engines.seed_devices import SeedDevices
from tests.conftest import DEVICES

TIMEOUT = 600.0


@pytest.mark.parametrize(("seeds", "devices"), [(1, 1), (2, 2), (3, 1), (4, 2), (6, 2)])
def test_as_many_devices_as_divide_the_seeds(seeds: int, devices: int) -> None:
    chosen = SeedDevices.choose(seeds)
    assert len(jax.local_devices()) == chosen.available == 2
    assert len(chosen.devices) == devices
    assert chosen.seeds_each * devices == seeds


def test_the_note_says_what_would_use_all_devices() -> None:
    assert SeedDevices.choose(4).note() == "4 seeds on 2 devices, 2 on each"
    assert SeedDevices.choose(3).note() == (
        "3 seeds on 1 of 2 devices: every device has equally many, so for all of them give a multiple of 2 seeds"
    )
    assert SeedDevices.choose(3, jax.devices()[:1]).note() == ""


def test_four_devices() -> None:
    """In a process that has four."""
    flags = os.environ["XLA_FLAGS"].replace(f"{DEVICES}=2", f"{DEVICES}=4")
    checks = Path(__file__).with_name("on_four_devices.py")
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(checks)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
