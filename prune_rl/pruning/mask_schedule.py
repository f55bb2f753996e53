"""The dynamic threshold: from scores and the progress of training to masks, on the accelerator.

Four rules bound what may go (DESIGN, section 2; the dynamic threshold after Su et al. 2024): a *schedule* (share of the
neurons), an *energy* (share of the importance), a *gate* (only while training goes well) and a *floor* (least width).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Masks = dict[str, jax.Array]
Share = float | jax.Array
Scope = Literal["layer", "global"]


def cubic_sparsity(progress: jax.Array | float, final: Share) -> jax.Array:
    """``s_t = s_F (1 − (1 − p)³)`` with p clipped to [0, 1] (Zhu & Gupta 2017, section 3, from zero)."""
    remaining = 1.0 - jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    return jnp.asarray(final, jnp.float32) * (1.0 - remaining**3)


def num_removable(share: Share, size: int) -> jax.Array:
    """``⌊share · size⌋``, the neurons that a share of ``size`` neurons stands for: float32[], a whole number.

    Computed in integers, in units of 2⁻²⁴, for ``size`` below 2²⁴: a float32 product would be rounded, and differently
    with and without ``jit``. A small term covers the rounding of the share itself, so that 0.7 of 10 neurons is 7. 0
    for a share of NaN.
    """
    share = jnp.asarray(share, jnp.float32)
    units = jnp.round(share * 2.0**24).astype(jnp.uint32)
    count = jnp.uint32(256 * max(1678, (3 * size + 3) // 4))  # 1e-4, or 3/4 of a unit per neuron
    for digit in (units & 255, (units >> 8) & 255, units >> 16):
        count = (count >> 8) + digit * jnp.uint32(size)
    return jnp.where(jnp.isnan(share), 0.0, (count >> 8).astype(jnp.float32))


def target_width(size: int, sparsity: float, min_width: int) -> int:
    """Neurons left of ``size`` when a schedule that ends at ``sparsity`` is complete; ``update_masks`` ends there."""
    return size - min(int(num_removable(sparsity, size)), max(size - min_width, 0))


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
) -> Masks:
    """Remove the lowest-scored neurons, as many as every rule allows. Jittable; all shares may be traced.

    Args:
        masks: {group name: bool[size]}, True = kept.
        scores: {group name: float[size]}, non-negative. NaN keeps its neuron (count them with ``nan_scores``).
        sparsity: at most this share of the neurons of a layer is gone afterwards (``scope="global"``: of all layers
            together); a share in [0, 1), or one per group name (``scope="layer"`` only).
        energy: the removed neurons together hold at most this share of the layer's total score (of all layers'
            scores with ``scope="global"``). Neurons removed before count as holding nothing, so the bound is one per
            call. None: no such bound.
        min_width: each layer keeps at least so many neurons (or all it has, if fewer); one number or one per group.
        scope: rank within each layer, or over all layers after dividing each layer's scores by their mean over the
            neurons still there.
        gate: a boolean scalar; False leaves the masks as they are.
        regrow: False (default): a removed neuron never returns. True: masks are drawn anew from the scores.

    Ties go by index (layers by name), the lower index first, so that the count is exact. Raises ``ValueError`` for
    names or static values that do not fit.
    """
    check_options(masks, scores, sparsity, energy, min_width, scope)
    floors = {name: _of(min_width, name) for name in masks}
    if scope == "layer":
        new = {
            name: _rank_and_cut(mask, scores[name], _of(sparsity, name), energy, floors[name], regrow)
            for name, mask in masks.items()
        }
    else:
        assert not isinstance(sparsity, Mapping)
        new = _update_globally(masks, scores, sparsity, energy, floors, regrow)
    opened = jnp.asarray(gate)
    return {name: jnp.where(opened, new[name], mask) for name, mask in masks.items()}


def nan_scores(scores: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """How many scores of each group are NaN: {group name: int32[]}."""
    return {name: jnp.sum(jnp.isnan(score)).astype(jnp.int32) for name, score in scores.items()}


class Gate(NamedTuple):
    """Lets the threshold rise only while training goes well. All float32 scalars.

    ``progress`` is the share of the pruning schedule that is done: it rests while the gate is closed.
    ``reference`` is the highest running return so far; −inf until there is one.
    """

    progress: jax.Array
    reference: jax.Array

    @staticmethod
    def create() -> Gate:
        """A gate at progress 0 with no reference yet."""
        return Gate(jnp.zeros((), jnp.float32), jnp.full((), -jnp.inf, jnp.float32))


def advance_gate(
    gate: Gate, running_return: jax.Array, tolerance: Share | None, increment: jax.Array | float
) -> tuple[Gate, jax.Array]:
    """One step of the gate: (new gate, open).

    Open while ``running_return ≥ reference − δ |reference|`` with δ = ``tolerance``; None: always open. Only then does
    ``progress`` rise by ``increment`` (to at most 1). A ``running_return`` of NaN (no finished episode yet) is open and
    sets no reference. Never feed it the returns of evaluation episodes.
    """
    known = jnp.isfinite(running_return)
    reference = jnp.where(known, jnp.maximum(gate.reference, running_return), gate.reference)
    if tolerance is None:
        opened = jnp.ones((), bool)
    else:
        # |−inf| would make the bound NaN before there is a reference.
        bound = jnp.where(jnp.isfinite(reference), reference - tolerance * jnp.abs(reference), -jnp.inf)
        opened = ~known | (running_return >= bound)
    progress = jnp.where(opened, jnp.minimum(gate.progress + increment, 1.0), gate.progress)
    return Gate(progress.astype(jnp.float32), reference.astype(jnp.float32)), opened


def _rank_and_cut(
    mask: jax.Array,
    score: jax.Array,
    sparsity: Share,
    energy: Share | None,
    floor: int,
    regrow: bool,
    protected: jax.Array | None = None,
) -> jax.Array:
    """The new mask of one ranking: neurons sorted by score, the first k removed."""
    size = mask.shape[0]
    keep_always = jnp.isnan(score) if protected is None else jnp.isnan(score) | protected
    value = jnp.where(jnp.isnan(score), 0.0, score.astype(jnp.float32))
    order_by = jnp.where(keep_always, jnp.inf, value)
    if not regrow:
        order_by = jnp.where(mask, order_by, -jnp.inf)
        keep_always &= mask
    order = jnp.argsort(order_by, stable=True)
    allowed = jnp.minimum(num_removable(sparsity, size), max(size - floor, 0))
    if energy is not None:
        weight = jnp.maximum(value if regrow else jnp.where(mask, value, 0.0), 0.0)
        held = jnp.cumsum(weight[order])
        allowed = jnp.minimum(allowed, jnp.sum(held <= energy * jnp.sum(weight)))
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
    regrow: bool,
) -> Masks:
    """One ranking over all layers; each layer's best ``floor`` neurons are protected before it."""
    # jit sorts the names of a mapping; sorted here too, so that ties fall alike with and without it.
    masks = {name: masks[name] for name in sorted(masks)}
    normalised, protected = [], []
    for name, mask in masks.items():
        score = scores[name].astype(jnp.float32)
        alive = ~jnp.isnan(score) if regrow else ~jnp.isnan(score) & mask
        mean = jnp.sum(jnp.where(alive, score, 0.0)) / jnp.maximum(jnp.sum(alive), 1)
        normalised.append(score / jnp.where(mean > 0, mean, 1.0))
        floor = min(floors[name], mask.shape[0])
        best = _rank_and_cut(mask, score, 1.0, None, floor, regrow)
        protected.append(best)
    joined = _rank_and_cut(
        jnp.concatenate(list(masks.values())),
        jnp.concatenate(normalised),
        sparsity,
        energy,
        0,
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
    scope: str,
) -> None:
    """Raise ``ValueError`` for what ``update_masks`` refuses: names, shapes and static values that do not fit."""
    if not masks:
        raise ValueError("masks is empty: there is no neuron group to prune")
    for name, mask in masks.items():
        if name not in scores:
            raise ValueError(f"no scores for group {name!r}; scores has {sorted(scores)}")
        if scores[name].shape != mask.shape:
            raise ValueError(f"scores of {name!r} have shape {scores[name].shape}, its mask {mask.shape}")
    if scope not in ("layer", "global"):
        raise ValueError(f"unknown scope {scope!r}; choose 'layer' or 'global'")
    if scope == "global" and isinstance(sparsity, Mapping):
        raise ValueError("scope 'global' takes one sparsity for all layers, got one per group")
    for what, shares in (("sparsity", sparsity), ("energy", energy)):
        for share in shares.values() if isinstance(shares, Mapping) else [shares]:
            if isinstance(share, int | float) and not 0.0 <= share < 1.0:
                raise ValueError(f"{what} must lie in [0, 1), got {share}")
    if isinstance(sparsity, Mapping) and not set(masks) <= set(sparsity):
        raise ValueError(f"sparsity lacks groups {sorted(set(masks) - set(sparsity))}")
    if isinstance(min_width, Mapping) and not set(masks) <= set(min_width):
        raise ValueError(f"min_width lacks groups {sorted(set(masks) - set(min_width))}")
    for width in min_width.values() if isinstance(min_width, Mapping) else [min_width]:
        if width < 1:
            raise ValueError(f"min_width must be >= 1, got {width}")


def _of(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) else value
