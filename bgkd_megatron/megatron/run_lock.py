"""One run per folder: two that save to one place would overwrite each other's checkpoints and logs.

The lock is the system's own (flock): it ends with the process that holds it, however that ends, and
so it also tells of ranks that have outlived their launcher.  Free of torch and Megatron.
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

_NAME = "lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def lock_folders(folders: Mapping[str, Path]) -> ExitStack:
    """Take FOLDER/lock of each folder for this process, until the returned stack is closed.

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
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be opened ({error.strerror})") from error
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
    file.truncate(0)  # what is left of the last run
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
