"""The check of cubins against a limits file, for tests and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .disassembly import disassemble
from .figures import Figures
from .limits import KernelLimits


@dataclass
class Report:
    figures: list[Figures] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    without_limits: list[str] = field(default_factory=list)  # kernels


def check(cubins: Sequence[Path], limits: Sequence[KernelLimits]) -> Report:
    """Measures every kernel that has limits. A cubin without one is a breach, so that a renamed
    kernel does not pass."""
    report = Report()
    for cubin in cubins:
        applied = 0
        for kernel in disassemble(cubin):
            entries = [entry for entry in limits if entry.applies_to(kernel)]
            applied += len(entries)
            if not entries:
                report.without_limits.append(kernel.name)
            for entry in entries:
                figures = entry.figures(kernel)
                report.figures.append(figures)
                report.breaches += entry.breaches(figures)
        if not applied:
            report.breaches.append(f"{cubin.name}: none of its kernels has limits")
    return report


def describe(figures: Figures) -> str:
    opcodes = ", ".join(f"{n} {v:.2f}" for n, v in sorted(figures.opcodes.items()) if v >= 0.2)
    lines = [
        f"{figures.kernel} {figures.target}: {figures.registers} registers, {figures.stack} bytes"
        f" of stack, {figures.spills} spills, {figures.shared} bytes shared",
        f"  for each pair ({figures.pairs:g} in an iteration): {figures.loaded_bytes:g} bytes"
        f" loaded, {figures.stored_bytes:g} stored, {figures.instructions:.2f} instructions:"
        f" {opcodes}",
    ]
    for name, roof in figures.rooflines.items():
        pipes = ", ".join(f"{n} {v:.1f}" for n, v in sorted(roof.pipes.items(), key=lambda p: p[1]))
        lines.append(
            f"  {name}: {roof.blocks_per_sm} blocks/SM, occupancy {roof.occupancy:.0%};"
            f" pairs/clock/SM: memory {roof.memory:.2f}, {pipes}; margin {roof.margin:.2f};"
            f" {roof.bytes_in_flight:.0f} bytes in flight of {roof.bytes_needed:.0f} needed"
        )
    return "\n".join(lines)


def table(all_figures: Sequence[Figures]) -> str:
    """A row in Markdown for each kernel or loop with a title: figures of each target, and
    the margins of all GPUs; in bold where memory is not the bound."""
    gpus = list(dict.fromkeys(gpu for f in all_figures for gpu in f.rooflines))
    lines = [
        f"| kernel | registers | bytes | instructions | EX2 | {' | '.join(gpus)} |",
        "|---|---|---|---|---|" + "---|" * len(gpus),
    ]
    by_title: dict[str, list[Figures]] = {}
    for figures in all_figures:
        if figures.title:
            by_title.setdefault(figures.title, []).append(figures)

    for title, targets in by_title.items():
        margins = {gpu: roof.margin for f in targets for gpu, roof in f.rooflines.items()}
        cells = [f"{m:.2f}" if m >= 1.0 else f"**{m:.2f}**" for m in map(margins.get, gpus) if m]
        registers = ", ".join(str(f.registers) for f in targets)
        instructions = ", ".join(f"{f.instructions:.1f}" for f in targets)
        exponentials = ", ".join(f"{f.opcodes.get('MUFU.EX2', 0.0):.1f}" for f in targets)
        last = targets[-1]
        lines.append(
            f"| {title} | {registers} | {last.loaded_bytes:g} + {last.stored_bytes:g} | "
            f"{instructions} | {exponentials} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)
