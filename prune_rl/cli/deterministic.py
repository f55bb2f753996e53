"""The option --deterministic of `prune-rl train`."""

from __future__ import annotations

import os
from typing import Any

import jax

FLAG = "--xla_gpu_deterministic_ops"


def make_deterministic() -> None:
    """Let XLA take operations on a GPU that give the same bits in every run, by adding to the variable XLA_FLAGS.

    Raises:
        ValueError: XLA_FLAGS says otherwise, or XLA has read its flags already, since JAX is in use.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    given = [flag for flag in flags if flag.partition("=")[0] == FLAG]
    if given and given[-1].partition("=")[2].lower() in ("false", "0"):
        raise ValueError(f"--deterministic contradicts {given[-1]} in XLA_FLAGS: leave one of them out")
    if given:
        return
    if _jax_is_in_use():
        raise ValueError(
            "--deterministic is a flag of XLA, and JAX is in use in this process already: start it with "
            f"XLA_FLAGS={FLAG}=true instead"
        )
    os.environ["XLA_FLAGS"] = " ".join([*flags, f"{FLAG}=true"])


def _jax_is_in_use() -> bool:
    """Whether devices were asked for: an option that has to be set before can then not be changed any more."""
    config: Any = jax.config
    name = "jax_num_cpu_devices"
    before = getattr(config, name)
    try:
        config.update(name, before + 2)
    except RuntimeError:
        return True
    config.update(name, before)
    return False
