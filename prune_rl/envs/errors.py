"""The errors of this package that an environment can cause."""

from __future__ import annotations


class UnsupportedEnvironment(ValueError):
    """The environment is unknown, withdrawn, not installed, does not do what Gymnasium asks of an environment, or has
    spaces that the learners cannot use.
    """


class EnvironmentCrashed(RuntimeError):
    """The environment's own code raised an exception, which is the ``__cause__`` of this one."""
