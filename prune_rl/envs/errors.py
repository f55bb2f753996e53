"""The one error of this package that a user can cause by naming an environment."""

from __future__ import annotations


class UnsupportedEnvironment(ValueError):
    """The environment is unknown, withdrawn, not installed, or has spaces that the learners cannot use."""
