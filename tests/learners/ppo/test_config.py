"""What `Config.check` refuses: one case per bad value, each named in the message."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import pytest

from prune_rl.learners import ppo
from tests.learners.random_rollouts import DISCRETE
from tests.learners.schedules import by_schedule

NAN, INF = math.nan, math.inf
GOOD = ppo.Config(hidden=(8, 6), num_envs=2, num_steps=6, num_minibatches=3)


@pytest.mark.parametrize(
    "config", [GOOD, ppo.Config(), dataclasses.replace(GOOD, clip_range_vf=0.2, ent_coef=0.01)]
)
def test_good_values_pass(config: ppo.Config) -> None:
    config.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, n)
            for name in ("num_envs", "num_steps", "update_epochs", "num_minibatches", "total_timesteps")
            for n in (0, -3)
        ),
        ("critic_hidden", (0,)),
        ("hidden", (8, 0)),
        ("activation", "tanhh"),
        ("num_minibatches", 5),
        *((name, x) for name in ("gamma", "gae_lambda") for x in (-0.1, 1.1, NAN, INF)),
        *(
            (name, x)
            for name in ("learning_rate", "clip_eps", "max_grad_norm", "clip_obs")
            for x in (0.0, -1.0, NAN, INF)
        ),
        *((name, x) for name in ("learning_rate_end", "ent_coef", "vf_coef") for x in (-1.0, NAN, INF)),
        *(("clip_range_vf", x) for x in (0.0, -0.2, NAN, INF)),
    ],
)
def test_bad_hyperparameters(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name) as error:
        dataclasses.replace(GOOD, **{name: value}).check()
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, x) for name in ("sparsity", "critic_sparsity") for x in (-0.1, 1.1, NAN, INF)),
        *((name, x) for name in ("energy", "importance_decay") for x in (-0.1, 1.0, NAN, INF)),
        *((name, x) for name in ("begin", "end") for x in (-0.1, 1.5, NAN)),
        *((name, x) for name in ("gate", "strength", "tolerance") for x in (-0.1, NAN, INF)),
        ("every", 0),
        ("min_width", 0),
        ("min_width", 7),
        ("score", "tailor"),
        ("scope", "network"),
        ("metric", "manhattan"),
    ],
)
def test_bad_pruning_options(name: str, value: Any) -> None:
    config = dataclasses.replace(GOOD, prune=dataclasses.replace(by_schedule(), **{name: value}))
    with pytest.raises(ValueError, match=f"prune.{name}") as error:
        config.check()
    assert str(value) in str(error.value)


def test_pruning_cannot_begin_after_its_end() -> None:
    with pytest.raises(ValueError, match=r"prune.begin must not exceed prune.end, got 0.7 > 0.3"):
        dataclasses.replace(GOOD, prune=by_schedule(begin=0.7, end=0.3)).check()


def test_the_message_says_what_was_allowed() -> None:
    with pytest.raises(ValueError, match=r"num_minibatches = 5 does not divide .* 2 \* 6 = 12"):
        dataclasses.replace(GOOD, num_minibatches=5).check()
    with pytest.raises(ValueError, match="tanh, relu"):
        dataclasses.replace(GOOD, activation="tanhh").check()
    with pytest.raises(ValueError, match=r"min_width = 7 is wider .* \(6\)"):
        dataclasses.replace(GOOD, prune=by_schedule(min_width=7)).check()


def test_a_floor_wider_than_a_layer_is_no_matter_without_pruning() -> None:
    dataclasses.replace(GOOD, prune=None).check()


def test_init_checks() -> None:
    with pytest.raises(ValueError, match="update_epochs"):
        ppo.init(jax.random.key(0), dataclasses.replace(GOOD, update_epochs=0), DISCRETE)
