"""What the engines have in common: seeds side by side, arrays that get smaller, programs for each width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.dependency.groups import NeuronGroups
from prune_rl.dependency.tree_paths import leaves_by_path, make_struct, replace_leaves, shape_structs
from prune_rl.learners.mask_rules import report_before
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import Metrics, State, learner_of, masks_at_start, shrinks
from prune_rl.processes.group import ProcessGroup
from prune_rl.runs.checkpoint_parts import Part
from prune_rl.spaces import Spec
from prune_rl.training.engines.array_widths import Shrinking, Widths, next_shrinking
from prune_rl.training.engines.dense_part import DensePart, dense_state, num_dense_updates
from prune_rl.training.engines.faults import Faults
from prune_rl.training.engines.over_seeds import map_with_axes
from prune_rl.training.engines.programs import Programs
from prune_rl.training.engines.seed_devices import DeviceAxis
from prune_rl.training.engines.shared import blank, gather_faults, gather_updates
from prune_rl.training.engines.timing import Timing

Compiled = TypeVar("Compiled")


class Engine(Generic[Compiled]):
    """Advances the training of S seeds; a subclass says with which programs.

    Where several processes share the seeds, each has an engine that trains its own. Arrays, programs and environments
    are of these; metrics, masks and faults of all.

    Attributes:
        tree: everything that training changes, all arrays: save it, or assign one that was saved, on any devices.
        held: which of the seeds this process owns: all of them, if it is alone.
        devices: those that share the seeds, or the environments of one seed.
        spec: what the learner knows of the environment.
        faults: the seeds whose environment or training broke, see ``Faults``.
        timing: where the time went.
        num_dense: updates at the start in which a pruned run is its dense control; 0 in other runs.
    """

    def __init__(
        self,
        tree: Any,
        axes: Any,
        config: LearnerConfig,
        spec: Spec,
        seeds: Sequence[int],
        devices: DeviceAxis,
        names: Sequence[str],
        group: ProcessGroup,
        shared: Any = None,
    ) -> None:
        """``axes``: a prefix of ``tree``, the seed axis of each leaf or None; ``seeds`` of all processes.

        ``names`` as in ``Faults``. ``shared``: as ``axes``, of the axis that the devices share, by default
        that of seeds.
        """
        self.held = group.share(len(seeds), "seeds")
        self._group = group
        self.devices, self._axes = devices, axes
        self._shared_axes = axes if shared is None else shared
        self.tree = tree
        self.spec = spec
        self.faults = self._own_faults = Faults(seeds, config, spec, names)
        if group.size > 1:
            own = slice(self.held.start, self.held.stop)
            self._own_faults = Faults(seeds[own], config, spec, names[own])
        self._all_masks: dict[str, Any] | None = None
        self._filled = self._own_faults.frozen
        self.timing = Timing()
        self._config = config
        self._full = shape_structs(tree, "the state")
        self._templates: dict[frozenset[tuple[str, int]], Any] = {}
        self._programs = Programs(self._compile)
        self.num_dense = num_dense_updates(config, tree.state)
        if self.num_dense:
            dense = dense_state(config, spec)
            self._part = DensePart(tree, tree.replace(state=dense))
            self._state_part = DensePart(tree.state, dense)
        self._report: Metrics | None = None

    @property
    def tree(self) -> Any:
        """See ``Engine``."""
        return self._tree

    @tree.setter
    def tree(self, tree: Any) -> None:
        self._tree = self.devices.place(tree, self._shared_axes)

    @property
    def state(self) -> State:
        """The learners' part of the tree, with a leading seed axis on all but ``step``."""
        state: State = self.tree.state
        return state

    @property
    def widths(self) -> dict[str, int]:
        """{group name: neurons in the arrays}, of the groups that may be pruned."""
        return {name: int(mask.shape[-1]) for name, mask in self.state.masks.items()}

    @property
    def masks(self) -> dict[str, Any]:
        """{group name: bool[S, size]} over the neurons that there were at the start, NumPy."""
        return masks_at_start(self.state) if self._all_masks is None else self._all_masks

    def advance(self, n: int) -> Metrics:
        """Make ``n`` updates and return their metrics, NumPy arrays [n, S]; checkpoints are saved between two calls."""
        if self._group.size == 1:
            return self._advance(n)
        # Those that were restored.
        for fault, member in zip(self.faults.found, self.faults.members, strict=True):
            if member in self.held:
                self._own_faults.add(fault, member - self.held.start)
        metrics = self._advance(n)
        for fault, member in zip(self._own_faults.found, self._own_faults.members, strict=True):
            self.faults.add(fault, self.held.start + member)
        metrics, self._all_masks = gather_updates(self._group, metrics, masks_at_start(self.state))
        self.gather_faults()
        return metrics

    def _advance(self, n: int) -> Metrics:
        """``advance`` for the own seeds."""
        raise NotImplementedError

    def gather_faults(self) -> None:
        """Exchange what processes added to ``faults`` since the last update."""
        gather_faults(self._group, self.faults)

    @property
    def part(self) -> Part | None:
        """What this process holds of a checkpoint of ``tree``; None if all."""
        return None if self._group.size == 1 else Part(self._group, self._shared_leaves)

    @property
    def dense_part(self) -> Part | None:
        """The same for ``dense_tree``."""
        return None if self._group.size == 1 else Part(self._group, self._part.of(self._shared_leaves))

    @property
    def _shared_leaves(self) -> Any:
        """A tree of bools: which leaves are the same for all seeds."""
        return map_with_axes(lambda axis, x: False, self._axes, self._full, shared=lambda x: True)

    def close(self) -> None:
        """Free what the engine holds."""
        self._programs.close()

    def template(self, widths: Widths) -> Any:
        """The shapes of a tree whose arrays have these widths, which ``Checkpoints.restore`` needs."""
        if not self.shrinkable:
            return self._full
        key = frozenset(widths.items())
        if key not in self._templates:
            shrink = partial(shrink_tree, widths=dict(widths), config=self._config)
            self._templates[key] = jax.eval_shape(shrink, self._full)
        return self._templates[key]

    def shrink(self) -> bool:
        """Gather the neurons that are left into smaller arrays if that is worth it; returns whether it was.

        Call it between two calls of ``advance``, before the first one and at the points that ``check_every`` gives. All
        seeds share the widths. What the next shrinking will need is compiled ahead.
        """
        if self._is_dense:
            self._programs.ahead(self.widths, dense=False)
        upcoming = self._next_shrinking()
        now = upcoming is not None and upcoming.update == int(self.state.step)
        if upcoming is not None and now:
            with self.timing.measured("shrinking"):
                self.tree = self._shrunk(upcoming.widths)
            upcoming = self._next_shrinking()
        if upcoming is not None:
            self._programs.ahead(upcoming.widths, dense=False)
        return now

    @property
    def groups(self) -> NeuronGroups:
        """The groups that may be pruned, as large as the arrays are now."""
        params = jax.tree.map(lambda x: make_struct(x.shape[1:], x.dtype), self.state.params)
        return learner_of(self._config).prunable_groups(params, self._config)

    def _next_shrinking(self) -> Shrinking | None:
        if not self.shrinkable:
            return None
        state: Any = self.state
        sizes = {name: int(np.max(size)) for name, size in state.pruning.sizes.items()}
        kept = {name: int(np.asarray(mask).sum(-1).max()) for name, mask in state.pruning.needed.items()}
        params = jax.tree.map(lambda x: make_struct(x.shape[1:], x.dtype), state.params)
        # A seed has the widths that it has where one process trains all.
        kept, num_seeds = self._group.largest("widths", kept), len(self.faults.frozen)
        return next_shrinking(self._config, self.groups, params, kept, sizes, int(state.step), num_seeds)

    @property
    def shrinkable(self) -> bool:
        """Whether the arrays of this run get smaller."""
        prune = self._config.prune
        return (
            prune is not None and prune.shrink != "never" and shrinks(self._config) and bool(self.state.masks)
        )

    def _without_faults(self, metrics: Metrics, done: int) -> Metrics:
        """The metrics [n, S] of the updates after ``done``, NaN for frozen seeds, whose places healthy seeds fill."""
        metrics = self._own_faults.look_at_metrics(metrics, done)
        frozen, filled = self._own_faults.frozen, self._filled
        if self._group.size > 1 and frozen.all() and not filled.all():
            self.tree, self._filled = blank(self.tree), frozen
        elif (frozen != filled).any() and not frozen.all():
            rows = np.flatnonzero(frozen & ~filled)
            healthy = np.full_like(rows, np.argmin(frozen))
            self.tree = jax.tree.map(lambda x: x.at[rows].set(x[healthy]) if x.ndim else x, self.tree)
            self._filled = frozen
        return metrics

    @property
    def dense_tree(self) -> Any:
        """The part of the tree that the dense control has, too; of a pruned run whose ``num_dense`` is not 0."""
        return self._part.of(self.tree)

    @property
    def _is_dense(self) -> bool:
        """Whether the next update of this pruned run is that of its dense control."""
        return int(self.state.step) < self.num_dense

    def _before_pruning(self, metrics: Metrics) -> Metrics:
        """The metrics [n, S] of dense updates with what a pruned run reports."""
        if self._report is None:  # it stays the same until neurons may go
            state: Any = self.state
            self._report = jax.tree.map(np.asarray, report_before(state.pruning))
        n = len(metrics["return"])
        report: Metrics = jax.tree.map(lambda x: np.repeat(x[None], n, axis=0), self._report)
        return metrics | report

    def _compile(self, widths: Widths, dense: bool) -> Compiled:
        """The programs for arrays of these widths; ``dense``: for the dense control's part of the tree.

        May run in another thread.
        """
        raise NotImplementedError

    def _compiled(self) -> Compiled:
        """The programs for the present arrays."""
        with self.timing.measured("compiling"):
            return self._programs.get(self.widths, self._is_dense)

    def _shrunk(self, widths: Widths) -> Any:
        """The tree in smaller arrays. NumPy gathers them, which has nothing to compile.

        What keeps its shape, such as a replay buffer, is not copied.
        """
        learner: Any = learner_of(self._config)
        smaller, old = self.template(widths), leaves_by_path(self.tree)
        wanted = leaves_by_path(smaller)
        changed = {path: np.asarray(leaf) for path, leaf in old.items() if leaf.shape != wanted[path].shape}
        seeds = []
        for seed in range(len(next(iter(self.state.masks.values())))):
            mine = {
                path: changed[path][seed] if path in changed else make_struct(leaf.shape[1:], leaf.dtype)
                for path, leaf in old.items()
            }
            tree = replace_leaves(self.tree, cast(Any, mine))
            seeds.append(leaves_by_path(tree.replace(state=learner.shrink(tree.state, widths, self._config))))
        new = {path: jnp.asarray(np.stack([seed[path] for seed in seeds])) for path in changed}
        return replace_leaves(smaller, {**old, **new})


def shrink_tree(tree: Any, *, widths: Widths, config: LearnerConfig) -> Any:
    """An engine's tree with smaller arrays, for each of its seeds. Pure."""
    learner: Any = learner_of(config)
    axes = learner.VMAP_AXES
    shrink: Any = jax.vmap(
        lambda state: learner.shrink(state, widths, config), in_axes=(axes,), out_axes=axes
    )
    return tree.replace(state=shrink(tree.state))


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """One key per seed [S]: a seed's stream does not depend on which other seeds run beside it."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def init_seeds(init: Callable[[jax.Array], Any], keys: jax.Array, axes: Any) -> Any:
    """``init`` of every key [S], stacked as ``axes`` says, in which None stands for what all seeds share.

    One after the other, not by ``jax.vmap``: initial weights need QR decompositions, and the batched LAPACK call waits
    for the thread pool that it runs in, on a machine with few cores for ever.
    """
    compiled = jax.jit(init)
    trees: list[Any] = [cast(Any, jax.block_until_ready)(compiled(key)) for key in keys]
    each = jax.tree.broadcast(axes, trees[0], is_leaf=lambda axis: axis is None)

    # One program, not one for every shape of a leaf.
    @jax.jit
    def stacked(*trees: Any) -> Any:
        return jax.tree.map(
            lambda axis, *leaves: leaves[0] if axis is None else jnp.stack(leaves),
            each,
            *trees,
            is_leaf=lambda axis: axis is None,
        )

    return stacked(*trees)
