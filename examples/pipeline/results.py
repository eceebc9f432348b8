"""What a run achieved on held-out documents: read from its log, as a table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.run import Run


@dataclass(frozen=True)
class HeldOut:
    """One domain, before and after a run; nats per token."""

    teacher_nll: float
    nll_before: float
    nll_after: float
    kl_before: float
    kl_after: float

    @property
    def improved(self) -> bool:
        """Whether the student predicts the held-out documents better than before."""
        return self.nll_after < self.nll_before


def read_results(run: Run) -> dict[str, HeldOut]:
    """By domain; KL is that of the teacher's distribution from the student's."""
    valid = {(r["step"], r["set"]): r for r in _records(run.metrics) if r["kind"] == "valid"}
    results = {}
    for domain in {name for _, name in valid}:
        before, after = valid[0, domain], valid[run.steps, domain]
        results[domain] = HeldOut(
            teacher_nll=before["teacher_nll"],
            nll_before=before["nll"],
            nll_after=after["nll"],
            kl_before=before["forward_kl"],
            kl_after=after["forward_kl"],
        )
    return dict(sorted(results.items()))


def table(runs: Mapping[str, Mapping[str, HeldOut]]) -> Table:
    """Rows: domains.  Columns: teacher, student before, and student after each of `runs`."""
    grid = Table(title="Held-out documents, nats per token (less is better)")
    grid.add_column("domain")
    grid.add_column("measure")
    for heading in ("teacher", "student before", *(f"after {name}" for name in runs)):
        grid.add_column(heading, justify="right")
    for domain, first in next(iter(runs.values())).items():
        after = [results[domain] for results in runs.values()]
        nll = [first.teacher_nll, first.nll_before, *(one.nll_after for one in after)]
        kl = [first.kl_before, *(one.kl_after for one in after)]
        grid.add_row(domain, "NLL", *(f"{value:.3f}" for value in nll))
        grid.add_row("", "KL(teacher || student)", "", *(f"{v:.3f}" for v in kl), end_section=True)
    return grid


def plot(run: Run, picture: Path) -> None:
    """Loss curves of a run, with the held-out NLL before and after, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = _records(run.metrics)
    train = [record for record in records if record["kind"] == "train"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [record["step"] for record in train]
    for metric, label in (("loss", "loss"), ("hard_loss", "hard part"), ("soft_loss", "soft part")):
        axes.plot(steps, [record[metric] for record in train], label=label, linewidth=1)
    for domain in sorted({r["set"] for r in records if r["kind"] == "valid"}):
        valid = [r for r in records if r["kind"] == "valid" and r["set"] == domain]
        points = [r["step"] for r in valid], [r["nll"] for r in valid]
        (line,) = axes.plot(*points, "o--", label=f"held-out NLL, {domain}")
        axes.axhline(valid[0]["teacher_nll"], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="nats per token", title="Distillation (dotted: the teacher)")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(picture, dpi=150)


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
