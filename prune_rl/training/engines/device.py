"""The engine whose environments are on the device, inside the compiled loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from prune_rl.dependency.tree_paths import make_struct
from prune_rl.envs.autoreset import JaxEnv
from prune_rl.learners.registry import Config as LearnerConfig
from prune_rl.learners.registry import Metrics, learner_of
from prune_rl.learners.traced_numbers import with_values
from prune_rl.methods import dense as dense_method
from prune_rl.processes.group import ALONE, ProcessGroup
from prune_rl.runs.log_rows import with_equal_names
from prune_rl.training.engines.array_widths import Widths
from prune_rl.training.engines.engine import Engine, init_seeds, seed_keys
from prune_rl.training.engines.env_devices import EnvDevices
from prune_rl.training.engines.faults import fault_metrics
from prune_rl.training.engines.members import ALIKE, Members, Values
from prune_rl.training.engines.over_seeds import in_turn, over_seeds
from prune_rl.training.engines.rollouts import reset_envs, rollout
from prune_rl.training.engines.seed_devices import SeedDevices


@struct.dataclass
class Runner:
    """What a device run carries from one update to the next; leading axis S, but for ``state.step``.

    ``values``: {field: float32[S]} of the hyperparameters that differ between the members.
    """

    state: Any
    env_state: Any
    obs: jax.Array
    key: jax.Array
    values: Values = dataclasses.field(default_factory=dict)


# The axis of environments in a runner, behind that of seeds.
ENV_AXES: Any = Runner(None, 1, 1, None, None)  # type: ignore[arg-type]


def runner_axes(config: LearnerConfig) -> Any:
    """``in_axes`` of a runner."""
    return Runner(learner_of(config).VMAP_AXES, 0, 0, 0, 0)  # type: ignore[arg-type]


def init_runner(
    env: JaxEnv[Any], keys: jax.Array, config: LearnerConfig, values: Values | None = None
) -> Runner:
    """Fresh learners and device environments for keys [S]; ``values`` {field: float32[S]} as in ``Runner``."""

    def init(key: jax.Array) -> Runner:
        learner_key, reset_key, key = jax.random.split(key, 3)
        env_state, obs = reset_envs(env, reset_key, config.num_envs)
        return Runner(learner_of(config).init(learner_key, config, env.spec), env_state, obs, key)

    runner: Runner = init_seeds(init, keys, runner_axes(config))
    return runner.replace(values=values or {})  # type: ignore[attr-defined,no-any-return]


def iterate(
    env: JaxEnv[Any], runner: Runner, config: LearnerConfig, devices: EnvDevices | None = None
) -> tuple[Runner, Metrics]:
    """Rollout, update, proximal step and threshold of one seed. Pure.

    ``devices``: those that share its environments.
    """
    config = with_values(config, runner.values)
    key, rollout_key = jax.random.split(runner.key)
    env_state, obs, transitions = rollout(
        env, runner.state, runner.env_state, runner.obs, rollout_key, config, devices
    )
    if devices is not None:
        transitions = devices.gathered(transitions)
    state, metrics = learner_of(config).update(runner.state, transitions, config)
    return Runner(state, env_state, obs, key, runner.values), metrics | fault_metrics(transitions)


def make_chunk(
    env: JaxEnv[Any], config: LearnerConfig, length: int, devices: SeedDevices | EnvDevices | None = None
) -> Any:
    """A compiled function (runner, n) -> (runner, metrics [length, S]) that makes n <= ``length`` updates.

    ``n`` is traced, so that a shorter last chunk compiles nothing anew; rows of metrics from n on are zeros. The runner
    is donated. Each of the ``devices`` makes the updates of its own seeds, or steps its own environments; None: one
    device does all.
    """
    axes = runner_axes(config)
    sharing = devices if isinstance(devices, EnvDevices) else None

    def chunk(runner: Runner, n: jax.Array) -> tuple[Runner, Metrics]:
        num_seeds = runner.obs.shape[0]
        batched = over_seeds(
            lambda r: iterate(env, r, config, sharing),
            num_seeds,
            in_axes=(axes,),
            out_axes=(axes, 0),
            turns=in_turn(runner, runner.state.params),
        )
        # Inlined, it is no call in the program; its trace serves both for the shapes and for the loop's body.
        batched = jax.jit(batched, inline=True)
        shapes: Any = jax.eval_shape(batched, runner)[1]
        rows = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

        def body(i: jax.Array, carry: tuple[Runner, Any]) -> tuple[Runner, Any]:
            runner, rows = carry
            runner, metrics = batched(runner)
            return runner, jax.tree.map(lambda row, x: row.at[i].set(x), rows, metrics)

        result: tuple[Runner, Metrics] = jax.lax.fori_loop(0, n, body, (runner, rows))
        return result

    if sharing is not None:
        return sharing.jit(chunk, (ENV_AXES, None), (ENV_AXES, None), donate_argnums=0)
    return (devices or SeedDevices.choose(1)).jit(chunk, (axes, None), (axes, 1), donate_argnums=0)


class DeviceEngine(Engine[Any]):
    """Everything on the device: up to ``length`` updates in one compiled program without a host round trip.

    ``devices``: those that may share the members, by default all local ones; with ``shard_envs`` they share the
    environments of the one member there is. ``members``: what they differ in beside their seeds. ``group``: the
    processes that share them.

    Raises:
        ValueError: ``shard_envs`` with several seeds, or with environments that the devices cannot share equally.
    """

    def __init__(
        self,
        env: JaxEnv[Any],
        seeds: Sequence[int],
        config: LearnerConfig,
        length: int,
        devices: Sequence[jax.Device] | None = None,
        members: Members = ALIKE,
        group: ProcessGroup = ALONE,
        shard_envs: bool = False,
    ) -> None:
        held = group.share(len(seeds), "seeds")
        chosen: SeedDevices | EnvDevices = SeedDevices.choose(len(held), devices)
        if shard_envs:
            if len(seeds) > 1:
                raise ValueError(
                    f"shard_envs is for one seed, got {len(seeds)}, which share the devices already"
                )
            chosen = EnvDevices.choose(config.num_envs, devices)
        self._chunk = make_chunk(env, config, length, chosen)
        self._dense_chunk = make_chunk(env, dense_method.learner_config(config), length, chosen)
        self._length = length
        keys = seed_keys([seeds[member] for member in held])
        runner = init_runner(env, keys, config, members.held(held).values())
        axes = runner_axes(config)
        shared = ENV_AXES if shard_envs else axes
        super().__init__(runner, axes, config, env.spec, seeds, chosen, members.names, group, shared)

    def _advance(self, n: int) -> Metrics:
        """``n`` updates; n may exceed the chunk's length."""
        parts = []
        done, end = int(self.tree.state.step), int(self.tree.state.step) + n
        while done < end:
            chunk, dense = self._compiled(), self._is_dense
            with self.timing.measured("learning"):
                now = min(end - done, self._length, self.num_dense - done if dense else n)
                self.tree, rows = chunk(self.tree, jnp.int32(now))
                part = jax.tree.map(lambda row, now=now: np.asarray(row)[:now], rows)
                parts.append(self._without_faults(self._before_pruning(part) if dense else part, done))
            done += now
        metrics: Metrics = jax.tree.map(lambda *rows: np.concatenate(rows), *with_equal_names(parts))
        return metrics

    def _compile(self, widths: Widths, dense: bool) -> Any:
        n = make_struct((), jnp.int32)
        if not dense:
            return self._chunk.lower(self.template(widths), n).compile()
        chunk = self._dense_chunk.lower(self._part.of(self.template(widths)), n).compile()

        def within(runner: Runner, n: jax.Array) -> tuple[Runner, Metrics]:
            part, metrics = chunk(self._part.of(runner), n)
            return self._part.put(runner, part), metrics

        return within
