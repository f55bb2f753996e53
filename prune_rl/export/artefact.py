"""What acts like a policy of NumPy and is not one: its exported code, or its integers."""

from __future__ import annotations

import abc
from typing import Any

from numpy.typing import ArrayLike

from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete


class Artefact(abc.ABC):
    """Called like the `Policy` that it was made of, and returns actions of the same dtype and shape.

    Attributes:
        policy: that policy.
    """

    policy: Policy

    @property
    def action(self) -> Discrete | Box:
        """The action space."""
        return self.policy.action

    @property
    def observation_shape(self) -> tuple[int, ...] | None:
        """As that of the policy."""
        return self.policy.observation_shape

    @property
    def observation_size(self) -> int:
        """D."""
        return self.policy.observation_size

    @property
    def nbytes(self) -> int:
        """Bytes of all constants."""
        return self.policy.nbytes

    @abc.abstractmethod
    def __call__(self, obs: ArrayLike) -> Any:
        """See `Policy.__call__`."""
