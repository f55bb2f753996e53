"""A train state with every kind of leaf, and what it means that two are identical."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax


class State(flax.struct.PyTreeNode):
    params: Any
    opt_state: Any
    masks: Any
    key: jax.Array
    step: jax.Array
    empty: jax.Array
    host: Any
    extra: Any = None


def make_state(seed: int, width: int = 16) -> State:
    """A train state with every kind of leaf; values that a careless round trip would change (-0.0, NaN, 1e-45)."""
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (4, width)).at[0, :3].set(jnp.array([-0.0, jnp.nan, 1e-45]))
    params = {"actor": {"layer_0": {"kernel": kernel, "bias": jnp.zeros(width)}}}
    return State(
        params=params,
        opt_state=optax.adam(1e-3).init(params),
        masks={"actor/layer_0": jnp.arange(width) % 3 > 0},
        key=jax.random.split(key, 2),
        step=jnp.int32(seed),
        empty=jnp.zeros((0,), jnp.float32),
        host=np.arange(5, dtype=np.int64) + seed,
    )


def raw(leaf: Any) -> np.ndarray[Any, Any]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_identical(left: Any, right: Any) -> None:
    structures: list[Any] = [jax.tree.structure(left), jax.tree.structure(right)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert raw(one).shape == raw(other).shape
        assert raw(one).tobytes() == raw(other).tobytes()


def step_folder(path: Path, step: int) -> Path:
    (folder,) = path.glob(f"step_*{step}")
    return folder
