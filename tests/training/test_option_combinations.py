"""Random valid combinations of options, at tiny sizes: none ends in a traceback, none empties a layer unasked.

Continuous integration tries a few, always the same; ``PRUNE_RL_COMBINATIONS=100`` tries so many per learner, and
``PRUNE_RL_COMBINATIONS_SEED`` others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.cli.train import parse_train
from prune_rl.envs.task import resolve_task
from prune_rl.export.policy import load_policy
from prune_rl.pruning.scores import SCORES
from prune_rl.training.loop import write_policies
from prune_rl.training.make_engine import make_engine
from prune_rl.training.policy_export import policy_paths

COUNT = int(os.environ.get("PRUNE_RL_COMBINATIONS", "2"))
SEED = int(os.environ.get("PRUNE_RL_COMBINATIONS_SEED", "0"))


def drawn_options(rng: np.random.Generator, algo: str) -> list[str]:
    """A command line; every value is one that the options allow together."""

    def one_of(*values: Any) -> str:
        return str(values[rng.integers(len(values))])

    def maybe(*words: str) -> list[str]:
        return list(words) if rng.random() < 0.5 else []

    hidden = [int(width) for width in rng.integers(2, 9, rng.integers(1, 4))]
    skip = bool(rng.random() < 0.5)
    begin, end = np.sort(rng.random(2)).round(3)
    floor = int(rng.integers(0 if skip else 1, min(hidden) + 1))
    words = ["--algo", algo, "--preset", "/dev/null", "--hidden", *map(str, hidden), "--num-envs", "2"]
    words += [
        "--num-steps",
        "8",
        "--steps",
        "96",
        "--frontier",
        "0",
        "--seeds",
        one_of(1, 2),
        "--seed",
        one_of(0, 7),
    ]
    words += ["--activation", one_of("tanh", "relu", "silu", "gelu", "elu"), *(["--skip"] if skip else [])]
    words += [one_of("--normalize-obs", "--no-normalize-obs"), *maybe("--gamma", one_of(0.0, 0.9, 1.0))]
    words += [*maybe("--learning-rate", one_of(1e-5, 1e-2, 0.3)), *maybe("--clip-obs", one_of(0.5, 10))]
    words += ["--prune.sparsity", one_of(0.0, 0.4, 0.9, 1.0), "--prune.min-width", str(floor)]
    words += ["--prune.begin", str(begin), "--prune.end", str(end), *maybe("--prune.every", one_of(1, 2, 50))]
    words += ["--prune.score", one_of(*SCORES), one_of("--prune.refit", "--prune.no-refit")]
    if rng.random() < 0.5:
        words += ["--prune.tolerance", one_of(0.0, 0.02, 5.0)]
    else:
        words += ["--prune.tolerance", "None", "--prune.scope", one_of("layer", "global")]
        words += [
            *maybe("--prune.energy", one_of(0.0, 0.3, 0.9)),
            *maybe("--prune.gate", one_of(0.0, 0.1, 5.0)),
        ]
    words += [*maybe("--prune.strength", one_of(1e-4, 1.0)), "--prune.metric", one_of("euclidean", "adam")]
    words += [
        *maybe("--width-exponent", one_of(0.5, 2.0)),
        "--prune.shrink",
        one_of("auto", "always", "never"),
    ]
    if rng.random() < 0.5:
        words += ["--prune.critic", "--prune.critic-sparsity", one_of(0.0, 0.5, 1.0)]
    if algo == "ppo":
        words += [
            "--update-epochs",
            one_of(1, 2),
            "--num-minibatches",
            one_of(1, 4),
            "--ent-coef",
            one_of(0, 0.1),
        ]
        words += [*maybe("--clip-range-vf", "0.2"), one_of("--normalize-reward", "--no-normalize-reward")]
    else:
        words += [
            "--learning-starts",
            one_of(0, 16, 40),
            "--batch-size",
            one_of(1, 16),
            "--utd-ratio",
            one_of(0.1, 0.5),
        ]
        words += [
            *maybe("--alpha", one_of(0.0, 0.2)),
            *maybe("--target-entropy-end", "-2"),
            "--tau",
            one_of(0.01, 1.0),
        ]
        words += [*maybe("--buffer-size", one_of(16, 40)), one_of("--entropy-backup", "--no-entropy-backup")]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize(("algo", "env"), [("ppo", "CartPole-v1"), ("sac", "Pendulum-v1")])
def test_a_random_combination_trains_and_keeps_its_floors(
    algo: str, env: str, index: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng([SEED, index, algo == "sac"])
    words = drawn_options(rng, algo)
    print("prune-rl train", env, *words)  # shown where the test fails
    config = parse_train([env, *words])[0]
    task = resolve_task(env, config.backend)
    config = config.resolved(task)
    engine = make_engine(config, task)
    try:
        engine.shrink()
        for _ in range(config.learner.num_updates):
            engine.advance(1)
            engine.shrink()
    finally:
        engine.close()
    prune = config.learner.prune
    assert prune is not None
    least = prune.floor(config.learner.skip)
    for name, mask in engine.masks.items():
        floor = least if name.startswith("actor/") else max(1, least)
        kept = mask.sum(-1)
        assert (kept >= floor).all(), (name, kept)
        asked = prune.sparsity if name.startswith("actor/") else prune.critic_sparsity
        if prune.scope == "layer":
            assert (kept >= np.floor((1.0 - asked) * mask.shape[-1])).all(), (name, kept)
    write_policies(engine.state, engine.faults, config, task.spec, tmp_path)
    for index_of_seed, (seed, folder) in enumerate(policy_paths(tmp_path, config).items()):
        if engine.faults.frozen[index_of_seed]:  # said in a sentence: a large learning rate may diverge
            assert not folder.exists()
            continue
        action = load_policy(folder)(np.zeros((3, task.spec.observation_size), np.float32))
        assert np.isfinite(action).all(), seed
