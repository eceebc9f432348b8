"""What all commands do alike: one line for the user, the exit status, signals."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from bgkd_megatron import command
from bgkd_megatron.convert import from_hf, to_hf
from bgkd_megatron.data import prepare
from bgkd_megatron.megatron.errors import RankError, RunError

# Each command, and the function that does its work.
COMMANDS = [(from_hf, "convert"), (to_hf, "export"), (prepare, "prepare")]
FULL_DISK = OSError(errno.ENOSPC, "No space left on device", "/data/x")


def test_success_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(lambda: "out: written") == 0
    assert capsys.readouterr() == ("out: written\n", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("a: wrong"), 1, "a: wrong"),
        (FULL_DISK, 1, str(FULL_DISK)),
        (RunError("cannot go on"), 1, "cannot go on"),
        (RankError("no room"), 1, "no room"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["ValueError", "OSError", "RunError", "RankError", "KeyboardInterrupt"],
)
@pytest.mark.parametrize(
    ("module", "work"), COMMANDS, ids=[module.__name__ for module, _ in COMMANDS]
)
def test_every_command_ends_in_one_line(
    module: ModuleType,
    work: str,
    error: BaseException,
    status: int,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    arguments += ["--tokenizer", str(tmp_path)] if module is not to_hf else []
    with mock.patch.object(module, work, side_effect=error):
        assert module.main(arguments) == status
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: str(1 // 0))


def test_sigterm_lets_the_work_clean_up(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned_up = []

    def body() -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return "never"
        finally:
            cleaned_up.append(True)

    with pytest.raises(SystemExit) as caught:
        command.run(body)
    assert caught.value.code == 128 + signal.SIGTERM
    assert cleaned_up
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr() == ("", "")
