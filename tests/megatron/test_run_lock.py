"""Two runs in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bgkd_megatron.megatron.errors import ConfigError
from bgkd_megatron.megatron.run_lock import lock_folders


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    message = rf"^logging\.dir: {re.escape(str(tmp_path))} is in use by {holder}: end that run"
    with lock_folders({"checkpoint.dir": tmp_path}), pytest.raises(ConfigError, match=message):
        lock_folders({"logging.dir": tmp_path})
    with lock_folders({"logging.dir": tmp_path}):  # free again
        pass


def test_a_holder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".bgkd_megatron.lock").write_bytes(b"\xff\n")
    with (tmp_path / ".bgkd_megatron.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by \N{REPLACEMENT CHARACTER}: end"):
            lock_folders({"logging.dir": tmp_path})


def test_one_folder_for_both(tmp_path: Path) -> None:
    (tmp_path / "other name").symlink_to(tmp_path)
    with lock_folders({"checkpoint.dir": tmp_path, "logging.dir": tmp_path / "other name"}):
        pass


def test_all_or_nothing(tmp_path: Path) -> None:
    free, taken = tmp_path / "free", tmp_path / "taken"
    free.mkdir()
    taken.mkdir()
    with lock_folders({"logging.dir": taken}):
        with pytest.raises(ConfigError, match="taken is in use"):
            lock_folders({"checkpoint.dir": free, "logging.dir": taken})
        with lock_folders({"checkpoint.dir": free}):
            pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from bgkd_megatron.megatron.run_lock import lock_folders\n"
        "locks = lock_folders({'logging.dir': pathlib.Path(sys.argv[1])})\n"
        "print('locked', flush=True)\n"
        "time.sleep(100)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"in use by process {process.pid} on"):
            lock_folders({"logging.dir": tmp_path})
        process.kill()
        process.wait()
        with lock_folders({"logging.dir": tmp_path}):
            pass


def test_what_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".bgkd_megatron.lock"
    lock.mkdir()
    with pytest.raises(ConfigError, match=r"logging\.dir: .*cannot be opened \(Is a directory"):
        lock_folders({"logging.dir": tmp_path})
    lock.rmdir()
    lock.symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"logging\.dir: cannot write to .*lock"):
        lock_folders({"logging.dir": tmp_path})
    lock.unlink()

    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)  # some network file systems have none
    with lock_folders({"logging.dir": tmp_path}):
        pass
