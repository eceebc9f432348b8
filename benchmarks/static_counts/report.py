"""The comparison as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from static_counts.comparison import Row
from static_counts.kernels import KernelCount

PIPES = ("fma", "alu", "mufu", "lsu", "control")


def losses_table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| loss, forward and backward | V on a rank | bytes of kernels (SASS) | "
        "bytes of torch operations (code) | bytes | instructions, loops (SASS) | "
        "... with the row's end | EX2 |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    subject = ""
    for row in rows:
        if row.subject != subject:
            subject = row.subject
            yield f"| **{subject}** | | | | | | | |"
        cells = [row.loss, f"{row.num_columns:,}"]
        if row.reason:
            yield f"| {' | '.join(cells)} | not counted: {_cell(row.reason)} | | | | | |"
            continue
        # The instructions of torch's own kernels are not known.
        more = " + torch" if row.torch_operations else ""
        cells += [
            f"{row.kernel_bytes:g}",
            f"{row.torch_bytes:.3g}",
            f"**{row.kernel_bytes + row.torch_bytes:.3g}**",
            f"{row.loop_instructions:.1f}{more}",
            f"{row.row_instructions:.1f}{more}",
            f"{row.exponentials:.2f}{more}",
        ]
        yield f"| {' | '.join(cells)} |"


def kernels_table(rows: Sequence[Row]) -> Iterator[str]:
    """Each kernel once for each number of columns, a line for each pass over the row."""
    pipes = " | ".join(PIPES)
    yield (
        "| kernel, pass | V on a rank | threads | registers | stack | positions in an iteration | "
        f"loaded + stored | narrow | instructions | {pipes} | spills |"
    )
    yield "|---|---|---|---|---|---|---|---|---|" + "---|" * (len(PIPES) + 1)
    lines = [
        _pass_line(kernel, number, row.num_columns)
        for row in rows
        for kernel in row.kernels
        for number in range(len(kernel.passes))
    ]
    yield from dict.fromkeys(lines)


def _pass_line(kernel: KernelCount, number: int, num_columns: int) -> str:
    part = kernel.passes[number]
    name = kernel.name if len(kernel.passes) == 1 else f"{kernel.name}, {number + 1}"
    cells = [
        name,
        f"{num_columns:,}",
        str(kernel.threads),
        str(kernel.registers),
        str(kernel.stack),
        f"{part.columns:g}",
        f"{part.loaded:g} + {part.stored:g}",
        str(part.loop.narrow),
        f"{part.loop.instructions / part.columns:.1f}",
        *(f"{part.loop.pipes.get(pipe, 0) / part.columns:.2f}" for pipe in PIPES),
        str(part.loop.spills),
    ]
    return f"| {' | '.join(cells)} |"


def operations_list(rows: Sequence[Row]) -> Iterator[str]:
    """What torch does besides the kernels."""
    for row in rows:
        if row.torch_operations:
            listed = ", ".join(f"{name} {count:g}" for name, count in row.torch_operations)
            yield f"* {row.loss} ({row.subject}, {row.num_columns:,} columns): {listed}"


def document(rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "facts": facts,
        "rows": [
            asdict(row)
            | {
                "kernel_bytes": row.kernel_bytes,
                "torch_bytes": row.torch_bytes,
                "loop_instructions": row.loop_instructions,
                "row_instructions": row.row_instructions,
                "exponentials": row.exponentials,
            }
            for row in rows
        ],
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
