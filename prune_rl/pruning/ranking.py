"""From scores to masks: rank neurons, and remove the lowest-scored ones that every rule allows to go.

Three rules bound a removal: a *sparsity* (share of the neurons), an *energy* (share of the importance) and a *floor*
(minimum width); widths may be rounded up to a multiple. The dynamic threshold is after Su et al. 2024
(https://arxiv.org/abs/2402.05146).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from prune_rl.pruning.lamp import lamp_scores
from prune_rl.pruning.mask_schedule import Share, num_removable

# The neurons that one is ranked among: those of its layer, of all layers, or of the layers that a mapping puts in one
# class.
Scope = Literal["layer", "global", "lamp"] | Mapping[str, str]


def update_masks(
    masks: Mapping[str, jax.Array],
    scores: Mapping[str, jax.Array],
    sparsity: Share | Mapping[str, Share] = 0.5,
    *,
    energy: Share | None = None,
    min_width: int | Mapping[str, int] = 1,
    scope: Scope = "layer",
    gate: jax.Array | bool = True,
    regrow: bool = False,
    sizes: Mapping[str, int | jax.Array] | None = None,
    at_once: float | None = None,
    multiple_of: int | Mapping[str, int] = 1,
) -> dict[str, jax.Array]:
    """Remove the lowest-scored neurons, as many as every rule allows. Jittable; all shares may be traced.

    Args:
        masks: {group name: bool[size]}, True = kept.
        scores: {group name: float[size]}, non-negative. NaN keeps its neuron (count them with ``nan_scores``).
        sparsity: at most this share of the neurons of a layer is gone afterwards (``scope="global"``: of all layers
            together); a share in [0, 1], or one per group name (``scope="layer"`` only).
        energy: the removed neurons together hold at most this share of the layer's total score (of all layers'
            scores with ``scope="global"``). Neurons removed before count as holding nothing, so the bound is one per
            call. An infinite score does not count to the total, and this rule never removes its neuron. None: no such
            bound.
        min_width: each layer keeps at least so many neurons (or all it has, if fewer); one number or one per group.
            With 0 a layer may end without neurons: what follows it then sees no input any more.
        scope: "layer": rank within each layer. "global": over all layers, after dividing each layer's scores by their
            mean over the neurons still there. "lamp": over all layers by ``lamp_scores``. {group name: class}: over the
            layers of one class, divided likewise; each class loses the share ``sparsity``. ``isomorphic_classes`` gives
            such a mapping.
        gate: a boolean scalar; False leaves the masks as they are.
        regrow: False (default): a removed neuron never returns. True: masks are drawn anew from the scores.
        sizes: {group name: int32[]}, the neurons of each layer before its arrays were made smaller by ``shrink``;
            ``sparsity`` is a share of these. None: the length of the masks.
        at_once: at most this share of the neurons that are left in a layer goes in one call, but always one may
            (``scope="layer"`` only). None: no such bound.
        multiple_of: each layer keeps a multiple of so many neurons, such as the 8 or 16 of an accelerator's tiles, or
            all that are left: one number or one per group. Fewer go than the other rules allow, never more; a layer
            with NaN scores may keep another number.

    Ties go by index (layers by name), the lower index first, so that the count is exact. Raises ``ValueError`` for
    names or static values that do not fit.
    """
    check_options(masks, scores, sparsity, energy, min_width, scope, multiple_of)
    if at_once is not None:
        if scope != "layer":
            raise ValueError(f"at_once is a bound per layer, which scope {scope!r} does not have")
        floors_at_once = {
            name: jnp.sum(mask) - jnp.maximum(num_removable(at_once, jnp.sum(mask)), 1).astype(jnp.int32)
            for name, mask in masks.items()
        }
    floors = {name: _of(min_width, name) for name in masks}
    full = {name: mask.shape[0] if sizes is None else sizes[name] for name, mask in masks.items()}
    new: dict[str, jax.Array] = {}
    if scope == "layer":
        for name, mask in masks.items():
            floor = floors[name] if at_once is None else jnp.maximum(floors[name], floors_at_once[name])
            share = _of(sparsity, name)
            new[name] = _rank_and_cut(mask, scores[name], share, energy, floor, full[name], regrow)
    else:
        assert not isinstance(sparsity, Mapping)
        classes = scope if isinstance(scope, Mapping) else dict.fromkeys(masks, "all")
        for members in (
            [name for name in masks if classes[name] == c] for c in dict.fromkeys(classes.values())
        ):
            some = {name: masks[name] for name in members}
            if some:
                new |= _update_globally(some, scores, sparsity, energy, floors, full, regrow, scope == "lamp")
    opened = jnp.asarray(gate)
    return {
        name: jnp.where(opened, _rounded(mask, new[name], scores[name], _of(multiple_of, name), regrow), mask)
        for name, mask in masks.items()
    }


def nan_scores(scores: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """How many scores of each group are NaN: {group name: int32[]}."""
    return {name: jnp.sum(jnp.isnan(score)).astype(jnp.int32) for name, score in scores.items()}


def _rounded(old: jax.Array, new: jax.Array, score: jax.Array, multiple: int, regrow: bool) -> jax.Array:
    """``new`` with the best of those that go now kept, until their number is a multiple or nothing goes."""
    if multiple == 1:
        return new
    may_stay = ~new if regrow else old & ~new
    order_by = jnp.where(may_stay, jnp.where(jnp.isnan(score), jnp.inf, score.astype(jnp.float32)), -jnp.inf)
    # Of equal scores the higher index stays, as in the ranking.
    order = jnp.argsort(order_by, stable=True)[::-1]
    rank = jnp.zeros(len(new), jnp.int32).at[order].set(jnp.arange(len(new), dtype=jnp.int32))
    return new | (may_stay & (rank < -jnp.sum(new) % multiple))


def _rank_and_cut(
    mask: jax.Array,
    score: jax.Array,
    sparsity: Share,
    energy: Share | None,
    floor: int | jax.Array,
    full: int | jax.Array,
    regrow: bool,
    protected: jax.Array | None = None,
) -> jax.Array:
    """The new mask of one ranking: neurons sorted by score, the first k removed; ``full`` counts those of all time."""
    size = mask.shape[0]
    keep_always = jnp.isnan(score) if protected is None else jnp.isnan(score) | protected
    value = jnp.where(jnp.isnan(score), 0.0, score.astype(jnp.float32))
    order_by = jnp.where(keep_always, jnp.inf, value)
    if not regrow:
        order_by = jnp.where(mask, order_by, -jnp.inf)
        keep_always &= mask
    order = jnp.argsort(order_by, stable=True)
    # Of those that may be gone, some are no longer in the arrays.
    allowed = jnp.minimum(num_removable(sparsity, full), jnp.maximum(full - floor, 0)) - (full - size)
    if energy is not None:
        weight = jnp.maximum(value if regrow else jnp.where(mask, value, 0.0), 0.0)
        # A power of two is exact; without it the sum of large scores overflows, and an infinite total allows
        # everything.
        weight = weight * jnp.where(
            jnp.max(jnp.where(jnp.isfinite(weight), weight, 0.0)) > 1e30, 2.0**-100, 1.0
        )
        held = jnp.cumsum(weight[order])
        total = jnp.sum(jnp.where(jnp.isfinite(weight), weight, 0.0))
        # All of a layer holds all of its score, whatever rounding makes of the sum.
        allowed = jnp.where(
            jnp.asarray(energy) >= 1.0, allowed, jnp.minimum(allowed, jnp.sum(held <= energy * total))
        )
    rank = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32))
    # Written so that a NaN share removes nothing, instead of everything.
    kept = ~(rank < allowed) | keep_always
    return kept if regrow else kept & mask


def _update_globally(
    masks: Mapping[str, jax.Array],
    scores: Mapping[str, jax.Array],
    sparsity: Share,
    energy: Share | None,
    floors: Mapping[str, int],
    full: Mapping[str, int | jax.Array],
    regrow: bool,
    by_lamp: bool,
) -> dict[str, jax.Array]:
    """One ranking over several layers; each layer's best ``floor`` neurons are protected before it."""
    # jit sorts the names of a mapping; sorted here too, so that ties fall alike with and without it.
    masks = {name: masks[name] for name in sorted(masks)}
    normalised, protected = [], []
    lamp = lamp_scores({name: scores[name] for name in masks}, None if regrow else masks) if by_lamp else {}
    for name, mask in masks.items():
        score = scores[name].astype(jnp.float32)
        alive = jnp.isfinite(score) if regrow else jnp.isfinite(score) & mask
        mean = jnp.sum(jnp.where(alive, score, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
        normalised.append(lamp[name] if by_lamp else score / jnp.where(mean > 0, mean, 1.0))
        best = _rank_and_cut(mask, score, 1.0, None, floors[name], full[name], regrow)
        protected.append(best)
    joined = _rank_and_cut(
        jnp.concatenate(list(masks.values())),
        jnp.concatenate(normalised),
        sparsity,
        energy,
        0,
        sum(full[name] for name in masks),
        regrow,
        jnp.concatenate(protected),
    )
    sizes = [mask.shape[0] for mask in masks.values()]
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return {name: joined[stop - size : stop] for name, size, stop in zip(masks, sizes, stops, strict=True)}


def check_options(
    masks: Mapping[str, jax.Array],
    scores: Mapping[str, jax.Array],
    sparsity: Share | Mapping[str, Share],
    energy: Share | None,
    min_width: int | Mapping[str, int],
    scope: Scope,
    multiple_of: int | Mapping[str, int] = 1,
) -> None:
    """Raise ``ValueError`` for what ``update_masks`` refuses: names, shapes and static values that do not fit."""
    if not masks:
        raise ValueError("masks is empty: there is no neuron group to prune")
    for name, mask in masks.items():
        if name not in scores:
            raise ValueError(f"no scores for group {name!r}; scores has {sorted(scores)}")
        if scores[name].shape != mask.shape:
            raise ValueError(f"scores of {name!r} have shape {scores[name].shape}, its mask {mask.shape}")
    if isinstance(scope, Mapping):
        if not set(masks) <= set(scope):
            raise ValueError(f"scope lacks groups {sorted(set(masks) - set(scope))}")
    elif scope not in ("layer", "global", "lamp"):
        raise ValueError(
            f"unknown scope {scope!r}; choose 'layer', 'global', 'lamp' or {{group name: class}}"
        )
    if scope != "layer" and isinstance(sparsity, Mapping):
        raise ValueError(f"scope {scope!r} takes one sparsity for all layers, got one per group")
    for share in sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]:
        if isinstance(share, int | float) and not 0.0 <= share <= 1.0:
            raise ValueError(f"sparsity must lie in [0, 1], got {share}")
    if isinstance(energy, int | float) and not 0.0 <= energy < 1.0:
        raise ValueError(f"energy must lie in [0, 1), got {energy}")
    if isinstance(sparsity, Mapping) and not set(masks) <= set(sparsity):
        raise ValueError(f"sparsity lacks groups {sorted(set(masks) - set(sparsity))}")
    if isinstance(min_width, Mapping) and not set(masks) <= set(min_width):
        raise ValueError(f"min_width lacks groups {sorted(set(masks) - set(min_width))}")
    for width in min_width.values() if isinstance(min_width, Mapping) else [min_width]:
        if width < 0:
            raise ValueError(f"min_width must be >= 0, got {width}")
    if isinstance(multiple_of, Mapping) and not set(masks) <= set(multiple_of):
        raise ValueError(f"multiple_of lacks groups {sorted(set(masks) - set(multiple_of))}")
    for multiple in multiple_of.values() if isinstance(multiple_of, Mapping) else [multiple_of]:
        if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"multiple_of must be an integer >= 1, got {multiple}")


def _of(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) else value
