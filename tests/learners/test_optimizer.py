"""The step size over a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prune_rl.learners.config import LearnerConfig
from prune_rl.learners.mask_rules import mask_schedules
from prune_rl.learners.optimizer import learning_rate
from prune_rl.learners.ppo.config import Config as PPO
from prune_rl.learners.pruning_config import Pruning
from prune_rl.learners.sac.config import Config as SAC

CONFIGS = [
    PPO(total_timesteps=100_000, learning_rate=1e-3, learning_rate_end=1e-4),
    SAC(total_timesteps=100_000, learning_rate=1e-3, learning_rate_end=1e-4, learning_starts=20_000),
]


def with_floor(config: LearnerConfig, share: float | None) -> LearnerConfig:
    return dataclasses.replace(config, prune=Pruning(begin=0.6, end=0.9, learning_rate_floor=share))


def steps_before_narrowing(config: LearnerConfig) -> int:
    """Gradient steps until the first mask update, counted update by update."""
    per_update = config.learning_steps // (config.num_updates - config.warmup_updates)
    first = mask_schedules(config)["actor"].first
    return sum(per_update for update in range(first) if update >= config.warmup_updates)


@pytest.mark.parametrize("config", CONFIGS, ids=["ppo", "sac"])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2.0])
def test_the_step_size_has_a_floor_while_neurons_go(config: LearnerConfig, share: float) -> None:
    pruned = with_floor(config, share)
    first, total = steps_before_narrowing(pruned), pruned.learning_steps
    rate, dense = learning_rate(pruned), learning_rate(dataclasses.replace(config, prune=None))
    assert 0.5 * total < first < 0.7 * total
    for step in (0, first // 2, first - 1):
        assert float(rate(step)) == float(dense(step))
    end = int(0.9 * total)
    for step in (first, (first + end) // 2, end):
        assert float(rate(step)) == pytest.approx(max(float(dense(step)), share * 1e-3))
    halfway = (end + total) // 2
    assert float(rate(halfway)) == pytest.approx((float(rate(end)) + 1e-4) / 2, rel=1e-2)
    assert float(rate(total)) == pytest.approx(1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=["ppo", "sac"])
def test_without_a_floor_it_is_that_of_the_dense_control(config: LearnerConfig) -> None:
    rates = [learning_rate(dataclasses.replace(config, prune=None)), learning_rate(with_floor(config, None))]
    steps = np.arange(0, config.learning_steps, 97)
    dense, pruned = ([float(rate(step)) for step in steps] for rate in rates)
    np.testing.assert_array_equal(pruned, dense)


@pytest.mark.parametrize("share", [-1.0, 1e6, float("nan"), float("inf")])
def test_a_floor_that_cannot_work_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"prune\.learning_rate_floor must lie in \[0, 100\], got"):
        with_floor(CONFIGS[0], share).check()
