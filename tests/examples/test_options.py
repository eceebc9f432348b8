"""How an example ends: the exit status, and one line about what went wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline import smollm2
from pipeline.options import run_example
from pipeline.run import TrainingError
from pipeline.setup import Setup
from pipeline.stages import console

from bgkd_megatron.megatron.errors import RankError, RunError


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    """run_example is the whole life of its process and never puts the handler back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(directory: Path, error: BaseException) -> tuple[int, str]:
    """Exit status and output of an example whose work fails with `error`."""

    def job(setup: Setup, steps: int) -> int:
        raise error

    with console.capture() as capture:
        status = run_example(None, job, [f"--output={directory}", f"--cache-dir={directory}"])
    return status, capture.get()


@pytest.fixture
def no_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be made before the work begins."""
    setup = Setup(tmp_path, tmp_path, tmp_path, ("text",), tmp_path, 1)
    monkeypatch.setattr(smollm2, "make", lambda root, cache_dir: setup)


@pytest.mark.usefixtures("no_setup")
@pytest.mark.parametrize(
    "error",
    [
        FileExistsError("output data/cwe.train already exists (x.bin): remove these files"),
        ValueError("data.jsonl:3: not valid JSON"),
        RunError("the loss is not finite"),
        RankError("no room for the weights"),
        TrainingError("training failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_with_a_message_ends_in_one_line(error: Exception, tmp_path: Path) -> None:
    assert run(tmp_path, error) == (1, f"{error}\n")


@pytest.mark.usefixtures("no_setup")
def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, ZeroDivisionError())


def test_a_damaged_model_in_the_cache_is_named(tmp_path: Path) -> None:
    for name in (smollm2.MODEL_WHEEL, smollm2.CWE_WHEEL):
        (tmp_path / name).write_bytes(b"half a download")
    status, output = run(tmp_path, AssertionError("not reached"))
    assert status == 1
    wheel = tmp_path / smollm2.MODEL_WHEEL
    assert output.splitlines()[-1] == (
        f"{wheel} cannot be read (File is not a zip file): remove it and get it again"
    )
