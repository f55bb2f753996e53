"""What a step of the environments costs for some number of seeds, on the device and on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prune_rl.bench_device.options import Options
from prune_rl.bench_device.sections import Case
from prune_rl.bench_device.steady_state import timed
from prune_rl.envs.task import resolve_task
from prune_rl.envs.vector import make_vector
from prune_rl.learners import ppo
from prune_rl.training.config import Config
from prune_rl.training.engines.device import Runner, init_runner, runner_axes
from prune_rl.training.engines.engine import init_seeds, seed_keys
from prune_rl.training.engines.host import host_functions
from prune_rl.training.engines.rollouts import host_rollout, rollout
from prune_rl.training.engines.seed_devices import SeedDevices
from prune_rl.training.presets import find_preset, load_preset

# Rollouts of one repeat.
MOST = 100


def learner_config(case: Case, options: Options) -> Any:
    """PPO's preset, without pruning, whose rollouts have ``options.rollout_steps`` steps."""
    preset = find_preset(case.env, "ppo")
    assert preset is not None
    learner: Any = load_preset(preset, Config(env=case.env)).learner
    num_envs = learner.num_envs if options.num_envs is None else options.num_envs
    changed = {"hidden": options.hidden, "prune": None, "num_minibatches": 1}  # of what is not learned
    return dataclasses.replace(learner, **changed, num_envs=num_envs, num_steps=options.rollout_steps)


def on_the_device(case: Case, options: Options) -> dict[str, Any]:
    """Seconds per step of all environments, see ``timed``; raises ``UnsupportedEnvironment`` without MJX."""
    env, config = resolve_task(case.env, "jax").jax_env(), learner_config(case, options)

    def roll(runner: Runner) -> tuple[Runner, Any]:
        key, rollout_key = jax.random.split(runner.key)
        env_state, obs, transitions = rollout(
            env, runner.state, runner.env_state, runner.obs, rollout_key, config
        )
        return runner.replace(env_state=env_state, obs=obs, key=key), transitions  # type: ignore[attr-defined]

    axes = runner_axes(config)
    compiled = jax.jit(jax.vmap(roll, in_axes=(axes,), out_axes=(axes, 0)))
    runner = init_runner(env, seed_keys(range(case.seeds)), config)

    def call(n: int) -> None:
        nonlocal runner
        for _ in range(n):
            runner, transitions = compiled(runner)
        jax.block_until_ready(transitions)  # type: ignore[no-untyped-call]

    call(1)
    return _per_step(timed(call, options, MOST), config) | {"backend": "jax"}


def on_the_host(case: Case, options: Options) -> dict[str, Any]:
    """The same with one batch of host environments per seed, as ``HostEngine`` has them; "backend" says which."""
    task, config = resolve_task(case.env), learner_config(case, options)
    if task.backend == "jax":
        task = resolve_task(case.env, "gymnasium")
    envs = [make_vector(task, config.num_envs) for _ in range(case.seeds)]
    spec = envs[0].spec
    states = init_seeds(lambda key: ppo.init(key, config, spec), seed_keys(range(case.seeds)), ppo.VMAP_AXES)
    shape = (case.seeds, config.num_steps, config.num_envs)
    noise = ppo.action_noise(jax.random.key(0), shape, spec)

    devices = SeedDevices.choose(case.seeds, jax.local_devices()[:1])
    act = host_functions(config, devices).act

    def choose(obs: np.ndarray, t: int) -> jax.Array:
        action: jax.Array = act(states, jnp.asarray(obs), noise, np.int32(t))
        return action

    obs = np.stack([env.reset(seed) for seed, env in enumerate(envs)])

    def call(n: int) -> None:
        nonlocal obs
        for _ in range(n):
            obs, _ = host_rollout(envs, choose, obs, config, False)

    call(1)
    measured = timed(call, options, MOST)
    for env in envs:
        env.close()
    return _per_step(measured, config) | {"backend": task.backend}


def _per_step(measured: dict[str, Any], config: Any) -> dict[str, Any]:
    """The same per step of the rollout, and how many environments each seed has."""
    times = {name: measured[name] / config.num_steps for name in ("seconds", "lowest", "highest")}
    return {**measured, **times, "num_envs": config.num_envs}
