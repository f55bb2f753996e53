"""Gradient steps of SAC on pruned networks: masked ones train like compact ones, and the proximal step prunes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.compaction import compact
from prune_rl.learners import sac
from prune_rl.learners.sac import learner
from prune_rl.pruning.masks import apply_masks
from tests.compilation import quick_jit
from tests.learners.random_rollouts import (
    CONTINUOUS,
    SMALL_SAC,
    arch_of,
    moments_of,
    random_batch,
    random_noise,
    random_rollout,
    random_sac_state,
    slices_of,
)
from tests.learners.schedules import by_schedule

HIDDEN = (8, 12)
SIZES = {f"{network}/layer_{i}": size for network in ("actor", "critic") for i, size in enumerate(HIDDEN)}
BASE = dataclasses.replace(SMALL_SAC, hidden=HIDDEN)
# No mask update comes due.
GIVEN = dataclasses.replace(BASE, prune=by_schedule(critic=True, begin=1.0, end=1.0))
ARCH = arch_of(BASE, CONTINUOUS)
gradient_step = quick_jit(learner.gradient_step, static_argnames=("config", "arch"))


def test_a_gradient_step_takes_masked_slices_and_their_moments_to_zero() -> None:
    state = random_sac_state(GIVEN, CONTINUOUS)
    batch = random_batch(0, GIVEN, CONTINUOUS)
    networks, _ = gradient_step(
        state.networks, batch, random_noise(0, state.networks, GIVEN), state.masks, GIVEN, ARCH
    )
    for tree in moments_of(networks):
        assert all(np.any(part[0]) for name in SIZES for part in slices_of(tree, name))
    rng = np.random.default_rng(0)
    masks = {name: jnp.asarray(rng.random(size) < 0.5) for name, size in SIZES.items()}
    networks, _ = gradient_step(networks, batch, random_noise(1, networks, GIVEN), masks, GIVEN, ARCH)
    for name, mask in masks.items():
        kept = np.asarray(mask)
        for tree in (networks.params, *moments_of(networks)):
            for part in slices_of(tree, name):
                assert not np.any(part[~kept])
                assert np.any(part[kept])


def test_training_goes_on_the_same_in_a_compacted_state() -> None:
    config = GIVEN
    rng = np.random.default_rng(0)
    state = random_sac_state(config, CONTINUOUS)
    groups = sac.prunable_groups(state.params, config)
    widths = (6, 5)
    masks = {name: jnp.asarray(rng.permutation(SIZES[name]) < widths[int(name[-1])]) for name in groups}
    critics = groups.select(lambda group: group.name.startswith("critic"))
    params = apply_masks(groups, state.params, masks)
    target = apply_masks(critics, {"critic": state.networks.target_critic}, masks)
    wide = dataclasses.replace(state.networks, params=params, target_critic=target["critic"])
    # The optimiser's state of a learner that was so small from the start.
    small_state = sac.init(jax.random.key(0), dataclasses.replace(config, hidden=widths), CONTINUOUS)
    small = dataclasses.replace(
        small_state.networks,
        params=compact(groups, params, masks),
        target_critic=compact(critics, target, masks)["critic"],
    )
    start = small
    for i in range(3):
        batch, noise = random_batch(i, config, CONTINUOUS), random_noise(i, wide, config)
        wide, expected = gradient_step(wide, batch, noise, masks, config, ARCH)
        small, metrics = gradient_step(small, batch, noise, small_state.masks, config, ARCH)
        for name in expected:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    gathered = (compact(groups, wide.params, masks), compact(critics, {"critic": wide.target_critic}, masks))
    for a, b in zip(
        jax.tree.leaves(gathered), jax.tree.leaves((small.params, small.target_critic)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), small.params, start.params)
    assert min(jax.tree.leaves(moved)) > 1e-3, "the comparison must be of something that was trained"
    # The whole update takes its shapes from the params, whatever the config says of widths.
    narrow = dataclasses.replace(small_state, networks=small)
    after, _ = jax.eval_shape(
        lambda s, r: sac.update(s, r, config), narrow, random_rollout(0, config, CONTINUOUS)
    )
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, small.params)


def test_the_proximal_step_takes_neurons_of_the_actor_to_zero_and_leaves_the_critics_alone() -> None:
    config = dataclasses.replace(BASE, prune=by_schedule(critic=True, strength=3.0, begin=1.0, end=1.0))
    state = random_sac_state(config, CONTINUOUS)
    networks = state.networks
    for i in range(30):
        networks, _ = gradient_step(
            networks,
            random_batch(i, config, CONTINUOUS),
            random_noise(i, networks, config),
            state.masks,
            config,
            ARCH,
        )
    for name in SIZES:
        network, layer = name.split("/")
        columns = np.asarray(networks.params[network][layer]["kernel"])
        gone = ~np.any(columns, axis=-2)
        assert gone.any() == (network == "actor")
        assert not np.any(networks.params[network][layer]["bias"][gone]), "column and bias go together"
