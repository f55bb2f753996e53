"""The neurons that one ranking is over, and what a mask update computes from their network's activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prune_rl.dependency.activations import activations
from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import KeyPath, Masks, Params
from prune_rl.pruning.brain_surgeon import Activations, refit
from prune_rl.pruning.importance import Scores
from prune_rl.pruning.mask_schedule import MaskSchedule, Share
from prune_rl.pruning.scores import score_named


class Ensemble(NamedTuple):
    """Members of one architecture whose params are stacked, and which lose the same neurons.

    Attributes:
        member_groups: the neuron groups of one member, with the names of the target's groups.
        in_axes: of the params, as for ``jax.vmap``: the leaves of the members on their leading axis, others None.
    """

    member_groups: NeuronGroups
    in_axes: Any


@dataclasses.dataclass(frozen=True)
class Target:
    """Neurons that are ranked together, and how.

    Attributes:
        name: such as "actor".
        groups: the neuron groups.
        sparsity: share of the neurons of a layer that is gone when the schedule is complete, in [0, 1]; a number, a
            traced scalar, or one per group name.
        score: a name in ``SCORES``, computed when it is needed; None: the tracked importance.
        refit: move what removed neurons contributed to the outgoing weights of the others, by least squares.
        network: the function ``(params, *inputs)`` whose neurons these are; only scores from activations, and the
            refit, need it. Of an ensemble: that of one member. None: the inputs are the activations themselves, as a
            tuple of one mapping.
        schedule: when these neurons go, within that of the rules; None: like it.
        follows: whether these neurons follow the dynamic threshold of the rules, if there is one; else they go by the
            schedule.
        ensemble: set where the network is one. Scores from activations are summed over the members, and each member
            has a least-squares problem of its own.
    """

    name: str
    groups: NeuronGroups
    sparsity: Share | Mapping[str, Share]
    score: str | None = None
    refit: bool = False
    network: Callable[..., Any] | None = None
    schedule: MaskSchedule | None = None
    follows: bool = True
    ensemble: Ensemble | None = None
    multiple_of: int | Mapping[str, int] = 1

    @property
    def scores_activations(self) -> bool:
        """Whether the score is computed from activations."""
        return self.score is not None and "activations" in score_named(self.score).needs

    @property
    def needs_activations(self) -> bool:
        """Whether the mask update looks at activations."""
        return self.refit or self.scores_activations

    def activations(self, params: Params, inputs: tuple[Any, ...]) -> dict[str, jax.Array]:
        """{group name: float[…, size]}; of an ensemble with a leading axis for the members."""
        network = self.network
        if network is None:
            (handed,) = inputs
            return dict(handed)
        if self.ensemble is None:
            return activations(network, self.groups, params, *inputs)
        groups, in_axes = self.ensemble
        hidden: dict[str, jax.Array] = jax.vmap(
            lambda member: activations(network, groups, member, *inputs), in_axes=(in_axes,)
        )(params)
        return hidden

    def scores(
        self, params: Params, hidden: Activations | None, masks: Masks, key: jax.Array | None, neurons: Scores
    ) -> Scores:
        """{group name: float[size]} by ``score``, which is not None.

        ``hidden`` from ``activations`` where the score needs them; ``neurons``: {group name: int32[size]}, which
        neuron each one was before the arrays got smaller.
        """
        assert self.score is not None
        function, _, takes_neurons = score_named(self.score)
        more: dict[str, Any] = {"neurons": neurons} if takes_neurons else {}
        more |= {"masks": masks, "key": key}
        if self.ensemble is None or not self.scores_activations:
            return function(self.groups, params, None, activations=hidden, **more)
        groups, in_axes = self.ensemble
        each = jax.vmap(
            lambda member, hidden: function(groups, member, None, activations=hidden, **more),
            in_axes=(in_axes, 0),
        )(params, hidden)
        summed: Scores = jax.tree.map(lambda score: jnp.sum(score, axis=0), each)
        return summed

    def refitted(
        self,
        params: Params,
        hidden: Activations,
        old: Masks,
        new: Masks,
        bias_of: Callable[[KeyPath], KeyPath | None],
    ) -> Params:
        """``params`` in which the neurons of ``new`` take over from those that only ``old`` keeps, see ``refit``."""
        if self.ensemble is None:
            return refit(self.groups, params, hidden, old, new, bias_of=bias_of)
        groups, in_axes = self.ensemble
        return jax.vmap(
            lambda member, hidden: refit(groups, member, hidden, old, new, bias_of=bias_of),
            in_axes=(in_axes, 0),
            out_axes=in_axes,
        )(params, hidden)
