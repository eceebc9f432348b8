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

    Errors of the block that name the directory are changed to name `path`.
    Raises FileExistsError when `path` is already there: nothing is ever overwritten.
    """
    if os.path.lexists(path):  # a link that leads nowhere, too, would be replaced
        raise FileExistsError(f"{path} already exists: remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside `path`, so on its file system: the rename is atomic.
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        yield partial
        partial.rename(path)
    except Exception as error:
        _rename(error, str(partial), str(path))
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(error: Exception, old: str, new: str) -> None:
    """Let `error` speak of `new` instead of `old`, a name that the user has never heard."""
    error.args = tuple(x.replace(old, new) if isinstance(x, str) else x for x in error.args)
    for attribute in ("filename", "filename2"):  # of an OSError, beside its arguments
        if isinstance(file := getattr(error, attribute, None), str):
            setattr(error, attribute, file.replace(old, new))
