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


def check(cubins: Sequence[Path], limits: Sequence[KernelLimits]) -> Report:
    """Measures every kernel that has limits. A cubin without one is a breach, so that a renamed
    kernel does not pass."""
    report = Report()
    for cubin in cubins:
        applied = 0
        for kernel in disassemble(cubin):
            for entry in limits:
                if entry.applies_to(kernel):
                    figures = entry.figures(kernel)
                    report.figures.append(figures)
                    report.breaches += entry.breaches(figures)
                    applied += 1
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
