"""Where PPO's Gaussian lies within the bounds of the actions."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from prune_rl.learners import ppo
from prune_rl.learners.actions import action_bounds, gaussian_bounds, gaussian_range
from prune_rl.spaces import Box, Discrete, Spec


@pytest.mark.parametrize(
    ("low", "high", "centre", "scale"),
    [
        (50.0, 100.0, 75.0, 25.0),
        (0.0, 1.0, 0.5, 0.5),
        (-100.0, 100.0, 0.0, 100.0),
        (-0.4, 0.4, 0.0, 0.4),
        (-3.0, 3.0, 0.0, 3.0),
        (-1.0, 2.0, 0.5, 1.5),
        (7.0, 7.0, 7.0, 1.0),
        (20.0, math.inf, 21.0, 1.0),
        (-math.inf, -20.0, -21.0, 1.0),
        (1e8, 1.1e8, 1.05e8, 5e6),
        (-1.0, 1.0, 0.0, 1.0),
        (-2.0, 2.0, 0.0, 1.0),
        (-0.5, 0.5, 0.0, 1.0),
        (-math.inf, math.inf, 0.0, 1.0),
        (0.0, math.inf, 0.0, 1.0),
        (-3.4e38, 3.4e38, 0.0, 1.0),
    ],
)
def test_the_range_of_a_gaussian_covers_finite_bounds(
    low: float, high: float, centre: float, scale: float
) -> None:
    # Beside a component that needs nothing, since a space of such components alone has no range.
    found = gaussian_range(Spec(1, Box((low, 50.0), (high, 100.0), (2,))))
    assert found is not None
    assert [x.tolist() for x in found] == [
        pytest.approx([centre, 75.0], rel=1e-6),
        pytest.approx([scale, 25.0], rel=1e-6),
    ]
    alone = gaussian_range(Spec(1, Box((low,), (high,), (1,))))
    assert (alone is None) == ((centre, scale) == (0.0, 1.0))
    bounds = gaussian_bounds(action_bounds(Spec(1, Box((low, 50.0), (high, 100.0), (2,)))))
    expected = [[(x - centre) / scale, edge] for x, edge in ((low, -1.0), (high, 1.0))]
    np.testing.assert_allclose(bounds, expected, rtol=1e-5)


def test_actions_are_moved_with_their_range_and_others_are_the_same_object() -> None:
    spec = Spec(1, Box((50.0, -1.0), (100.0, 1.0), (2,)))
    action = np.array([[[0.2, 0.3], [-1.0, 2.0]]], np.float32)
    expected = [[[80.0, 0.3], [50.0, 2.0]]]
    np.testing.assert_allclose(ppo.environment_actions(action, spec), expected, rtol=1e-6)
    np.testing.assert_allclose(ppo.environment_actions(jnp.asarray(action), spec), expected, rtol=1e-6)
    for same in (Spec(1, Discrete(3)), Spec(1, Box((-2.0, -1.0), (2.0, 1.0), (2,)))):
        assert ppo.environment_actions(action, same) is action
