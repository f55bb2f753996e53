"""What holds of every SAC state: arrays only, donatable, unchanged by an update, compiled once, each seed by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import replay_buffer as replay
from prune_rl.learners import sac
from prune_rl.spaces import Box, Spec
from tests.compilation import quick_jit
from tests.learners.random_rollouts import (
    DISCRETE,
    LOPSIDED,
    SMALL_SAC,
    random_rollout,
    random_sac_state,
)
from tests.learners.schedules import by_schedule

KINDS = pytest.mark.parametrize("spec", [DISCRETE, LOPSIDED], ids=["discrete", "box"])
PRUNED = dataclasses.replace(
    SMALL_SAC,
    utd_ratio=5 / 24,  # an odd number of gradient steps: smaller programs
    init_alpha=0.3,
    total_timesteps=4 * SMALL_SAC.steps_per_update,
    prune=by_schedule(sparsity=0.5, critic=True, begin=0.5, end=1.0),
)
update = quick_jit(sac.update, static_argnames="config")


def plain(tree: Any) -> Any:
    """``tree`` in NumPy, with integers in place of typed keys."""
    return jax.tree.map(
        lambda x: np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x),
        tree,
    )


@KINDS
def test_every_leaf_of_the_state_is_an_array_whose_type_an_update_keeps(spec: Spec) -> None:
    state = sac.init(jax.random.key(0), PRUNED, spec)
    after = jax.eval_shape(lambda s, r: sac.update(s, r, PRUNED)[0], state, random_rollout(0, PRUNED, spec))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s)
        for s in (jax.eval_shape(lambda: state), after)
    ]
    assert kinds[0] == kinds[1]
    floats = [leaf for leaf in jax.tree.leaves(after) if leaf.dtype == jnp.float32]
    assert not any(leaf.weak_type for leaf in floats)


@KINDS
def test_the_first_state(spec: Spec) -> None:
    state = sac.init(jax.random.key(0), PRUNED, spec)
    outputs, inputs = (4, 3) if spec is DISCRETE else (1, 5)
    shapes = jax.tree.map(jnp.shape, state.networks.params)
    assert shapes["actor"]["layer_0"] == {"kernel": (3, 6), "bias": (6,)}
    assert shapes["actor"]["layer_1"] == {"kernel": (6, 5), "bias": (5,)}
    assert shapes["actor"]["head"] == {"kernel": (5, 4), "bias": (4,)}
    assert shapes["critic"]["layer_0"] == {"kernel": (2, inputs, 6), "bias": (2, 6)}
    assert shapes["critic"]["layer_1"] == {"kernel": (2, 6, 5), "bias": (2, 5)}
    assert shapes["critic"]["head"] == {"kernel": (2, 5, outputs), "bias": (2, outputs)}
    jax.tree.map(np.testing.assert_array_equal, state.networks.params["critic"], state.networks.target_critic)
    first, second = state.networks.params["critic"]["layer_0"]["kernel"]
    assert np.abs(first - second).max() > 0.1
    assert float(jnp.exp(state.networks.log_alpha)) == pytest.approx(0.3)
    assert {name: mask.shape for name, mask in state.masks.items()} == {
        f"{network}/layer_{i}": (size,) for network in ("actor", "critic") for i, size in enumerate((6, 5))
    }
    assert all(bool(mask.all()) for mask in state.masks.values())
    assert state.importance.keys() == state.masks.keys()
    # An almost uniform policy: logits or means near 0, and log standard deviations too.
    head = state.params["actor"]["head"]
    assert 0.0 < np.abs(head["kernel"]).max() <= 0.01
    assert not np.any(head["bias"])
    np.testing.assert_array_equal(
        state.bounds, np.zeros((2, 0)) if spec is DISCRETE else [[-3.0, 0.5], [1.0, 0.75]]
    )


@pytest.mark.parametrize(
    ("low", "high"),
    [((-math.inf, -1.0), (math.inf, 1.0)), ((-1.0, -1.0), (1.0, math.inf)), ((-math.inf, 0.0), (1.0, 1.0))],
)
def test_box_actions_without_bounds_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    spec = Spec(observation_size=3, action=Box(low, high, (2,)))
    with pytest.raises(ValueError, match=r"must be finite, got Box.* use PPO, or bound") as error:
        sac.init(jax.random.key(0), SMALL_SAC, spec)
    assert str(low) in str(error.value)
    assert str(high) in str(error.value)


def test_state_is_frozen() -> None:
    state = sac.init(jax.random.key(0), PRUNED, DISCRETE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.step = jnp.int32(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.networks.log_alpha = jnp.float32(1)


def test_an_update_is_pure_the_same_each_time_and_compiled_once_for_warm_up_and_learning(
    assert_traces: Callable[..., Any],
) -> None:
    counted = quick_jit(assert_traces(sac.update, 1), static_argnames="config")
    state = random_sac_state(PRUNED, LOPSIDED)
    for i in range(4):
        before, rollout = plain(state), random_rollout(i, PRUNED, LOPSIDED)
        after = counted(state, rollout, dataclasses.replace(PRUNED))
        again = counted(state, rollout, PRUNED)
        jax.tree.map(np.testing.assert_array_equal, plain(after), plain(again))
        jax.tree.map(np.testing.assert_array_equal, before, plain(state))
        assert not np.array_equal(plain(after[0].key), plain(state.key))
        state = after[0]
    assert int(state.step) == 4
    other = dataclasses.replace(state, key=jax.random.key(9))
    heads = [
        counted(s, random_rollout(4, PRUNED, LOPSIDED), PRUNED)[0].params["actor"]["head"]["bias"]
        for s in (state, other)
    ]
    assert np.abs(heads[0] - heads[1]).max() > 1e-4, "batches and noise follow from the key"


def test_critics_read_box_actions_between_minus_one_and_one() -> None:
    rollout = random_rollout(0, PRUNED, LOPSIDED)
    unit = np.random.default_rng(0).uniform(-1.0, 1.0, rollout.action.shape)
    unit[0], unit[1] = -1.0, 1.0
    action = np.array([-3.0, 0.5]) + 0.5 * (unit + 1.0) * np.array([4.0, 0.25])
    rollout = dataclasses.replace(rollout, action=action.astype(np.float32))
    state, _ = update(random_sac_state(PRUNED, LOPSIDED), rollout, PRUNED)
    kept = replay.sample(state.replay, jax.random.key(0), 200)
    row = np.argmax(np.all(np.asarray(kept.obs)[:, None] == rollout.obs.reshape(1, -1, 3), axis=-1), axis=1)
    assert set(row) == set(range(24))
    np.testing.assert_allclose(kept.action, unit.reshape(-1, 2)[row], atol=2e-6)


def test_no_two_leaves_of_a_state_share_memory_so_that_it_can_be_donated() -> None:
    # Not initialised under jit, which would give every leaf its own buffer in any case.
    state = sac.init(jax.random.key(0), PRUNED, LOPSIDED)
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    addresses = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(addresses) > 50
    assert len(set(addresses)) == len(addresses)


def test_seeds_side_by_side_are_each_the_seed_alone_and_their_state_can_be_donated() -> None:
    axes = (sac.VMAP_AXES, 0)
    keys = jnp.stack([jax.random.key(i) for i in range(2)])
    alone = [sac.init(key, PRUNED, LOPSIDED) for key in keys]
    states = quick_jit(jax.vmap(lambda key: sac.init(key, PRUNED, LOPSIDED), out_axes=sac.VMAP_AXES))(keys)
    assert states.step.shape == ()
    assert states.networks.log_alpha.shape == (2,)
    many = quick_jit(
        jax.vmap(lambda s, r: sac.update(s, r, PRUNED), in_axes=axes, out_axes=axes), donate_argnums=0
    )
    for i in range(3):
        rollouts = [random_rollout(10 * seed + i, PRUNED, LOPSIDED) for seed in range(2)]
        before = jax.tree.leaves((states.replay.experience, states.networks))
        states, metrics = many(states, jax.tree.map(lambda *x: jnp.stack(x), *rollouts))
        assert all(leaf.is_deleted() for leaf in before)
        for seed in range(2):
            alone[seed], expected = update(alone[seed], rollouts[seed], PRUNED)
            for name in ("critic_loss", "actor_loss", "entropy", "alpha", "q_target"):
                np.testing.assert_allclose(metrics[name][seed], expected[name], rtol=1e-3, atol=1e-5)
    assert np.isfinite(metrics["critic_loss"]).all()
    for seed in range(2):
        mine = jax.tree.map(lambda x, seed=seed: x[seed], (states.networks.params, states.masks))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            mine,
            (alone[seed].params, alone[seed].masks),
        )


def test_learning_and_pruning_stay_conditional_over_many_seeds() -> None:
    state, rollout = random_sac_state(PRUNED, DISCRETE), random_rollout(0, PRUNED, DISCRETE)

    def conditions(fn: Callable[..., Any], *args: Any) -> int:
        return sum(e.primitive.name == "cond" for e in jax.make_jaxpr(fn)(*args).jaxpr.eqns)

    def one(state: sac.State, rollout: sac.Rollout) -> Any:
        return sac.update(state, rollout, PRUNED)

    axes = (sac.VMAP_AXES, 0)
    states, rollouts = jax.tree.map(lambda x: jnp.stack([x, x]), (state, rollout))
    states = dataclasses.replace(states, step=state.step)
    alone = conditions(one, state, rollout)
    assert alone >= 2, "learning, and the mask updates"
    # A batched predicate would have become a select that runs both branches.
    assert conditions(jax.vmap(one, in_axes=axes, out_axes=axes), states, rollouts) == alone
