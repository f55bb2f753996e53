"""What an exported file says of its policy, as strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from prune_rl import __version__
from prune_rl.export.policy import Policy
from prune_rl.spaces import Discrete

# Of the metadata that training puts into a policy file.
_OF_TRAINING = {
    "env": "environment",
    "algo": "algorithm",
    "method": "method",
    "seed": "seed",
    "steps": "training_steps",
    "averaged": "averaged_policies",
}


def metadata_of(policy: Policy, extra: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Sizes, bounds and origin of a policy, then ``extra``; values that are no strings are written as JSON.

    Keys: observation_size, observation_shape, action_type ("discrete" or "box"), action_size, action_start or
    action_shape, action_dtype, action_low, action_high (null: no bound), normalised, prune_rl_version, and where the
    policy file has them environment, algorithm, method, seed, training_steps, averaged_policies (the
    number of policies that it is the mean of).
    """
    action = policy.action
    found: dict[str, Any] = {
        "observation_size": policy.observation_size,
        "observation_shape": list(policy.observation_shape or (policy.observation_size,)),
    }
    if isinstance(action, Discrete):
        found |= {"action_type": "discrete", "action_size": action.n, "action_start": action.start}
    else:
        low, high = ([x if math.isfinite(x) else None for x in bound] for bound in (action.low, action.high))
        found |= {
            "action_type": "box",
            "action_size": action.size,
            "action_shape": list(action.shape),
            "action_dtype": action.dtype,
            "action_low": low,
            "action_high": high,
        }
    found["normalised"] = policy.normalisation is not None
    found |= {name: policy.metadata[key] for key, name in _OF_TRAINING.items() if key in policy.metadata}
    found["prune_rl_version"] = __version__
    found |= extra or {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
