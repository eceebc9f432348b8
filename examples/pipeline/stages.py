"""Stages of a job: each is skipped when its finished output is there, and tells how long it took.

A stage's output must appear in one piece (written elsewhere, then renamed): an interrupted job
continues by running it again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

# Bound to the real stdout: what is printed here is never redirected into a stage's log.
console = Console(file=sys.stdout, highlight=False, soft_wrap=True)


def stage(what: str, output: Path, make: Callable[[], object], *, log: Path | None = None) -> None:
    """Call `make`, which must create `output`, unless it is there.

    log: file for what `make` and the libraries below it print; without it they print to the
    terminal.
    """
    name = escape(what)
    if output.exists():
        console.print(f"[green]have[/]  {name}")
        return
    start = time.monotonic()
    if log is None:
        console.print(f"[bold]start[/] {name}")
        make()
    else:
        with console.status(name), _printing_to(log):
            make()
    if not output.exists():
        raise RuntimeError(f"{what}: ended without writing {output}")
    console.print(f"[green]done[/]  {name} ({time.monotonic() - start:.0f} s)")


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield
