"""The mean of several policies of the same shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from prune_rl.export.actions import Spread
from prune_rl.export.activations import Array
from prune_rl.export.policy import Policy


def average_policies(policies: Sequence[Policy]) -> Policy:
    """The policy whose arrays are the arithmetic means of those of ``policies``.

    Sensible for policies of one training run with the same neurons at neighbouring steps, whose params differ by the
    noise of the updates (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407, section 3).

    Args:
        policies: at least one. They agree in shapes, activation, actions and the other fields; ``metadata`` is that of
            the last one, with the number of policies as "averaged".

    Raises:
        ValueError: there is none, or two of them differ in more than numbers and metadata.
    """
    if not policies:
        raise ValueError("there is no policy to average")
    last = policies[-1]
    for policy in policies:
        if _form(policy) != _form(last):
            raise ValueError(f"these policies have no mean: {_form(policy)} and {_form(last)}")
    spreads = [policy.spread for policy in policies if policy.spread is not None]
    return dataclasses.replace(
        last,
        layers=tuple(
            (_mean([kernel for kernel, _ in layer]), _mean([bias for _, bias in layer]))
            for layer in zip(*(policy.layers for policy in policies), strict=True)
        ),
        obs_mean=_mean_if_given([policy.obs_mean for policy in policies]),
        obs_std=_mean_if_given([policy.obs_std for policy in policies]),
        skip=_mean_if_given([policy.skip for policy in policies]),
        spread=_mean_spread(spreads) if spreads else None,
        metadata={**last.metadata, "averaged": len(policies)},
    )


def _form(policy: Policy) -> dict[str, object]:
    """Everything of a policy but its numbers and metadata."""
    spread = policy.spread
    return {
        "layers": [kernel.shape for kernel, _ in policy.layers],
        "activation": policy.activation,
        "action": policy.action,
        "normalised": policy.obs_mean is not None,
        "obs_clip": policy.obs_clip,
        "squash": policy.squash,
        "skip": policy.skip is not None,
        "observation_shape": policy.observation_shape,
        "spread": spread and (sorted(spread.tensors()), spread.low, spread.high),
        "temperature": policy.temperature,
    }


def _mean_spread(spreads: Sequence[Spread]) -> Spread:
    return dataclasses.replace(
        spreads[-1],
        bias=_mean([each.bias for each in spreads]),
        kernel=_mean_if_given([each.kernel for each in spreads]),
        skip=_mean_if_given([each.skip for each in spreads]),
    )


def _mean(arrays: Sequence[Array]) -> Array:
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)


def _mean_if_given(arrays: Sequence[Array | None]) -> Array | None:
    given = [array for array in arrays if array is not None]
    return _mean(given) if given else None
