"""distil_two_steps.py without a GPU: the same two steps on the CPU."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import distil_two_steps
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
# Not imported here: without a GPU that takes the script's own preparation.
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
    pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed"),
]

SCRIPT = Path(__file__).with_name("distil_two_steps.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_steps_on_the_cpu() -> None:
    done = run("--device", "cpu", "training.gradient_in_forward=true")
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("on the CPU: loss ")
    assert last.endswith(" at step 2")


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    done = run()
    assert done.returncode == 2
    assert "--device cuda: training would take the device cpu" in done.stderr


@pytest.mark.parametrize("losses", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_missing_or_infinite_losses_fail(
    losses: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distil_two_steps, "make_inputs", lambda folder: None)
    monkeypatch.setattr(distil_two_steps, "train", lambda folder, device, overrides: None)
    monkeypatch.setattr(distil_two_steps, "losses", lambda folder: losses)
    monkeypatch.setattr(sys, "argv", ["distil_two_steps.py", "--device", "cpu"])
    assert distil_two_steps.main() == 1
    assert "expected 2 finite losses" in capsys.readouterr().err
