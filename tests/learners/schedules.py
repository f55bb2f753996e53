"""Pruning options under which neurons go by a schedule, whatever training does."""

from __future__ import annotations

from typing import Any

from prune_rl.learners.pruning_config import Pruning


def by_schedule(**options: Any) -> Pruning:
    """Options whose defaults need no activations: taylor scores from 10 % to 60 % of training, without a refit."""
    defaults: dict[str, Any] = {
        "tolerance": None, "sparsity": 0.975, "begin": 0.1, "end": 0.6, "score": "taylor", "refit": False,
        "min_width": 2, "strength": 0.0,
    }  # fmt: skip
    return Pruning(**{**defaults, **options})
