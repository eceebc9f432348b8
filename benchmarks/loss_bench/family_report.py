"""One row per member of the family: ours beside eager PyTorch and beside pure forward KL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from loss_bench.eager import DOCUMENT_TOKENS
from loss_bench.family import FAMILY, PURE, ours_and_eager
from loss_bench.report import aim, header, markdown_line, memory_note, number, time_note
from loss_bench.results import Row, SettingResult

_COLUMNS = (
    "forward + backward",
    "reads",
    "ours ms",
    "eager ms",
    "eager / ours",
    "ours / forward KL",
    "ours, % logits",
    "eager, % logits",
    "err loss",
    "err grad",
    "eager err loss",
    "eager err grad",
)
_AIM_SPEED = {1: 10.0, 2: 6.0}  # by reads
_AIM_HYBRID = 1.1
_AIM_MEMORY = 0.01


@dataclass
class FamilyRow:
    """A member at one setting; ours, eager and pure forward KL were timed in turns."""

    member: str
    title: str
    reads: int
    ours: Row
    eager: Row
    forward_kl_ms: float | None
    """ours"""
    load_average: float
    """at the end"""

    @property
    def over_forward_kl(self) -> float | None:
        if self.ours.total_ms is None or self.forward_kl_ms is None:
            return None
        return self.ours.total_ms / self.forward_kl_ms


@dataclass
class FamilyResult:
    vocab_size: int
    num_tokens: int
    dtype: str
    rows: list[FamilyRow]

    @property
    def caption(self) -> str:
        loads = [row.load_average for row in self.rows]
        return (
            f"V = {self.vocab_size:,}, N = {self.num_tokens} tokens, {self.dtype}; load average "
            f"{min(loads):.1f} to {max(loads):.1f}"
        )


def family_row(member: str, result: SettingResult, load_average: float) -> FamilyRow:
    """From the variants of `member` and ours of pure forward KL."""
    ours, eager = (result.row(name) for name in ours_and_eager(member))
    pure = result.row(ours_and_eager(PURE)[0])
    described = FAMILY[member]
    return FamilyRow(
        member, described.title, described.reads, ours, eager, pure.total_ms, load_average
    )


def notes(device: str) -> list[str]:
    """How to read the columns."""
    return [
        "Ours, eager PyTorch and ours of pure forward KL, each in a process of its own, "
        f"{time_note(device)}",
        "reads: of both logits in forward; backward reads once more and writes d logits. Eager: "
        "loss_bench/eager.py, in float32.",
        f"% logits: growth of {memory_note(device)}, of ONE logits tensor. The gradient is "
        "included; ours overwrites the logits.",
        "err: against float64 on the same rounded inputs; loss relative, gradient |g - g64| / "
        f"|g64| of {DOCUMENT_TOKENS} tokens. Beyond the limits of results.py: void.",
    ]


def _cells(row: FamilyRow) -> list[str]:
    ours, eager = row.ours, row.eager
    failures = [
        f"{who}: {side.status}, {side.reason}"
        for who, side in (("ours", ours), ("eager", eager))
        if side.status != "ok"
    ]
    title = f"{row.title} ({'; '.join(failures)})" if failures else row.title
    return [
        title,
        str(row.reads),
        number(ours.total_ms, ".1f"),
        number(eager.total_ms, ".0f"),
        number(eager.times_ours, ".1f"),
        number(row.over_forward_kl, ".2f"),
        *(number(side.extra_fraction and 100 * side.extra_fraction, ".2f") for side in (ours,)),
        *(number(side.extra_fraction and 100 * side.extra_fraction, ".0f") for side in (eager,)),
        *(
            number(error, ".0e")
            for side in (ours, eager)
            for error in (side.loss_error, side.gradient_error)
        ),
    ]


def print_result(console: Console, result: FamilyResult) -> None:
    table = Table(title=result.caption, title_justify="left")
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if i else "left", max_width=30 if i == 0 else 8)
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)


def markdown(machine: dict[str, Any], results: list[FamilyResult]) -> str:
    lines = [*header(machine), ""]
    for result in results:
        lines += [f"**{result.caption}**", ""]
        lines += [markdown_line(_COLUMNS), markdown_line(["---", *["--:"] * (len(_COLUMNS) - 1)])]
        lines += [markdown_line(_cells(row)) for row in result.rows] + [""]
    lines += [f"* {note}" for note in notes(machine["device"])] + [""]
    lines += [f"* {line}" for line in aims(machine["device"], results)]
    return "\n".join(lines) + "\n"


def aims(device: str, results: list[FamilyResult]) -> Iterator[str]:
    """One line per aim of the CPU: how many rows reach it, and those that do not."""
    if device != "cpu":
        return
    rows = {
        f"{row.title}, V = {result.vocab_size:,} {result.dtype}": row
        for result in results
        for row in result.rows
    }
    for reads, least in _AIM_SPEED.items():
        speed = {
            where: row.eager.times_ours
            for where, row in rows.items()
            if row.reads == reads and row.eager.times_ours is not None
        }
        missed = {where: f"{x:.1f}" for where, x in speed.items() if x < least}
        yield aim(f"reads = {reads}: {least:g} times as fast as eager PyTorch", speed, missed)
    hybrids = {
        where: row.over_forward_kl
        for where, row in rows.items()
        if FAMILY[row.member].is_hybrid and row.over_forward_kl is not None
    }
    missed = {where: f"{x:.2f}" for where, x in hybrids.items() if x > _AIM_HYBRID}
    yield aim(
        f"a hybrid takes at most {_AIM_HYBRID:g} times as long as forward KL", hybrids, missed
    )
    memory = {
        where: row.ours.extra_fraction
        for where, row in rows.items()
        if row.ours.extra_fraction is not None
    }
    missed = {where: f"{x:.2%}" for where, x in memory.items() if x >= _AIM_MEMORY}
    yield aim(f"extra memory of ours below {_AIM_MEMORY:.0%} of one logits tensor", memory, missed)
