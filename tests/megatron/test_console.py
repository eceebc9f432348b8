"""The terminal's view of a run."""

from __future__ import annotations

import pytest

from bgkd_megatron.megatron.console import open_report, valid_line

METRICS = {"loss": 1.5, "hard_loss": 2.0, "soft_loss": 1.0, "lr": 1e-3}
METRICS |= {"tokens": 5.0, "tokens_per_second": 10.0}
EXPECTED = "loss 1.5000  hard 2.0000  soft 1.0000  lr 1.00e-03  10 tokens/s"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_report(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "200")
    report = open_report(steps=10, first_step=4)
    report.step(5, METRICS)
    report.message("saved [here]")
    report.step(6, {"tokens": 0.0})
    report.close()
    shown = capsys.readouterr().out
    assert "saved [here]" in shown
    assert "no target in this batch: no update" in shown
    if is_terminal:
        assert "6/10" in shown
    else:
        assert f"step 5/10  {EXPECTED}  left 0:00:00" in shown


def test_valid_line() -> None:
    alone = {"nll": 2.0}
    assert valid_line("x", alone) == "x: student NLL 2.0000"
    both = {**alone, "teacher_nll": 1.0, "forward_kl": 0.5, "agreement": 0.25}
    assert valid_line("x", both) == (
        "x: student NLL 2.0000, teacher NLL 1.0000, KL(teacher || student) 0.5000, "
        "same top token 25.0%"
    )
