"""Whole trainings on Pendulum-v1 beside RLtools', with its own configurations, in turns."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.benchmarks.options import Options
from experiments.benchmarks.our_training import WholeTraining
from experiments.benchmarks.peer import Peer
from experiments.benchmarks.table import Section, rows_of
from experiments.benchmarks.turns import Contender, Timing, take_turns
from prune_rl.learners import ppo, sac
from prune_rl.learners.registry import Config

INSTALL = "make bench RLTOOLS=1 installs it (it needs g++ or clang++)"
# PPO of RLtools' zoo: 4 environments × 1024 steps, 2 epochs of minibatches of 256.
PPO_ENVS, PPO_STEPS, PPO_BATCH, PPO_EPOCHS = 4, 1024, 256, 2
SAC_BATCH = 100


class RltoolsTraining:
    """RLtools in its process; work is 1, one whole training after compilation."""

    def __init__(self, python: Path, algo: str, settings: dict[str, float]) -> None:
        self.peer = Peer(python, "rltools_worker.py", [algo, json.dumps(settings)], INSTALL)

    def run(self) -> Timing:
        return Timing(self.peer.ask("run")["seconds"], 1.0)


def our_sac(steps: int) -> sac.Config:
    """64·64, batch 100, one gradient step per environment step after the first 100."""
    return sac.Config(
        hidden=(64, 64),
        num_envs=4,
        num_steps=25,
        batch_size=SAC_BATCH,
        learning_starts=SAC_BATCH,
        buffer_size=steps,
        learning_rate=1e-3,
        learning_rate_end=1e-3,
        total_timesteps=steps,
        prune=None,
    )


def our_ppo(updates: int) -> ppo.Config:
    """64·64, as in RLtools' zoo."""
    return ppo.Config(
        hidden=(64, 64),
        activation="relu",
        num_envs=PPO_ENVS,
        num_steps=PPO_STEPS,
        update_epochs=PPO_EPOCHS,
        num_minibatches=PPO_ENVS * PPO_STEPS // PPO_BATCH,
        learning_rate=1e-3,
        learning_rate_end=1e-3,
        gamma=0.95,
        total_timesteps=updates * PPO_ENVS * PPO_STEPS,
        prune=None,
    )


def measure(options: Options) -> list[Section]:
    """One section per learner."""
    assert options.rltools_python is not None
    steps = max(options.pendulum_steps, 3 * SAC_BATCH)
    updates = max(3, round(30 * steps / (PPO_ENVS * PPO_STEPS)))
    theirs: dict[str, dict[str, float]] = {
        "sac": {"STEP_LIMIT": steps},
        "ppo": {
            "STEP_LIMIT": updates,
            "N_ENVIRONMENTS": PPO_ENVS,
            "ON_POLICY_RUNNER_STEPS_PER_ENV": PPO_STEPS,
            "BATCH_SIZE": PPO_BATCH,
            "N_EPOCHS": PPO_EPOCHS,
            "GAMMA": 0.95,
        },
    }
    ours: dict[str, Config] = {"sac": our_sac(steps), "ppo": our_ppo(updates)}
    sections = []
    for algo, settings in theirs.items():
        config = ours[algo]
        own = WholeTraining("Pendulum-v1", "jax", config)
        other = RltoolsTraining(options.rltools_python, algo, settings)
        name = f"RLtools {other.peer.versions['RLtools']}"
        sides: dict[str, Contender] = {name: other, "prune_rl": own}
        try:
            rows = rows_of(take_turns(sides, options.repeats), name, "time")
        finally:
            own.close()
            other.peer.close()
        sections.append(
            Section(
                key=f"rltools-{algo}",
                title=f"{algo.upper()} on Pendulum-v1 beside RLtools",
                text=f"Whole trainings of {config.total_timesteps:,} steps, 64·64, RLtools' configuration, after "
                f"compilation. RLtools ({other.peer.versions['BLAS']}) steps its own Pendulum in C++, prune_rl "
                f"its own in JAX, {config.num_envs} environments × {config.num_steps} steps between updates. "
                "Ratio: time against RLtools.",
                unit="trainings/s",
                rows=tuple(rows),
                details={"peer": dict(other.peer.versions)},
            )
        )
    return sections
