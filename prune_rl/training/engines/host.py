"""The engine whose environments are on the host."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from prune_rl.dependency.tree_paths import make_struct
from prune_rl.envs.vector import VectorEnv
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import Metrics, learner_of
from prune_rl.learners.rollout import Rollout
from prune_rl.learners.traced_numbers import with_values
from prune_rl.methods import dense as dense_method
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.runs.log_rows import with_equal_names
from prune_rl.training.engines.array_widths import Widths
from prune_rl.training.engines.engine import Engine, init_seeds, seed_keys
from prune_rl.training.engines.members import ALIKE, Members, Values
from prune_rl.training.engines.over_seeds import over_seeds
from prune_rl.training.engines.rollouts import host_rollout
from prune_rl.training.engines.seed_devices import SeedDevices


@struct.dataclass
class Learners:
    """What a host run carries from one update to the next: learners and keys, leading axis S. No environment.

    ``values`` as in ``Runner``.
    """

    state: Any
    key: jax.Array
    values: Values = dataclasses.field(default_factory=dict)


class HostPrograms(NamedTuple):
    """``act`` of one step, and ``update`` on a rollout."""

    act: Any
    update: Any


class HostEngine(Engine[HostPrograms]):
    """Environments on the host, one batch of ``config.num_envs`` per seed; the learners of all seeds in one program.

    The state of a host environment cannot be saved. So every ``reset_every`` updates all environments are reset with a
    seed derived from the run's seed and the update, and the episodes under way are truncated. A checkpoint taken at
    such an update therefore continues exactly as the uninterrupted run.

    The environments of a seed with a fault are not stepped any more, see ``Faults``.

    If the configuration ``acts_ahead``, the rollout after an update is made while the update runs, with the state of
    before it, unless the environments are reset in between.

    ``devices``, ``members`` and ``group`` as in ``DeviceEngine``.
    """

    def __init__(
        self,
        make_envs: Callable[[], VectorEnv],
        seeds: Sequence[int],
        config: LearnerConfig,
        reset_every: int,
        devices: Sequence[jax.Device] | None = None,
        members: Members = ALIKE,
        group: ProcessGroup = ALONE,
    ) -> None:
        held = group.share(len(seeds), "seeds")
        self._seeds, self._reset_every = [seeds[member] for member in held], reset_every
        self._envs = [make_envs() for _ in held]
        self._obs: np.ndarray | None = None
        self._ahead: tuple[jax.Array, Rollout] | None = None
        spec, learner = self._envs[0].spec, learner_of(config)

        def init(key: jax.Array) -> Learners:
            learner_key, key = jax.random.split(key)
            return Learners(learner.init(learner_key, config, spec), key)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            key, noise_key = jax.random.split(key)
            return key, learner.action_noise(noise_key, (config.num_steps, config.num_envs), spec)

        def copy(state: Any) -> Any:
            # A copy, since an update is given the state's memory.
            return jax.tree.map(jnp.copy, cast(Any, learner).acting(state))

        axes: Any = Learners(learner.VMAP_AXES, 0, 0)  # type: ignore[arg-type]
        chosen = SeedDevices.choose(len(held), devices)
        self._draw = chosen.jit(jax.vmap(draw), (0,), 0)
        self._acting = chosen.jit(copy, (learner.VMAP_AXES,), learner.VMAP_AXES)
        self._jitted = host_functions(config, chosen)
        self._dense_jitted = host_functions(dense_method.learner_config(config), chosen)
        learners = init_seeds(init, seed_keys(self._seeds), axes)
        learners = learners.replace(values=members.held(held).values())
        super().__init__(learners, axes, config, spec, seeds, chosen, members.names, group)

    def _advance(self, n: int) -> Metrics:
        """``n`` updates, each on a fresh rollout."""
        parts = []
        for _ in range(n):
            programs, dense = self._compiled(), self._is_dense
            with self.timing.measured("stepping"):
                done = int(self.tree.state.step)
                if self._ahead is None:
                    state, drawn = self.tree.state, self._draw(self.tree.key)
                    self._ahead = self._rollout(programs.act, self._acting_part(state), drawn, done)
                (key, transitions), self._ahead = self._ahead, None
                acts_ahead = self._acts_ahead(done + 1)
                if acts_ahead:
                    # Before the update, which is given the memory of both.
                    acting, drawn = self._acting(self.tree.state), self._draw(key)
            with self.timing.measured("learning"):
                self.tree, metrics = programs.update(self.tree.replace(key=key), transitions)
            if acts_ahead:
                with self.timing.measured("stepping"):
                    self._ahead = self._rollout(programs.act, acting, drawn, done + 1)
            with self.timing.measured("learning"):
                row = jax.tree.map(lambda x: np.asarray(x)[None], metrics)
                parts.append(self._without_faults(self._before_pruning(row) if dense else row, done))
        stacked: Metrics = jax.tree.map(lambda *rows: np.concatenate(rows), *with_equal_names(parts))
        return stacked

    def close(self) -> None:
        """Close every environment."""
        super().close()
        for env in self._envs:
            env.close()

    def _acts_ahead(self, done: int) -> bool:
        """Whether the rollout after ``done`` updates is made while the last of them runs."""
        config = self._config
        return config.acts_ahead and done % self._reset_every != 0 and done < config.num_updates

    def _acting_part(self, state: Any) -> Any:
        return self._acting(state) if self._config.acts_ahead else state

    def _rollout(
        self, act: Any, state: Any, drawn: tuple[jax.Array, jax.Array], done: int
    ) -> tuple[jax.Array, Rollout]:
        """The keys to go on with, and the rollout after ``done`` updates; environments are reset where it is time."""
        key, noise = drawn
        if done % self._reset_every == 0 or self._obs is None:
            lead = (len(self._seeds), self._config.num_envs)
            self._obs = np.zeros((*lead, self._envs[0].spec.observation_size), np.float32)
            for index in np.flatnonzero(~self._own_faults.frozen).tolist():
                self._obs[index] = self._envs[index].reset(derived_seed(self._seeds[index], done))

        def choose(obs: np.ndarray, t: int) -> jax.Array:
            action: jax.Array = act(state, obs, noise, np.int32(t))
            return action

        cut = (done + 1) % self._reset_every == 0
        frozen = self._own_faults.frozen
        self._obs, transitions = host_rollout(self._envs, choose, self._obs, self._config, cut, frozen)
        for index in np.flatnonzero(~frozen).tolist():
            mine: Rollout = jax.tree.map(operator.itemgetter(index), transitions)
            if self._own_faults.look_at_rollout(index, mine, done):
                for array in (self._obs, *jax.tree.leaves(transitions)):
                    array[index] = 0
        return key, transitions

    def _compile(self, widths: Widths, dense: bool) -> HostPrograms:
        learners = self.template(widths)
        functions = self._jitted
        if dense:
            learners, functions = self._part.of(learners), self._dense_jitted
        config, spec, seeds = self._config, self._envs[0].spec, len(self._seeds)
        observed = (seeds, config.num_envs, spec.observation_size)
        _, noise = jax.eval_shape(self._draw, learners.key)
        obs, t = make_struct(observed, jnp.float32), make_struct((), jnp.int32)
        state = learners.state
        if config.acts_ahead:
            state = jax.eval_shape(self._acting, state)
        act = functions.act.lower(state, obs, noise, t)
        action = act.out_info

        def rows(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
            return make_struct((seeds, config.num_steps, *shape), dtype)

        envs, cut = (config.num_envs,), cast(Any, make_struct((seeds,), bool))
        seen, number, flag = rows(observed[1:]), rows(envs), rows(envs, bool)
        rollout = Rollout(seen, rows(action.shape[1:], action.dtype), number, flag, flag, seen, cut)
        compiled = HostPrograms(act.compile(), functions.update.lower(learners, rollout).compile())
        return self._on_dense_part(compiled) if dense else compiled

    def _on_dense_part(self, programs: HostPrograms) -> HostPrograms:
        """Programs of the dense control, for the tree of the pruned run."""

        def act(state: Any, *rest: Any) -> Any:
            # What acts ahead is the same part of either state.
            return programs.act(state if self._config.acts_ahead else self._state_part.of(state), *rest)

        def update(learners: Learners, transitions: Rollout) -> tuple[Learners, Metrics]:
            part, metrics = programs.update(self._part.of(learners), transitions)
            return self._part.put(learners, part), metrics

        return HostPrograms(act, update)


def host_functions(config: LearnerConfig, devices: SeedDevices) -> HostPrograms:
    """``act`` (states, obs, noise, t) and ``update`` (learners, rollouts) of all seeds, to be compiled."""
    learner = learner_of(config)

    def act(state: Any, obs: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        return learner.act(state, obs, noise[t], config)

    def update(learners: Learners, transitions: Rollout) -> tuple[Learners, Metrics]:
        values = with_values(config, learners.values)
        state, metrics = learner.update(learners.state, transitions, values)
        return Learners(state, learners.key, learners.values), metrics

    axes: Any = Learners(learner.VMAP_AXES, 0, 0)  # type: ignore[arg-type]
    acting, number = (learner.VMAP_AXES, 0, 0, None), devices.seeds_each
    return HostPrograms(
        act=devices.jit(over_seeds(act, number, in_axes=acting), acting, 0),
        update=devices.jit(
            over_seeds(update, number, in_axes=(axes, 0), out_axes=(axes, 0)),
            (axes, 0),
            (axes, 0),
            donate_argnums=0,
        ),
    )


def derived_seed(seed: int, update: int) -> int:
    """A seed in [0, 2³²) that no other (seed, update) is likely to share."""
    return int(np.random.SeedSequence([seed, update]).generate_state(1)[0])
