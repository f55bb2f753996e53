"""The properties of PPO's state: arrays only, frozen, unchanged by an update, compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import ppo
from tests.learners.random_rollouts import DISCRETE, SMALL, random_rollout
from tests.learners.schedules import by_schedule


def test_every_leaf_of_the_state_is_an_array_with_a_fixed_type() -> None:
    config = dataclasses.replace(
        SMALL, total_timesteps=4 * SMALL.steps_per_update, prune=by_schedule(sparsity=0.5, begin=0.0)
    )
    state = ppo.init(jax.random.key(0), config, DISCRETE)
    rollout = random_rollout(0, config, DISCRETE)
    after = jax.eval_shape(lambda s, r: ppo.update(s, r, config)[0], state, rollout)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s)
        for s in (jax.eval_shape(lambda: state), after)
    ]
    assert kinds[0] == kinds[1]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(after) if leaf.dtype == jnp.float32)
    assert {name: mask.shape for name, mask in state.masks.items()} == {
        "actor/layer_0": (6,),
        "actor/layer_1": (5,),
    }
    assert all(bool(mask.all()) for mask in state.masks.values())


def test_state_and_config_are_frozen_and_the_config_is_hashable() -> None:
    state = ppo.init(jax.random.key(0), SMALL, DISCRETE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.step = jnp.int32(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.gamma = 0.5  # type: ignore[misc]
    assert hash(SMALL) == hash(dataclasses.replace(SMALL))
    assert dataclasses.replace(SMALL, prune=by_schedule(sparsity=0.5)) != SMALL


def test_an_update_is_pure_and_compiled_once(assert_traces: Callable[..., Any]) -> None:
    config = dataclasses.replace(SMALL, total_timesteps=6 * SMALL.steps_per_update)
    update = jax.jit(assert_traces(ppo.update, 1), static_argnames="config")
    start = ppo.init(jax.random.key(0), config, DISCRETE)
    before = jax.tree.map(np.array, (start.params, start.opt_state, start.obs_stats, start.returns))
    rollout = random_rollout(0, config, DISCRETE)
    first, again = update(start, rollout, config), update(start, rollout, config)
    jax.tree.map(np.testing.assert_array_equal, comparable(first), comparable(again))
    after = jax.tree.map(np.array, (start.params, start.opt_state, start.obs_stats, start.returns))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    state = first[0]
    for i in range(1, 4):
        state, _ = update(state, random_rollout(i, dataclasses.replace(config), DISCRETE), config)
    assert int(state.step) == 4
    assert not np.array_equal(jax.random.key_data(state.key), jax.random.key_data(start.key))


def comparable(tree: Any) -> Any:
    """``tree`` with plain integers in place of typed keys, which NumPy cannot compare."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )
