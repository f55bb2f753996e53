"""What bounds the removal of neurons, and what pruning carries from one training update to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Params
from prune_rl.pruning.dynamic_threshold import DynamicThreshold, ThresholdState, init_threshold
from prune_rl.pruning.gate import NO_PERFORMANCE
from prune_rl.pruning.mask_schedule import MaskSchedule, Share
from prune_rl.pruning.masks import init_masks
from prune_rl.pruning.ranking import Scope, check_options
from prune_rl.pruning.targets import Target


class PruningState(NamedTuple):
    """What pruning carries from one training update to the next; every leaf is an array.

    Attributes:
        masks: {group name: bool[size]}, True: kept.
        updates: int32[], mask updates made; due ones that a closed gate held back do not count.
        reference: float32[], the highest performance at any training update so far, −inf before the first.
        neurons: {group name: int32[size]}, which neuron each one was before ``shrink`` made the arrays smaller.
        sizes: {group name: int32[]}, how many there were before: what the sparsity is a share of.
        threshold: of the dynamic threshold; () where there is none.
    """

    masks: dict[str, jax.Array]
    updates: jax.Array
    reference: jax.Array
    neurons: dict[str, jax.Array]
    sizes: dict[str, jax.Array]
    threshold: ThresholdState | tuple[()] = ()

    @property
    def needed(self) -> dict[str, jax.Array]:
        """{group name: bool[size]}: the neurons that are kept, or that may return."""
        if not isinstance(self.threshold, ThresholdState):
            return self.masks
        good = self.threshold.good_masks
        # Shapes stand for masks whose arrays keep their size.
        return {
            name: mask | good[name] if name in good and not isinstance(mask, jax.ShapeDtypeStruct) else mask
            for name, mask in self.masks.items()
        }


@dataclasses.dataclass(frozen=True)
class PruningRules:
    """What bounds the removal of neurons.

    Attributes:
        schedule: when mask updates are due, and how far the sparsity may rise at each.
        targets: the neurons; each target is ranked by itself.
        gate: tolerance δ of the gate, see ``gate_is_open``; None: always open.
        energy: see ``update_masks``.
        min_width: see ``update_masks``.
        scope: see ``update_masks``.
        dynamic: the dynamic threshold; None: there is none. Of the targets that follow it, neurons go while the
            schedule lasts, whatever share of it is done; their ``sparsity`` is a bound. Gate and energy are not used.
        restored: which params return, by path, when a removal is taken back.
    """

    schedule: MaskSchedule
    targets: tuple[Target, ...]
    gate: Share | None = None
    energy: Share | None = None
    min_width: int | Mapping[str, int] = 1
    scope: Scope = "layer"
    dynamic: DynamicThreshold | None = None
    restored: Callable[[KeyPath], bool] = lambda path: True

    @property
    def following(self) -> tuple[Target, ...]:
        """The targets whose neurons the dynamic threshold removes."""
        return () if self.dynamic is None else tuple(target for target in self.targets if target.follows)

    @property
    def scheduled(self) -> tuple[Target, ...]:
        """The targets whose neurons go by the schedule."""
        return tuple(target for target in self.targets if self.dynamic is None or not target.follows)

    def progress(self, target: Target, made: jax.Array) -> jax.Array:
        """Share of a target's schedule that is done after ``made`` (int32[]) mask updates: float32[] in [0, 1]."""
        if target.schedule is None:
            return self.schedule.progress(made)
        return target.schedule.progress(target.schedule.made_within(self.schedule, made))

    def good(self, params: Params) -> Params:
        """``params`` with None for the leaves that a removal taken back does not restore."""
        return jax.tree_util.tree_map_with_path(lambda path, x: x if self.restored(path) else None, params)

    def check(self) -> None:
        """Raise ``ValueError`` for values that cannot work, before anything is traced."""
        for target in self.targets:
            masks = init_masks(target.groups)
            check_options(masks, masks, target.sparsity, self.energy, self.min_width, self.scope)
        if isinstance(self.gate, int | float) and not 0.0 <= self.gate < float("inf"):
            raise ValueError(f"gate must be a finite number >= 0, got {self.gate}")
        if self.dynamic is not None:
            self.dynamic.check()
            for name, value in (("gate", self.gate), ("energy", self.energy)):
                if value is not None:
                    raise ValueError(
                        f"{name} = {value} and a dynamic threshold exclude each other: the threshold decides how many "
                        "neurons go, and when"
                    )
            if self.scope == "global":
                raise ValueError("a dynamic threshold ranks within each layer: choose scope 'layer'")


def init_pruning(
    groups: NeuronGroups, rules: PruningRules | None = None, params: Params | None = None
) -> PruningState:
    """The state before the first training update: nothing is masked.

    ``rules`` and ``params`` are needed where the rules have a dynamic threshold.
    """
    masks = init_masks(groups)
    threshold: ThresholdState | tuple[()] = ()
    if rules is not None and rules.dynamic is not None:
        follows = {name: masks[name] for target in rules.following for name in target.groups}
        # Copies: an array that a state holds twice cannot be donated.
        threshold = init_threshold(rules.dynamic, *jax.tree.map(jnp.copy, (follows, rules.good(params))))
    return PruningState(
        masks=masks,
        updates=jnp.zeros((), jnp.int32),
        reference=jnp.full((), NO_PERFORMANCE, jnp.float32),
        neurons={name: jnp.arange(group.size, dtype=jnp.int32) for name, group in groups.items()},
        sizes={name: jnp.int32(group.size) for name, group in groups.items()},
        threshold=threshold,
    )
