"""What the commands of this package have in common."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["raise_on_sigterm"]


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """In the with block SIGTERM, which a batch system or `timeout` sends, raises SystemExit(143).

    Nothing half-written then stays: other with blocks clean up, as after any exception.
    """
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # the status that a shell reports for a signal
