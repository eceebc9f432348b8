"""One run per folder: two that save to one place would overwrite each other's checkpoints and logs.

The lock is the system's own (flock): it ends with the process that holds it, however that ends (and
with those that it has forked), and so it also tells of a rank that has outlived its launcher.  Free
of torch and Megatron.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from bgkd_megatron.megatron.errors import ConfigError

__all__ = ["lock_folders"]

_NAME = ".bgkd_megatron.lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def lock_folders(folders: Mapping[str, Path]) -> ExitStack:
    """Take the lock file in each folder for this process, until the returned stack is closed.

    folders: by the name of their setting; one may be given twice.  Only one process of a run may
    ask.  On a file system without locks nothing is taken.  Raises ConfigError when another process
    has one of them; it names that process, and nothing stays locked.
    """
    with ExitStack() as held:
        taken: set[Path] = set()
        for setting, folder in folders.items():
            if folder.resolve() not in taken:
                held.enter_context(_lock(setting, folder))
                taken.add(folder.resolve())
        return held.pop_all()


def _lock(setting: str, folder: Path) -> IO[str]:
    path = folder / _NAME
    try:
        file = path.open("a+", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{setting}: {path} cannot be opened ({error.strerror or error})"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return file
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ConfigError(
            f"{setting}: {folder} is in use by {holder}: end that run, or choose another folder"
        ) from error
    try:
        file.truncate(0)  # what is left of the last run
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot write to {path} ({error.strerror})") from error
    return file
