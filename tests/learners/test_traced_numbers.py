"""Every field in `TRACED` can be a traced scalar: no Python code branches on it, and no state starts from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.envs.cartpole import CartPole
from prune_rl.learners import ppo, sac
from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.registry import LEARNERS, learner_of
from prune_rl.learners.traced_numbers import number_of, traced_fields, with_values, without_values
from prune_rl.training.engines.rollouts import reset_envs, rollout

SCHEDULED = Pruning(tolerance=None, gate=0.5, energy=0.5, begin=0.0, critic=True, score="taylor")
SMALL: dict[str, Any] = {"hidden": (4,), "num_envs": 2, "num_steps": 4, "total_timesteps": 64}
BASES: list[LearnerConfig] = [
    *(
        ppo.Config(**SMALL, num_minibatches=2, update_epochs=1, clip_range_vf=0.2, prune=prune)
        for prune in (SCHEDULED, dataclasses.replace(Pruning(begin=0.0), metric="adam"))
    ),
    *(
        sac.Config(
            **SMALL, batch_size=4, learning_starts=8, target_entropy=0.3, target_entropy_end=0.1, prune=prune
        )
        for prune in (SCHEDULED, Pruning(begin=0.0))
    ),
]
FIELDS = [
    (config, name)
    for config in BASES
    for name in traced_fields(config)
    if number_of(config, name) is not None
]


def once(config: LearnerConfig, values: dict[str, Any]) -> Any:
    """A rollout and an update of a fresh state; the state before it does not see ``values``."""
    env, learner = CartPole(), learner_of(config)
    key = jax.random.key(0)
    state = learner.init(key, config, env.spec)
    config = with_values(config, values)
    env_state, obs = reset_envs(env, key, config.num_envs)
    _, _, transitions = rollout(env, state, env_state, obs, key, config)
    return learner.update(state, transitions, config)


@functools.cache
def shapes_of(config: LearnerConfig) -> Any:
    """Of all that ``once`` returns."""
    return jax.eval_shape(lambda: once(config, {}))


def test_every_field_is_tried() -> None:
    tried = {(type(config), name) for config, name in FIELDS}
    for learner in LEARNERS.values():
        names = {name for kind, name in tried if kind is learner.Config}
        assert names == {*learner.Config.TRACED, *(f"prune.{name}" for name in Pruning.TRACED)}


@pytest.mark.parametrize(
    ("config", "name"), FIELDS, ids=[f"{type(c).__module__.split('.')[-2]}-{n}" for c, n in FIELDS]
)
def test_a_traced_number_reaches_the_update(config: LearnerConfig, name: str) -> None:
    """One program of the value, which it reads; no error of a tracer where Python wants a number."""
    made: Any = jax.make_jaxpr(lambda value: once(config, {name: value}), return_shape=True)
    closed, traced = made(jnp.float32(0.25))
    program = closed.jaxpr
    (value,) = program.invars
    used = {var for equation in program.eqns for var in equation.invars if isinstance(var, type(value))}
    assert value in used
    # Shapes and structure are those of the number given in the configuration.
    fixed = shapes_of(config)
    assert jax.tree.structure(fixed) == jax.tree.structure(traced)  # type: ignore[operator]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(fixed)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(traced)
    ]


@pytest.mark.parametrize("config", BASES[1::2], ids=["ppo", "sac"])
def test_no_state_starts_from_one(config: LearnerConfig) -> None:
    learner, spec = learner_of(config), CartPole().spec
    names = [name for name in traced_fields(config) if number_of(config, name) is not None]
    other = with_values(config, {name: number_of(config, name) * 0.5 for name in names})
    states = [learner.init(jax.random.key(1), each, spec) for each in (config, other)]

    def same(a: Any, b: Any) -> None:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, *states)


def test_what_makes_another_program_stays() -> None:
    config = ppo.Config(learning_rate=1e-2, gamma=0.9, prune=Pruning(tolerance=0.1, strength=1e-3))
    again = ppo.Config(learning_rate=1e-3, gamma=0.8, prune=Pruning(tolerance=0.2, strength=1e-2))
    assert without_values(config) == without_values(again)
    for other in (
        dataclasses.replace(config, hidden=(8,)),
        dataclasses.replace(config, clip_range_vf=0.2),
        dataclasses.replace(config, prune=None),
        dataclasses.replace(config, prune=Pruning(tolerance=None)),
        dataclasses.replace(config, prune=Pruning(strength=0.0)),
    ):
        assert without_values(other) != without_values(config)
    with pytest.raises(ValueError, match=r"num_envs cannot be traced; those that can are learning_rate"):
        with_values(config, {"num_envs": 3})
    dense = dataclasses.replace(config, prune=None)
    assert with_values(dense, {"prune.strength": 1.0}) == dense
