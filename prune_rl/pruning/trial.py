"""A mask update under a dynamic threshold: the trial under way ends with the next removal, or is taken back."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from prune_rl.dependency.tree_paths import leaves_by_path, replace_leaves
from prune_rl.pruning.dynamic_threshold import ThresholdState, new_trial, raised, taken_back, verdict
from prune_rl.pruning.removal import Bounds, Pruned, Removal


def end_trial(
    removal: Removal, count: jax.Array, unchanged: jax.Array | bool = False, lost: jax.Array | bool = False
) -> Pruned:
    """Remove neurons if the return held and rose no more, take the last removal back if it did not come back in time.

    Nothing is removed outside of the schedule. Before it the reference is found; after it, what is on trial can still
    be taken back. Where the network is known to be ``unchanged`` by all removals so far, bool[], the return holds; it
    fails where what is on trial is known to be ``lost``, bool[], and the return does not hold. If neurons go without a
    reference because nothing changes, it is found after a removal was taken back.
    """
    rules, state, threshold = removal.rules, removal.state, removal.state.threshold
    assert rules.dynamic is not None
    assert isinstance(threshold, ThresholdState)
    dynamic = rules.dynamic
    threshold, (holds, fails, rises) = verdict(dynamic, threshold)
    holds |= unchanged & (jnp.isfinite(threshold.reference) | (threshold.taken_back == 0))
    fails = ~holds & (fails | (threshold.on_trial & lost))

    def go_on(_: None) -> Pruned:
        masks = {name: state.masks[name] for name in threshold.good_masks}
        early = rises | (count < rules.schedule.first)
        higher = raised(threshold, masks, rules.good(removal.params), early)
        bounds = {
            target.name: Bounds(target.sparsity, higher.threshold, dynamic.at_once)
            for target in rules.following
        }

        # Not batched, so that it costs nothing outside of the schedule.
        pruned: Pruned = jax.lax.cond(
            rules.schedule.due(count, gated=False),
            lambda _: removal(bounds, active=holds & ~rises),
            lambda _: removal.nothing(),
            None,
        )
        gone = jnp.stack([jnp.any(pruned.state.masks[name] != mask) for name, mask in masks.items()])
        new = pruned.state._replace(
            threshold=new_trial(higher, jnp.any(gone)), updates=state.updates + jnp.any(gone)
        )
        return pruned._replace(state=new)

    def take_back(_: None) -> Pruned:
        back = threshold.on_trial
        now, good = leaves_by_path(removal.params), leaves_by_path(threshold.good_params)
        params = {path: jnp.where(back, leaf, now[path]) for path, leaf in good.items()}
        masks = state.masks | {
            name: jnp.where(back, mask, state.masks[name]) for name, mask in threshold.good_masks.items()
        }
        after = new_trial(taken_back(dynamic, threshold, state.updates == 0), False)
        pruned = removal.nothing()
        report = {
            name: {**values, "width": jnp.sum(masks[name]).astype(jnp.int32)}
            for name, values in pruned.report.items()
        }
        return pruned._replace(
            state=state._replace(masks=masks, threshold=after),
            params=replace_leaves(removal.params, params),
            report=report,
        )

    def wait(_: None) -> Pruned:
        pruned = removal.nothing()
        return pruned._replace(state=state._replace(threshold=threshold))

    ended: Pruned = jax.lax.cond(holds, go_on, lambda _: jax.lax.cond(fails, take_back, wait, None), None)
    return ended
