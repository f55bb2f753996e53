"""What is said of a run while it trains: seeds that were frozen, and episodes that do not end."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console
from rich.markup import escape

from prune_rl.training.config import Config
from prune_rl.training.engines.faults import Faults, TrainingFailed


def without_episodes(config: Config, episodes: np.ndarray | None, done: int, n: int) -> str:
    """A sentence if no episode has ended when that should be said, in the last ``n`` of ``done`` updates; else "".

    It is said where host environments are reset for the first time, and where neurons could go
    first, if that depends on the return. ``episodes``:
    those that have ended so far, int[S], if the learner counts them.
    """
    if episodes is None or np.any(episodes):
        return ""
    steps = config.learner.num_steps
    sentences = []
    if config.reset_every is not None and done == config.reset_every:
        sentences.append(
            f"no episode of {config.env} has ended in the first {done * steps:,} steps of each environment, after "
            "which the environments are reset each time, so there is no return: if episodes are longer, set a time "
            "limit (--env-kwargs max_episode_steps=N), or ask for fewer --host-resets"
        )
    prune = config.learner.prune
    if prune is not None and (prune.gate is not None or prune.tolerance is not None):
        asked = max(math.ceil(prune.begin * config.learner.num_updates), config.learner.first_mask_update, 1)
        if done - n < asked <= done:
            sentences.append(
                "the gate has no return to look at, and stays open until an episode ends"
                if prune.tolerance is None
                else "there is no return that could hold, so no neuron goes until episodes end"
            )
    return "; ".join(sentences)


def tell_faults(faults: Faults, config: Config, console: Console) -> None:
    """Say which seeds were frozen since the last call; raises ``TrainingFailed`` if none is left."""
    sentences = faults.sentences(config.env)
    if faults.frozen.all():
        raise TrainingFailed(
            f"{'; '.join(sentences)}. No seed is left to train. The same command goes on from the last checkpoint"
        )
    for sentence in sentences:
        console.print(f"[yellow]note:[/] {escape(sentence)}. This seed is frozen, the others go on.")
