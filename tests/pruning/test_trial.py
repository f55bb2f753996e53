"""A mask update under a dynamic threshold: when neurons go, when they return, and what returns with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.dependency.find_groups import find_groups
from prune_rl.dependency.tree_paths import KeyPath
from prune_rl.pruning.dynamic_threshold import DynamicThreshold
from prune_rl.pruning.mask_schedule import MaskSchedule
from prune_rl.pruning.mask_update import mask_update
from prune_rl.pruning.rules import PruningRules, init_pruning
from prune_rl.pruning.targets import Target
from tests.compilation import quick_jit

UPDATES = 60
X = jnp.asarray(np.random.default_rng(1).normal(size=(64, 3)), jnp.float32)


def make_params(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 16), "b": (16, 12), "c": (12, 2), "critic": (3, 8), "value": (8, 1)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def actor(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def critic(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["critic"]) @ p["value"]


GROUPS = find_groups(lambda p, x: (actor(p, x), critic(p, x)), make_params(), X)
ACTOR, CRITIC = GROUPS.select(["a", "b"]), GROUPS.select(["critic"])
DYNAMIC = DynamicThreshold(tolerance=0.1, start=0.02, trial=4.0, patience=2.0)


def not_the_critic(path: KeyPath) -> bool:
    return path[0].key in "abc"


RULES = PruningRules(
    MaskSchedule.create(UPDATES, 0.1, 0.6, 2),
    (Target("actor", ACTOR, 1.0, score="elimination", refit=True, network=actor),),
    min_width=0,
    dynamic=DYNAMIC,
    restored=not_the_critic,
)
WITH_CRITIC = dataclasses.replace(
    RULES, targets=(*RULES.targets, Target("critic", CRITIC, 0.5, score="magnitude", follows=False))
)
LATE = dataclasses.replace(RULES, schedule=MaskSchedule.create(UPDATES, 0.5, 0.6, 2))
BY_FEW = dataclasses.replace(RULES, dynamic=dataclasses.replace(DYNAMIC, at_once=0.1))


class Step(NamedTuple):
    """Before (``state``, ``params``) and after (``pruned``) one training update."""

    update: int
    state: Any
    params: Any
    pruned: Any

    def widths(self, *names: str) -> list[int]:
        return [int(self.pruned.state.masks[name].sum()) for name in names or ("a", "b")]


def make_step(rules: PruningRules) -> Any:
    def step(
        state: Any,
        params: Any,
        count: jax.Array,
        performance: jax.Array,
        weight: jax.Array,
        unchanged: jax.Array,
        lost: jax.Array,
    ) -> Any:
        # What training does in between: every weight that is left moves a little.
        params = jax.tree.map(lambda x: x * 0.999, params)
        zero = {name: jnp.zeros(mask.shape) for name, mask in state.masks.items()}
        return params, mask_update(
            rules, state, params, (), zero, count=count, performance=performance, weight=weight,
            unchanged=unchanged, lost=lost, draw_inputs=lambda: {"actor": (X,)},
        )  # fmt: skip

    return step


# One program each, whatever the returns are.
STEPS = {id(rules): quick_jit(make_step(rules)) for rules in (RULES, WITH_CRITIC, BY_FEW, LATE)}


def watch(
    performances: Sequence[float],
    rules: PruningRules = RULES,
    weight: float = 2.0,
    unchanged: Callable[[int], bool] = lambda update: False,
    lost: Callable[[int], bool] = lambda update: False,
) -> list[Step]:
    rules.check()
    groups = GROUPS if rules.scheduled else ACTOR
    params, step, seen = make_params(), STEPS[id(rules)], []
    state = init_pruning(groups, rules, params)
    for i, performance in enumerate(performances):
        numbers = jnp.int32(i + 1), jnp.float32(performance), jnp.float32(weight)
        before, pruned = step(
            state, params, *numbers, jnp.asarray(unchanged(i + 1)), jnp.asarray(lost(i + 1))
        )
        seen.append(Step(i + 1, state, before, pruned))
        state, params = pruned.state, pruned.params
    return seen


def same(left: Any, right: Any) -> bool:
    return all(bool(jnp.array_equal(a, b)) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


def test_while_the_return_holds_neurons_go_down_to_none() -> None:
    seen = watch([100.0] * UPDATES)
    first, last = RULES.schedule.first, RULES.schedule.last
    changes = [s.update for s in seen if not same(s.state.masks, s.pruned.state.masks)]
    assert changes[0] >= first
    assert changes[-1] <= last
    assert all((count - first) % 2 == 0 for count in changes)
    assert seen[-1].widths() == [0, 0]
    for s in seen:
        for name in ("a", "b"):
            before, after = int(s.state.masks[name].sum()), int(s.pruned.state.masks[name].sum())
            assert before - after <= max(before // 2, 1), "at most half of a layer at once"
    assert int(seen[-1].pruned.state.updates) == len(changes)


def test_the_error_that_goes_at_once_is_below_the_threshold_which_rises() -> None:
    thresholds = []
    for s in watch([100.0] * UPDATES):
        threshold = float(s.pruned.state.threshold.threshold)
        for name in ("a", "b"):
            removed = float(s.pruned.report[name]["removed_importance"])
            assert removed <= threshold * (1 + 1e-5), (s.update, name)
        thresholds.append(threshold)
    risen = sorted({round(t, 6) for t in thresholds})
    assert risen == pytest.approx([min(0.02 * 2**i, 1.0) for i in range(len(risen))])


def test_a_removal_that_changed_nothing_needs_no_return() -> None:
    """Trials end at once where nothing changed, or as ever where something did."""
    first = first_removal(watch([100.0] * UPDATES)) + 1
    returns = [100.0] * first + [-math.inf] * (UPDATES - first)

    def removals(seen: Sequence[Step]) -> list[int]:
        return [s.update for s in seen if not same(s.state.masks, s.pruned.state.masks)]

    assert removals(watch(returns)) == [first], "the rest of training waits for a return"
    quick = watch(returns, unchanged=lambda update: update <= first + 6)
    assert removals(quick) == list(range(first, first + 8, 2))
    assert int(quick[-1].pruned.state.threshold.taken_back) == 0
    assert bool(quick[-1].pruned.state.threshold.on_trial)
    silent = [-math.inf] * UPDATES
    early = removals(watch(silent, unchanged=lambda update: update <= first + 6))
    assert early == list(range(RULES.schedule.first, first + 8, 2)), "the first waits for no reference"
    assert removals(watch(silent)) == []


def test_without_a_reference_it_is_found_after_a_removal_was_taken_back() -> None:
    """Until then a removal on trial sets none, since nobody knows what it lost."""
    lost = RULES.schedule.first + 8  # an update
    returns = [-math.inf] * (lost - 2) + [50.0] * 2 + [100.0] * (UPDATES - lost)
    seen = watch(
        returns, unchanged=lambda update: not lost - 1 <= update <= lost, lost=lambda update: update == lost
    )
    changed = [s.update for s in seen if not same(s.state.masks, s.pruned.state.masks)]
    assert changed[3:5] == [lost - 2, lost]
    assert changed[5] > lost + 2, "the smaller threshold lets nothing go at once"
    back = seen[lost - 1].pruned.state
    assert int(back.threshold.taken_back) == 1
    assert same(back.masks, seen[lost - 3].state.masks)
    references = [float(s.pruned.state.threshold.reference) for s in seen]
    assert references[: lost + 1] == [-math.inf] * (lost + 1)
    assert references[lost + 1] == pytest.approx(100.0)


def test_nothing_goes_while_the_return_still_rises() -> None:
    rising = [100.0 * 1.2**i for i in range(20)]
    seen = watch([*rising, *[rising[-1]] * (UPDATES - 20)])
    first = first_removal(seen)
    assert 20 < first < 30
    assert float(seen[first - 1].pruned.state.threshold.threshold) == pytest.approx(DYNAMIC.start)


def test_before_the_schedule_the_reference_is_found_and_nothing_goes() -> None:
    seen = watch([300.0] * UPDATES, LATE)
    first = first_removal(seen)
    assert seen[first].update >= LATE.schedule.first
    assert float(seen[first - 1].pruned.state.threshold.threshold) == pytest.approx(DYNAMIC.start)
    fallen = LATE.schedule.first - 2
    seen = watch([300.0] * fallen + [100.0] * (UPDATES - fallen), LATE)
    assert float(seen[fallen - 1].pruned.state.threshold.reference) == pytest.approx(300.0)
    assert seen[fallen + 3].widths() == [16, 12], "100 is less than what was seen before the schedule"


def test_a_return_that_falls_while_nothing_is_on_trial_becomes_the_reference() -> None:
    seen = watch([300.0] * 10 + [100.0] * (UPDATES - 10), LATE)
    references = [float(s.pruned.state.threshold.reference) for s in seen]
    assert references[9:13] == pytest.approx([300.0] * 4)
    assert references[-1] == pytest.approx(100.0)
    assert int(seen[-1].pruned.state.threshold.taken_back) == 0
    assert seen[-1].widths() < [16, 12]


def first_removal(seen: Sequence[Step]) -> int:
    return next(i for i, s in enumerate(seen) if not same(s.state.masks, s.pruned.state.masks))


def test_a_removal_after_which_the_return_stays_away_is_taken_back() -> None:
    at = first_removal(watch([100.0] * UPDATES))
    seen = watch([100.0] * (at + 1) + [50.0] * (UPDATES - at - 1))
    good = seen[at]  # the state before the first removal
    back = next(s for s in seen[at + 1 :] if not same(s.state.masks, s.pruned.state.masks))
    assert back.update == good.update + 4, "after two trials of two updates each"
    assert same(back.pruned.state.masks, good.state.masks)
    for name in ("a", "b", "c"):
        assert same(back.pruned.params[name], good.params[name])
    assert not same(back.pruned.params["critic"], good.params["critic"]), "which trains on"
    threshold = back.pruned.state.threshold
    assert int(threshold.taken_back) == 1
    assert float(threshold.threshold) == pytest.approx(
        DYNAMIC.backoff * float(back.state.threshold.threshold)
    )
    assert float(threshold.growth) == pytest.approx(math.sqrt(2.0))


def test_a_removal_that_is_lost_is_taken_back_at_once_unless_the_return_holds() -> None:
    at = first_removal(watch([100.0] * UPDATES))
    fallen = [100.0] * (at + 1) + [50.0] * (UPDATES - at - 1)
    seen = watch(fallen, lost=lambda update: True)
    assert same(seen[at + 1].pruned.state.masks, seen[at].pruned.state.masks), "no mask update is due"
    assert same(seen[at + 2].pruned.state.masks, seen[at].state.masks)
    assert same(seen[at + 2].pruned.params["a"], seen[at].params["a"])
    assert int(seen[at + 2].pruned.state.threshold.taken_back) == 1
    held = watch([100.0] * UPDATES, lost=lambda update: True)
    assert held[-1].widths() == [0, 0]
    assert int(held[-1].pruned.state.threshold.taken_back) == 0


def test_what_returned_is_known_to_be_as_it_was() -> None:
    """After a removal was taken back, the next one needs no return to begin where the policy is that of before."""
    at = first_removal(watch([100.0] * UPDATES))
    returns = [100.0] * (at + 1) + [-math.inf] * (UPDATES - at - 1)
    fails = at + 3  # an update
    waiting = watch(returns, lost=lambda update: update == fails)
    assert same(waiting[-1].pruned.state.masks, waiting[at].state.masks), "nobody knows its return"
    seen = watch(returns, lost=lambda update: update == fails, unchanged=lambda update: update > fails)
    later = [s.update for s in seen[fails:] if not same(s.state.masks, s.pruned.state.masks)]
    assert later[0] == fails + 2
    assert len(later) > 3


def test_where_the_return_comes_back_in_time_the_removal_stays() -> None:
    at = first_removal(watch([100.0] * UPDATES))
    seen = watch([100.0] * (at + 1) + [50.0] * 2 + [140.0] * (UPDATES - at - 3))
    assert int(seen[-1].pruned.state.threshold.taken_back) == 0
    assert seen[-1].widths() == [0, 0]


def test_nothing_goes_after_the_schedule_but_the_last_removal_can_still_return() -> None:
    last = RULES.schedule.last
    seen = watch([100.0] * last + [-100.0] * (UPDATES - last), BY_FEW)
    after = [s for s in seen[last:] if not same(s.state.masks, s.pruned.state.masks)]
    assert len(after) == 1
    assert sum(after[0].widths()) > sum(seen[last - 1].widths())
    assert int(seen[-1].pruned.state.threshold.taken_back) == 1


def test_without_any_return_nothing_goes() -> None:
    for performances, weight in (([math.nan] * UPDATES, 2.0), ([100.0] * UPDATES, 0.0)):
        assert watch(performances, weight=weight)[-1].widths() == [16, 12]


def test_the_critic_goes_by_the_schedule_whatever_the_return() -> None:
    seen = watch([100.0, 0.0] * (UPDATES // 2), WITH_CRITIC)
    schedule = RULES.schedule
    for s in seen:
        made = min(max(0, (s.update - schedule.first) // 2 + 1), schedule.number)
        share = 0.5 * (1 - (1 - made / schedule.number) ** 3)
        assert s.widths("critic") == [8 - int(np.floor(8 * share + 1e-4))]
    assert seen[-1].widths("critic") == [4]


def test_seeds_have_widths_of_their_own() -> None:
    """Under ``vmap`` each seed is what it is alone."""
    falling = [100.0 - 30.0 * i for i in range(UPDATES - 10)]
    returns = [[100.0] * UPDATES, [100.0] * 10 + falling]
    alone = [watch(performances)[-1] for performances in returns]
    step, params = make_step(RULES), make_params()
    start = init_pruning(ACTOR, RULES, params)
    state, params = jax.tree.map(lambda x: jnp.stack([x, x]), (start, params))
    several = quick_jit(jax.vmap(step, in_axes=(0, 0, None, 0, None, None, None)))
    for i in range(UPDATES):
        now = jnp.asarray([performances[i] for performances in returns])
        no = jnp.asarray(False)
        _, pruned = several(state, params, jnp.int32(i + 1), now, jnp.float32(2.0), no, no)
        state, params = pruned.state, pruned.params
    for index, expected in enumerate(alone):
        for name, mask in expected.pruned.state.masks.items():
            np.testing.assert_array_equal(state.masks[name][index], mask)
    assert alone[0].widths() != alone[1].widths()


def test_neurons_that_may_return_are_needed() -> None:
    at = first_removal(watch([100.0] * UPDATES))
    state = watch([100.0] * UPDATES)[at].pruned.state
    assert all(bool(mask.all()) for mask in state.needed.values())
    assert not all(bool(mask.all()) for mask in state.masks.values())
    # Where an array keeps its size, its shape stands for it.
    shape = jax.eval_shape(lambda: state.masks["b"])
    assert state._replace(masks={**state.masks, "b": shape}).needed["b"] is shape


def test_a_dynamic_threshold_excludes_what_it_takes_the_place_of() -> None:
    for change, words in (
        ({"gate": 0.1}, "gate = 0.1 and a dynamic threshold exclude each other"),
        ({"energy": 0.1}, "energy = 0.1 and a dynamic threshold exclude each other"),
        ({"scope": "global"}, "ranks within each layer"),
        ({"dynamic": dataclasses.replace(DYNAMIC, tolerance=-1.0)}, "tolerance must be a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(RULES, **change).check()
