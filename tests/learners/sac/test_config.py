"""What SAC's `Config.check` refuses: one case per bad value, each named in the message; and its derived sizes."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import pytest

from prune_rl.learners import sac
from tests.learners.random_rollouts import DISCRETE
from tests.learners.schedules import by_schedule

NAN, INF = math.nan, math.inf
GOOD = sac.Config(hidden=(8, 6), num_envs=2, num_steps=6, learning_starts=24, total_timesteps=100 * 2 * 6)


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        sac.Config(),
        dataclasses.replace(GOOD, alpha=0.0, target_entropy=-3.0),
        dataclasses.replace(GOOD, target_entropy_end=0.0, entropy_backup=False),
        dataclasses.replace(GOOD, learning_starts=0, tau=1.0, learning_rate_end=0.0),
        dataclasses.replace(GOOD, batch_size=5000, buffer_size=12),
        dataclasses.replace(GOOD, learning_starts=1188),
    ],
)
def test_good_values_pass(config: sac.Config) -> None:
    config.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, n)
            for name in ("num_envs", "num_steps", "batch_size", "buffer_size", "total_timesteps")
            for n in (0, -3)
        ),
        ("critic_hidden", (0,)),
        ("hidden", (8, 0)),
        ("activation", "tanhh"),
        ("learning_starts", -1),
        ("learning_starts", 1189),
        ("learning_starts", 1200),
        ("buffer_size", 11),
        ("utd_ratio", 0.01),
        *(("gamma", x) for x in (-0.1, 1.1, NAN, INF)),
        *(("tau", x) for x in (0.0, -0.1, 1.1, NAN, INF)),
        *(
            (name, x)
            for name in ("learning_rate", "clip_obs", "utd_ratio", "init_alpha", "reward_scale")
            for x in (0.0, -1.0, NAN, INF)
        ),
        *((name, x) for name in ("learning_rate_end", "alpha") for x in (-1.0, NAN, INF)),
        *((name, x) for name in ("target_entropy", "target_entropy_end") for x in (NAN, INF, -INF)),
    ],
)
def test_bad_hyperparameters(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name) as error:
        dataclasses.replace(GOOD, **{name: value}).check()
    assert str(value) in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("sparsity", 1.1), ("every", 0), ("min_width", 7)])
def test_bad_pruning_options(name: str, value: Any) -> None:
    config = dataclasses.replace(GOOD, prune=dataclasses.replace(by_schedule(), **{name: value}))
    with pytest.raises(ValueError, match=f"prune.{name}"):
        config.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"hidden": (8, 0)}, "hidden needs widths >= 1, got (8, 0)"),
        ({"activation": "tanhh"}, "unknown activation 'tanhh'; choose one of tanh, relu, silu, gelu, elu"),
        ({"learning_starts": -1}, "learning_starts must be >= 0, got -1"),
        (
            {"learning_starts": 1189},
            "learning_starts = 1189 leaves nothing of the 1200 environment steps to learn in; lower it or train longer",
        ),
        (
            {"buffer_size": 11},
            "buffer_size = 11 is less than the num_envs * num_steps = 12 transitions of one rollout; raise it",
        ),
        ({"reward_scale": 0.0}, "reward_scale must be a finite number > 0, got 0.0"),
        (
            {"utd_ratio": 0.01},
            "utd_ratio = 0.01 of 12 environment steps per update makes no gradient step; raise it, num_envs or "
            "num_steps",
        ),
        ({"gamma": 1.1}, "gamma must lie in [0, 1], got 1.1"),
        ({"tau": 0.0}, "tau must lie in (0, 1], got 0.0"),
        ({"learning_rate_end": -1.0}, "learning_rate_end must be a finite number >= 0, got -1.0"),
        ({"alpha": -0.1}, "alpha must be a finite number >= 0 or absent, got -0.1"),
        ({"target_entropy": -INF}, "target_entropy must be finite or absent, got -inf"),
        ({"target_entropy_end": INF}, "target_entropy_end must be finite or absent, got inf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_message_says_what_is_allowed_and_what_to_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        dataclasses.replace(GOOD, **changes).check()


def test_a_floor_wider_than_a_layer_is_no_matter_without_pruning() -> None:
    dataclasses.replace(GOOD, prune=None).check()


def test_the_config_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.gamma = 0.5  # type: ignore[misc]
    assert hash(GOOD) == hash(dataclasses.replace(GOOD))
    assert dataclasses.replace(GOOD, tau=0.5) != GOOD


@pytest.mark.parametrize(("ratio", "steps"), [(0.25, 3), (1.0, 12), (2.0, 24), (1 / 12, 1), (1.5, 18)])
def test_gradient_steps_are_the_ratio_of_environment_steps(ratio: float, steps: int) -> None:
    assert dataclasses.replace(GOOD, utd_ratio=ratio).gradient_steps == steps


@pytest.mark.parametrize(("starts", "updates"), [(0, 0), (1, 1), (12, 1), (13, 2), (24, 2)])
def test_warm_up_is_whole_updates_of_at_least_learning_starts(starts: int, updates: int) -> None:
    assert dataclasses.replace(GOOD, learning_starts=starts).warmup_updates == updates


@pytest.mark.parametrize(
    ("size", "total", "capacity"), [(12, 100, 12), (23, 100, 12), (24, 100, 24), (10**6, 100, 1200)]
)
def test_the_buffer_holds_whole_rollouts_and_no_more_than_training_makes(
    size: int, total: int, capacity: int
) -> None:
    assert (
        dataclasses.replace(GOOD, buffer_size=size, total_timesteps=total * GOOD.steps_per_update).capacity
        == capacity
    )


def test_init_checks() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        sac.init(jax.random.key(0), dataclasses.replace(GOOD, batch_size=0), DISCRETE)
