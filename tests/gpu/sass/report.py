"""The check of cubins against a limits file, for tests and for the command line."""

from __future__ import annotations

import re
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


def table(all_figures: Sequence[Figures]) -> str:
    """A row for each kernel in Markdown, with the figures of its last target and the margins of all
    GPUs; in bold where memory is not the bound."""
    gpus = list(dict.fromkeys(gpu for f in all_figures for gpu in f.rooflines))
    lines = [
        f"| kernel | registers | bytes | instructions | EX2 | {' | '.join(gpus)} |",
        "|---|---|---|---|---|" + "---|" * len(gpus),
    ]
    by_kernel: dict[str, list[Figures]] = {}
    for figures in all_figures:
        by_kernel.setdefault(_short_name(figures.kernel), []).append(figures)
    for name, targets in by_kernel.items():
        margins = {gpu: roof.margin for f in targets for gpu, roof in f.rooflines.items()}
        cells = [f"{m:.2f}" if m >= 1.0 else f"**{m:.2f}**" for m in map(margins.get, gpus) if m]
        last = targets[-1]
        lines.append(
            f"| {name} | {last.registers} | {last.loaded_bytes:g} + {last.stored_bytes:g} | "
            f"{last.instructions:.1f} | {last.opcodes.get('MUFU.EX2', 0.0):.2f} | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _short_name(mangled: str) -> str:
    """ "fused bfloat16 63" of _ZN4bgkd12fused_kernelI13__nv_bfloat16Lj63EEEv..."""
    found = re.match(
        r"_ZN4bgkd\d+(\w+?)_kernelI(?:\d+__(?:nv_)?)?([a-z0-9]+?)(?:Lj(\d+)E)?E", mangled
    )
    return " ".join(filter(None, found.groups())) if found else mangled
