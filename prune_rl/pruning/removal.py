"""The removal itself: score the neurons of each target, remove some, refit the others, zero what was removed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.mask_schedule import Share
from prune_rl.pruning.masks import apply_masks, mask_state
from prune_rl.pruning.ranking import nan_scores, update_masks
from prune_rl.pruning.rules import PruningRules, PruningState
from prune_rl.pruning.targets import Target

Report = dict[str, dict[str, jax.Array]]


class Pruned(NamedTuple):
    """What a mask update leaves.

    Attributes:
        state: the new state.
        params: the given ones, refitted if asked, with the slices of masked neurons at 0.
        opt_state: the given one with the moments of masked neurons at 0.
        copies: the given ones, treated like params.
        report: {group name: {"width" int32[], "threshold" float32[] (the highest score removed now),
            "removed_importance" float32[] (share of the layer's present score removed now), "nan_scores" int32[]}}.
    """

    state: PruningState
    params: Params
    opt_state: Any
    copies: dict[str, Params]
    report: Report


class Bounds(NamedTuple):
    """How many neurons of a target may go, see ``update_masks``."""

    sparsity: Share | Mapping[str, Share]
    energy: Share | None = None
    at_once: float | None = None


class Networks(NamedTuple):
    """What a removal changes, target by target."""

    params: Params
    copies: dict[str, Params]
    masks: dict[str, jax.Array]
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Removal:
    """The removal of neurons at one training update; arguments as for ``mask_update``, ``state`` as it is before."""

    rules: PruningRules
    state: PruningState
    params: Params
    opt_state: Any
    importance: Scores
    copies: dict[str, Params]
    draw_inputs: Callable[[], Mapping[str, tuple[Any, ...]]] | None
    bias_of: Callable[[KeyPath], KeyPath | None]
    key: jax.Array | None

    def nothing(self) -> Pruned:
        """What no removal leaves."""
        report = _report(self.state.masks, self.state.masks, self.importance)
        return Pruned(self.state, self.params, self.opt_state, self.copies, report)

    def __call__(
        self,
        bounds: Mapping[str, Bounds],
        when: Mapping[str, jax.Array] | None = None,
        active: jax.Array | None = None,
    ) -> Pruned:
        """Remove what the bounds, by target name, allow.

        Args:
            bounds: {target name: Bounds}; other targets keep their neurons.
            when: {target name: bool[]}, for targets that may have to wait; must not be batched by ``vmap``.
            active: bool[], which may be batched; False: nothing goes. If it is False for all of a batch, the loops of
                scores and refit do not run.
        """
        inputs = self.draw_inputs() if self.draw_inputs is not None else {}
        found = Networks(self.params, dict(self.copies), dict(self.state.masks), dict(self.importance))
        for position, target in enumerate(self.rules.targets):
            if target.name not in bounds:
                continue
            key = None if self.key is None else jax.random.fold_in(self.key, position)
            remove = functools.partial(
                self._from, target, bounds[target.name], inputs.get(target.name, ()), key, active
            )
            if when is None or target.name not in when:
                found = remove(found)
            else:
                found = jax.lax.cond(when[target.name], remove, lambda networks: networks, found)
        groups = NeuronGroups(group for target in self.rules.targets for group in target.groups.values())
        return Pruned(
            self.state._replace(masks=found.masks),
            found.params,
            mask_state(groups, self.opt_state, found.params, found.masks),
            found.copies,
            _report(self.state.masks, found.masks, found.scores),
        )

    def _from(
        self,
        target: Target,
        bounds: Bounds,
        inputs: Any,
        key: jax.Array | None,
        active: jax.Array | None,
        before: Networks,
    ) -> Networks:
        """``before`` without the neurons of one target that go now."""
        groups, params, copy = target.groups, before.params, before.copies.get(target.name)
        kept = {name: self.state.masks[name] for name in groups}
        # Without a neuron there is nothing to score.
        old = kept if active is None else {name: mask & active for name, mask in kept.items()}
        scores = {name: before.scores[name] for name in groups}
        hidden = target.activations(params, inputs) if target.needs_activations else None
        if target.score is not None:
            scores = target.scores(params, hidden, old, key, self.state.neurons)
        new = update_masks(
            old,
            scores,
            bounds.sparsity,
            energy=bounds.energy,
            at_once=bounds.at_once,
            min_width=self.rules.min_width,
            scope=self.rules.scope,
            sizes=self.state.sizes,
            multiple_of=target.multiple_of,
        )
        if target.refit:
            assert hidden is not None
            params = target.refitted(params, hidden, old, new, self.bias_of)
            if copy is not None:
                copy = target.refitted(copy, target.activations(copy, inputs), old, new, self.bias_of)
        if active is not None:
            new = {name: jnp.where(active, mask, kept[name]) for name, mask in new.items()}
        copies = {} if copy is None else {target.name: apply_masks(groups, copy, new)}
        return Networks(
            apply_masks(groups, params, new),
            before.copies | copies,
            before.masks | new,
            before.scores | scores,
        )


def no_removal(masks: Masks) -> Report:
    """The report of masks bool[…, size] from which nothing goes, before there are scores; its scalars are […]."""
    report = {}
    for name, mask in masks.items():
        zero = jnp.zeros(mask.shape[:-1], jnp.float32)
        report[name] = {
            "width": jnp.sum(mask, axis=-1, dtype=jnp.int32),
            "threshold": zero,
            "removed_importance": zero,
            "nan_scores": zero.astype(jnp.int32),
        }
    return report


def _report(old: Mapping[str, jax.Array], new: Mapping[str, jax.Array], scores: Scores) -> Report:
    report = {}
    for name in old:
        removed = old[name] & ~new[name]
        score = jnp.where(jnp.isfinite(scores[name]), scores[name], 0.0).astype(jnp.float32)
        total = jnp.sum(jnp.where(old[name], score, 0.0))
        report[name] = {
            "width": jnp.sum(new[name]).astype(jnp.int32),
            "threshold": jnp.max(jnp.where(removed, score, 0.0)),
            "removed_importance": jnp.sum(jnp.where(removed, score, 0.0)) / jnp.where(total > 0, total, 1.0),
            "nan_scores": nan_scores({name: scores[name]})[name],
        }
    return report
