"""SAC and PPO on Hopper-v3 beside SBX, the JAX learners of Stable-Baselines3's authors, in turns.

Both sides do what a training does, environment included, and only one of them is active at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from experiments.benchmarks.options import Options
from experiments.benchmarks.our_training import Training
from experiments.benchmarks.peer import Peer
from experiments.benchmarks.table import Section, rows_of
from experiments.benchmarks.turns import Contender, Timing, take_turns
from prune_rl.envs.registry import envpool_installed
from prune_rl.learners import ppo, sac
from prune_rl.learners.registry import Config

INSTALL = "make bench SBX=1 installs it, or give --sbx-python a Python with experiments/benchmarks/sbx-requirements.txt"
SAC_BATCH, LEARNING_STARTS, WARM_UP = 256, 256, 1024
PPO_ENVS, PPO_STEPS, PPO_BATCH, PPO_EPOCHS = 8, 256, 64, 10


class SbxTraining:
    """SBX in its process, warmed up; it goes on from repeat to repeat."""

    def __init__(self, python: Path, algo: str, arguments: Sequence[object], steps: int) -> None:
        self.peer = Peer(python, "sbx_worker.py", [algo, *map(str, arguments)], INSTALL)
        self._steps = steps
        device = jax.default_backend()
        if self.peer.versions["device"] != device:
            raise SystemExit(
                f"JAX runs on {device} here and on {self.peer.versions['device']} for SBX: "
                "set JAX_PLATFORMS=cpu, or install the same JAX for both"
            )

    def run(self) -> Timing:
        """Environment steps and their seconds; SAC makes as many gradient steps on both sides."""
        reply = self.peer.ask(f"run {self._steps}")
        self.last_gradient_steps = reply["updates"]
        return Timing(reply["seconds"], reply["steps"])


def sac_settings(width: int) -> sac.Config:
    """One gradient step per environment step, batch 256."""
    return sac.Config(
        hidden=(width, width),
        batch_size=SAC_BATCH,
        utd_ratio=1.0,
        num_envs=8,
        num_steps=8,
        learning_starts=LEARNING_STARTS,
        buffer_size=1_000_000,
        total_timesteps=1_000_000,
        prune=None,
    )


def ppo_settings(width: int) -> ppo.Config:
    """2048 steps per update, 10 epochs of minibatches of 64: the defaults of Stable-Baselines3, with 8 environments."""
    return ppo.Config(
        hidden=(width, width),
        num_envs=PPO_ENVS,
        num_steps=PPO_STEPS,
        update_epochs=PPO_EPOCHS,
        num_minibatches=PPO_ENVS * PPO_STEPS // PPO_BATCH,
        total_timesteps=1_000_000,
        prune=None,
    )


def measure(options: Options) -> list[Section]:
    """One section per learner: ours wide and narrow, by backend, against SBX dense."""
    assert options.sbx_python is not None
    wide, narrow = options.hidden, options.narrow
    backends = ("gymnasium", "envpool") if envpool_installed() else ("gymnasium",)
    sections = []
    for algo in ("sac", "ppo"):
        settings: Callable[[int], Config] = sac_settings if algo == "sac" else ppo_settings
        rollout = settings(wide).steps_per_update
        if algo == "sac":
            extra: list[object] = ["--batch-size", SAC_BATCH, "--learning-starts", LEARNING_STARTS]
            extra += ["--warm-up", WARM_UP]
        else:
            extra = ["--batch-size", PPO_BATCH, "--num-envs", PPO_ENVS, "--num-steps", PPO_STEPS]
            extra += ["--epochs", PPO_EPOCHS, "--warm-up", 2 * rollout]
        steps = -(-options.steps // rollout) * rollout
        warm_up = WARM_UP if algo == "sac" else 2 * rollout
        other = SbxTraining(options.sbx_python, algo, ["--hidden", wide, wide, *extra], steps)
        baseline = f"SBX {other.peer.versions['SBX']}, {wide}·{wide}, gymnasium"
        ours = {
            f"prune_rl, {width}·{width}, {backend}": Training(
                "Hopper-v3", backend, settings(width), steps, warm_up
            )
            for width, backend in [(wide, name) for name in backends] + [(narrow, name) for name in backends]
        }
        sides: dict[str, Contender] = {baseline: other, **ours}
        try:
            rows = rows_of(take_turns(sides, options.repeats), baseline, "speed")
            _check_gradient_steps(algo, steps, other, ours)
        finally:
            other.peer.close()
            for training in ours.values():
                training.close()
        sections.append(
            Section(
                key=f"sbx-{algo}",
                title=f"{algo.upper()} on Hopper-v3 beside SBX",
                text=f"{steps:,} environment steps of a dense training per repeat, environment included "
                f"({_what(algo)}). Ratio: speed against SBX.",
                unit="environment steps/s",
                rows=tuple(rows),
                details={"peer": dict(other.peer.versions)},
            )
        )
    return sections


def _what(algo: str) -> str:
    if algo == "sac":
        return (
            f"batch {SAC_BATCH}, one gradient step per environment step; SBX steps one environment, prune_rl 8 × 8 "
            "steps and then makes 64 gradient steps"
        )
    return f"{PPO_ENVS} environments × {PPO_STEPS} steps, {PPO_EPOCHS} epochs of minibatches of {PPO_BATCH}"


def _check_gradient_steps(algo: str, steps: int, other: SbxTraining, ours: dict[str, Training]) -> None:
    """A comparison of SAC needs as many gradient steps on both sides; raises ``SystemExit`` otherwise."""
    if algo != "sac":
        return
    made = {"SBX": other.last_gradient_steps, **{name: it.last_gradient_steps for name, it in ours.items()}}
    for name, gradient_steps in made.items():
        if gradient_steps != steps:
            raise SystemExit(f"{name}: {gradient_steps} gradient steps in {steps} environment steps")
