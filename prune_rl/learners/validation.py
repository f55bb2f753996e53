"""Checks of hyperparameters; each message names the field, its value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from prune_rl.learners.networks import ACTIVATIONS


def refuse_if(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with the message if the condition holds."""
    if condition:
        raise ValueError(message)


def check_finite_or_none(config: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field that is neither None nor finite."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite or absent, got {value}")


def check_at_least_one(config: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be >= 1, got {getattr(config, name)}")


def check_at_most(config: Any, most: float, *names: str) -> None:
    """Raise ``ValueError`` for a field above ``most``."""
    for name in names:
        if getattr(config, name) > most:
            raise ValueError(f"{name} must be <= {most:g}, got {getattr(config, name)}")


def check_positive(config: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field that is not a finite number > 0."""
    for name in names:
        if not (getattr(config, name) > 0 and math.isfinite(getattr(config, name))):
            raise ValueError(f"{name} must be a finite number > 0, got {getattr(config, name)}")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field that is not a finite number >= 0."""
    for name in names:
        if not (getattr(config, name) >= 0 and math.isfinite(getattr(config, name))):
            raise ValueError(f"{name} must be a finite number >= 0, got {getattr(config, name)}")


def check_shares(config: Any, *names: str) -> None:
    """Raise ``ValueError`` for a field outside [0, 1]."""
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}")


def check_network(activation: str, **widths: tuple[int, ...]) -> None:
    """Raise ``ValueError`` for hidden widths below 1, or an unknown activation."""
    for name, hidden in widths.items():
        if min(hidden, default=1) < 1:
            raise ValueError(f"{name} needs widths >= 1, got {hidden}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
