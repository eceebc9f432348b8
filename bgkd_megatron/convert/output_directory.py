"""Output directories that are either complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes `path` when the block ends without an exception.

    Raises FileExistsError when `path` is already there: nothing is ever overwritten.
    """
    if path.exists():
        raise FileExistsError(f"{path} already exists: remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside `path`, so on its file system: the rename is atomic.
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
