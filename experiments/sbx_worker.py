"""SBX's SAC on Hopper, timed on request: the peer's side of `bench_sac.py`, run by the Python that has sbx-rl.

One JSON object per line on stdout. First, after the warm-up, the versions; then for every line ``run N`` on stdin
``{"seconds", "steps", "updates"}`` of N environment steps, counted by SBX itself. The end of stdin ends it. Where
sbx-rl cannot be imported, the only line is ``{"error"}``.
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


def make_model(options: argparse.Namespace) -> Any:
    """SBX's SAC with its own defaults but for ``options``, in the environment that prune_rl runs as Hopper-v3."""
    # By name, since the type checker's environment does not have them.
    gymnasium = importlib.import_module("gymnasium")
    sbx = importlib.import_module("sbx")
    spec = gymnasium.envs.registration.EnvSpec(
        id="Hopper-v3", entry_point="gymnasium.envs.mujoco.hopper_v4:HopperEnv", max_episode_steps=1000
    )
    return sbx.SAC(
        "MlpPolicy",
        env=gymnasium.make(spec, disable_env_checker=True),
        policy_kwargs={"net_arch": list(options.hidden)},
        batch_size=options.batch_size,
        buffer_size=options.buffer_size,
        learning_starts=options.learning_starts,
        train_freq=options.every,
        gradient_steps=options.every,
        seed=0,
    )


def run(model: Any, steps: int) -> dict[str, float]:
    """Train for ``steps`` more environment steps; seconds until the last update has left the device."""
    jax = importlib.import_module("jax")
    steps_before, updates_before = model.num_timesteps, model._n_updates
    started = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    jax.block_until_ready((model.policy.actor_state, model.policy.qf_state, model.ent_coef_state))
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
    parser.add_argument("--hidden", type=int, nargs="+", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--buffer-size", type=int, required=True)
    parser.add_argument("--learning-starts", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True, help="steps before the first line")
    parser.add_argument("--every", type=int, default=1, help="steps, then as many updates in one call")
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
