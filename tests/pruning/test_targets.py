"""An ensemble's members lose the same neurons, and each is scored and refitted by itself; so are copies."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.find_groups import find_groups
from prune_rl.pruning.brain_surgeon import refit
from prune_rl.pruning.mask_schedule import MaskSchedule
from prune_rl.pruning.mask_update import mask_update
from prune_rl.pruning.masks import apply_masks
from prune_rl.pruning.rules import PruningRules, init_pruning
from prune_rl.pruning.scores import SCORES
from prune_rl.pruning.targets import Ensemble, Target

MEMBERS, SIZES = 3, (4, 9, 7, 2)
X = jnp.asarray(np.random.default_rng(1).normal(size=(64, SIZES[0])), jnp.float32)


def make_ensemble(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {
        "shift": jnp.ones(SIZES[0], jnp.float32),
        "net": [
            jnp.asarray(rng.normal(size=(MEMBERS, *shape)), jnp.float32)
            for shape in itertools.pairwise(SIZES)
        ],
    }


def network(params: Any, x: jax.Array) -> jax.Array:
    x = x + jnp.broadcast_to(params["shift"], x.shape)
    first, second, head = params["net"]
    return jnp.tanh(jnp.tanh(x @ first) @ second) @ head


IN_AXES = {"shift": None, "net": 0}


def outputs(params: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(network, in_axes=(IN_AXES, None))(params, x)


def member(params: Any, i: int) -> Any:
    return {**params, "net": [leaf[i] for leaf in params["net"]]}


PARAMS, COPY = make_ensemble(2), make_ensemble(3)
GROUPS, MEMBER_GROUPS = find_groups(outputs, PARAMS, X), find_groups(network, member(PARAMS, 0), X)


def target(score: str | None, **options: Any) -> Target:
    return Target(
        "critics",
        GROUPS,
        0.5,
        score=score,
        network=network,
        ensemble=Ensemble(MEMBER_GROUPS, IN_AXES),
        **options,
    )


@pytest.mark.parametrize("score", ["surgeon", "output"])
def test_scores_from_activations_are_sums_over_the_members(score: str) -> None:
    assert list(GROUPS) == list(MEMBER_GROUPS)
    old = init_pruning(GROUPS)
    critics = target(score)
    hidden = critics.activations(PARAMS, (X,))
    found = critics.scores(PARAMS, hidden, old.masks, None, old.neurons)
    alone = Target("one", MEMBER_GROUPS, 0.5, score=score, network=network)
    for name in GROUPS:
        expected = np.zeros(GROUPS[name].size)
        for i in range(MEMBERS):
            one = member(PARAMS, i)
            expected += SCORES[score].function(
                MEMBER_GROUPS, one, None, activations=alone.activations(one, (X,)), masks=old.masks
            )[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_members_and_copies_are_refitted_each_on_its_own_activations() -> None:
    rules = PruningRules(MaskSchedule.create(1, 0.0, 1.0, 1), (target("surgeon", refit=True),))
    pruned = mask_update(
        rules, init_pruning(GROUPS), PARAMS, (), {name: jnp.zeros(g.size) for name, g in GROUPS.items()},
        count=jnp.int32(1), draw_inputs=lambda: {"critics": (X,)}, copies={"critics": COPY},
    )  # fmt: skip
    masks = pruned.state.masks
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"net/0": 5, "net/1": 4}
    old = init_pruning(GROUPS).masks
    alone = Target("one", MEMBER_GROUPS, 0.5, network=network)
    for before, after in ((PARAMS, pruned.params), (COPY, pruned.copies["critics"])):
        np.testing.assert_array_equal(after["shift"], before["shift"])
        for i in range(MEMBERS):
            one = member(before, i)
            expected = refit(MEMBER_GROUPS, one, alone.activations(one, (X,)), old, masks)
            expected = apply_masks(MEMBER_GROUPS, expected, masks)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                member(after, i),
                expected,
            )


def test_without_a_refit_a_copy_is_masked_only() -> None:
    rules = PruningRules(MaskSchedule.create(1, 0.0, 1.0, 1), (target("magnitude"),))
    scores = {name: jnp.zeros(g.size) for name, g in GROUPS.items()}
    pruned = mask_update(
        rules, init_pruning(GROUPS), PARAMS, (), scores, count=jnp.int32(1), copies={"critics": COPY}
    )
    assert not all(bool(mask.all()) for mask in pruned.state.masks.values())
    masked = apply_masks(GROUPS, COPY, pruned.state.masks)
    jax.tree.map(np.testing.assert_array_equal, pruned.copies["critics"], masked)
