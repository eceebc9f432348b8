"""What the commands that run in one process have in common: signals, errors and exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bgkd_megatron.megatron.errors import RankError, RunError
from bgkd_megatron.megatron.quiet import silence_megatron

__all__ = ["EXPECTED_ERRORS", "run"]

EXPECTED_ERRORS = (ValueError, OSError, RunError, RankError)
"""Their message is all that the user needs.  Anything else is a defect: its traceback is shown."""


def run(body: Callable[[], str]) -> int:
    """Call `body`, the work of a command, and print the line that it returns.

    Returns the exit status: 0, 1 after one of EXPECTED_ERRORS, 130 after Ctrl-C; for both an error
    line goes to stderr.  SIGTERM raises SystemExit(143) in `body`.
    """
    silence_megatron()
    try:
        with _raise_on_sigterm():
            line = body()
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(line)
    return 0


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
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
