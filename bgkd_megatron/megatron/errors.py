"""Errors whose message is all that the user needs; the launcher prints them without a traceback."""

__all__ = ["ConfigError", "RankError", "RunError"]


class ConfigError(ValueError):
    """A run that cannot start; the message says what to change."""


class RunError(RuntimeError):
    """A run that cannot go on.  Raised by all ranks at the same point, for the same reason."""


class RankError(RuntimeError):
    """A run that cannot go on, for a reason that only this rank knows: a full disk, say."""
