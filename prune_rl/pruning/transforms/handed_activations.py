"""Activations that a transformation is given with its updates, in place of a function and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prune_rl.dependency.groups import NeuronGroups


def check_activations(looks: bool, what: str, fn: Callable[..., Any] | None, given: bool) -> None:
    """Raise ``ValueError`` where activations that ``what`` looks at would be missing, or would be given twice."""
    if looks and fn is None and not given:
        raise ValueError(
            f"{what} needs the activations of the network: give fn, the function fn(params, *inputs), and inputs=(...) "
            "to every update; or activations=True, and activations={group name: float[…, size]} to every update"
        )
    if given and fn is not None:
        raise ValueError(
            "activations=True says that update is given them, but fn computes them: give one of the two"
        )
    if given and not looks:
        raise ValueError(
            "activations=True, but nothing looks at them: choose importance 'output', 'surgeon' or 'elimination', or "
            "refit=True"
        )


def handed_in(groups: NeuronGroups, activations: Mapping[str, jax.Array] | None) -> dict[str, jax.Array]:
    """The activations that ``update`` is given, checked."""
    if not isinstance(activations, Mapping) or not set(groups) <= set(activations):
        got = sorted(activations) if isinstance(activations, Mapping) else type(activations).__name__
        raise ValueError(
            f"update needs activations={{group name: float[…, size]}} for the groups {list(groups)}, got {got}"
        )
    for name, group in groups.items():
        shape = jnp.shape(activations[name])
        if not shape or shape[-1] != group.size:
            raise ValueError(f"activations of {name!r} must be […, {group.size}], got shape {shape}")
    return {name: jnp.asarray(activations[name]) for name in groups}
