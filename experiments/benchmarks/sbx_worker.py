"""SBX's SAC or PPO on Hopper-v3, driven line by line by `experiments.benchmarks.against_sbx`.

Runs in the environment of sbx-requirements.txt, without prune_rl. The first line that it writes names the versions;
then each line "run N" it reads makes it train for N environment steps and write seconds, steps and gradient steps.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from importlib import metadata
from typing import Any


def make_env() -> Any:
    """The environment that prune_rl runs as Hopper-v3."""
    # By name, since the type checker's environment does not have them.
    gymnasium = importlib.import_module("gymnasium")
    spec = gymnasium.envs.registration.EnvSpec(
        id="Hopper-v3", entry_point="gymnasium.envs.mujoco.hopper_v4:HopperEnv", max_episode_steps=1000
    )
    return gymnasium.make(spec, disable_env_checker=True)


def make_model(options: argparse.Namespace) -> Any:
    """SBX's learner with its own defaults but for ``options``."""
    sbx = importlib.import_module("sbx")
    if options.algo == "sac":
        return sbx.SAC(
            "MlpPolicy",
            env=make_env(),
            policy_kwargs={"net_arch": list(options.hidden)},
            batch_size=options.batch_size,
            buffer_size=options.buffer_size,
            learning_starts=options.learning_starts,
            train_freq=1,
            gradient_steps=1,
            seed=0,
        )
    vector = importlib.import_module("stable_baselines3.common.vec_env")
    env = vector.DummyVecEnv([make_env] * options.num_envs)
    return sbx.PPO(
        "MlpPolicy",
        env=env,
        policy_kwargs={"net_arch": list(options.hidden)},
        n_steps=options.num_steps,
        batch_size=options.batch_size,
        n_epochs=options.epochs,
        seed=0,
    )


def run(model: Any, steps: int) -> dict[str, float]:
    """Train for ``steps`` more environment steps; seconds until the last update has left the device."""
    jax = importlib.import_module("jax")
    steps_before, updates_before = model.num_timesteps, model._n_updates
    started = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    states = ("actor_state", "qf_state", "vf_state")
    jax.block_until_ready([getattr(model.policy, name) for name in states if hasattr(model.policy, name)])
    return {
        "seconds": time.perf_counter() - started,
        "steps": model.num_timesteps - steps_before,
        "updates": model._n_updates - updates_before,
    }


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    names = {
        "SBX": "sbx-rl",
        "Stable-Baselines3": "stable-baselines3",
        "JAX": "jax",
        "Gymnasium": "gymnasium",
        "MuJoCo": "mujoco",
        "torch": "torch",
    }
    found = {name: metadata.version(package) for name, package in names.items()}
    device = importlib.import_module("jax").default_backend()
    return {**found, "Python": platform.python_version(), "device": device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algo", choices=("sac", "ppo"))
    parser.add_argument("--hidden", type=int, nargs="+", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True, help="steps before the first line")
    parser.add_argument("--buffer-size", type=int, default=1_000_000, help="of SAC")
    parser.add_argument("--learning-starts", type=int, default=100, help="of SAC")
    parser.add_argument("--num-envs", type=int, default=1, help="of PPO")
    parser.add_argument("--num-steps", type=int, default=2048, help="of PPO")
    parser.add_argument("--epochs", type=int, default=10, help="of PPO")
    options = parser.parse_args()
    # Libraries may print: what they print goes to stderr, so that stdout carries the replies alone.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        model = make_model(options)
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies)
        sys.exit(1)
    run(model, options.warm_up)
    print(json.dumps(versions()), file=replies)
    for line in sys.stdin:
        command, _, steps = line.strip().partition(" ")
        if command != "run":
            raise ValueError(f"the only command is 'run N', got {line!r}")
        print(json.dumps(run(model, int(steps))), file=replies)


if __name__ == "__main__":
    main()
