"""What a run shows: a progress bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Report", "open_report", "valid_line"]


class Report(Protocol):
    """Shows steps and messages to the person who watches."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def open_report(steps: int, first_step: int) -> Report:
    """A report on a run of `steps` steps, of which first_step are done."""
    if sys.stdout.isatty():
        return _Bar(steps, first_step)
    return _Lines(steps, first_step)


class _Lines:
    def __init__(self, steps: int, first_step: int) -> None:
        self._steps, self._first_step = steps, first_step
        self._start = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds_per_step = (time.monotonic() - self._start) / (step - self._first_step)
        left = timedelta(seconds=round(seconds_per_step * (self._steps - step)))
        print(f"step {step}/{self._steps}  {_step_text(metrics)}  left {left}", flush=True)

    def message(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, steps: int, first_step: int) -> None:
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=steps, completed=first_step)
        self._progress.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._progress.update(self._task, completed=step, description=_step_text(metrics))

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def _step_text(metrics: Mapping[str, float]) -> str:
    if not metrics["tokens"]:
        return "no target in this batch: no update"
    return (
        f"loss {metrics['loss']:.4f}  hard {metrics['hard_loss']:.4f}  "
        f"soft {metrics['soft_loss']:.4f}  lr {metrics['lr']:.2e}  "
        f"{metrics['tokens_per_second']:.0f} tokens/s"
    )


def valid_line(name: str, metrics: Mapping[str, float]) -> str:
    """The result of one held-out set in one line; nats per token."""
    parts = [f"{name}: student NLL {metrics['nll']:.4f}"]
    if "teacher_nll" in metrics:
        parts += [
            f"teacher NLL {metrics['teacher_nll']:.4f}",
            f"KL(teacher || student) {metrics['forward_kl']:.4f}",
            f"same top token {metrics['agreement']:.1%}",
        ]
    return ", ".join(parts)
