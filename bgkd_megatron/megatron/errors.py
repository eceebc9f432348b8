"""Errors whose message is all that the user needs; the launcher prints them without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ConfigError", "RankError", "RunError", "writing"]


class ConfigError(ValueError):
    """A run that cannot start; the message says what to change."""


class RunError(RuntimeError):
    """A run that cannot go on.  Raised by all ranks at the same point, for the same reason."""


class RankError(RuntimeError):
    """A run that cannot go on, for a reason that only this rank knows: a full disk, say."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of the with block becomes a RankError that names `path`.

    A full disk, for one, does not say which file it has no space for.
    """
    try:
        yield
    except OSError as error:
        raise RankError(f"{path} cannot be written ({error})") from error
