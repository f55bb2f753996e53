from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from prune_rl.envs.cartpole import CartPole
from prune_rl.training import engines
from prune_rl.training.config import Config
from prune_rl.training.matmul_precision import matmul_precision
from tests.training.engines.test_engines import DENSE

CONFIG: Any = jax.config


def lowered() -> str:
    x = jnp.ones((2, 2))
    return jax.jit(lambda x: x @ x).lower(x).as_text()


def test_a_precision_holds_in_every_thread_and_ends() -> None:
    before = CONFIG.jax_default_matmul_precision
    with ThreadPoolExecutor(1) as thread:
        with matmul_precision("highest"):
            assert "HIGHEST" in lowered()
            assert "HIGHEST" in thread.submit(lowered).result()
        with matmul_precision("high"):
            assert "HIGHEST" not in thread.submit(lowered).result()
        with pytest.raises(ValueError, match="broken"), matmul_precision("high"):
            raise ValueError("broken")
        assert CONFIG.jax_default_matmul_precision == before
        with matmul_precision("default"):
            assert CONFIG.jax_default_matmul_precision == before
        assert "HIGHEST" not in thread.submit(lowered).result()


def test_networks_are_trained_with_it() -> None:
    engine = engines.DeviceEngine(CartPole(), [0], DENSE, 2)
    n = jax.ShapeDtypeStruct((), jnp.int32)

    def products() -> list[str]:
        text = engine._chunk.lower(engine.tree, n).as_text()
        return [line for line in text.splitlines() if "dot_general" in line]

    assert not any("HIGHEST" in line for line in products())
    with matmul_precision("highest"):
        assert products()
        assert all("HIGHEST" in line for line in products())
    engine.close()


def test_it_is_part_of_the_run_only_where_it_is_given() -> None:
    names = {
        Config(matmul_precision=precision).resolved().default_run_dir().name
        for precision in ("default", "high", "highest")
    }
    assert len(names) == 3
    assert Config().resolved().default_run_dir().name in names
