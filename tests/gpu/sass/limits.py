"""Limits of kernels, from a TOML file in which each has its reason.

    [[kernel]]
    name = "vocab_stats_kernelILi256E"   # a part of the mangled name
    threads = 256                        # of a block
    pair_bytes = 4                       # the main loop loads for each logit pair
    dynamic_shared = 0                   # optional: bytes; counted = "stores" counts stored bytes
    targets = ["sm_90a"]                 # optional: only for these
    [kernel.limits]
    registers = { max = 32, reason = "eight blocks of 256 for each SM" }
    "MUFU.EX2" = { max = 2.25, reason = "one exponential for each logit, one for eight to rescale" }
    "margin.H100" = { min = 1.3, reason = "memory must stay the bound" }

A limit is on a figure (figures.Figures), an opcode of the main loop for each pair, a pipe
("pipe.mufu"), or a GPU's margin, occupancy or in_flight (a share of what Little's law asks for).
Whatever a file says: no spills, no stack, and no narrow access in the main loop, unless it has a
limit of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disassembly import SassKernel
from .figures import Figures, measure

ALWAYS = {"spills": 0, "stack": 0, "narrow": 0}
PLAIN = ("registers", "stack", "shared", "spills", "pairs", "narrow", "loaded_bytes",
         "stored_bytes", "instructions")  # fmt: skip


@dataclass(frozen=True)
class Limit:
    figure: str
    minimum: float | None
    maximum: float | None
    reason: str


@dataclass(frozen=True)
class KernelLimits:
    name: str
    threads: int
    pair_bytes: int
    counted: str
    dynamic_shared: int
    targets: tuple[str, ...]
    limits: tuple[Limit, ...]

    def applies_to(self, kernel: SassKernel) -> bool:
        return self.name in kernel.name and (not self.targets or kernel.target in self.targets)

    def figures(self, kernel: SassKernel) -> Figures:
        return measure(
            kernel, threads=self.threads, pair_bytes=self.pair_bytes, counted=self.counted,
            dynamic_shared=self.dynamic_shared,
        )  # fmt: skip

    def breaches(self, figures: Figures) -> Iterator[str]:
        """One line for each limit that does not hold. A limit on a GPU of another architecture
        holds."""
        given = {limit.figure for limit in self.limits}
        always = [Limit(f, None, m, "") for f, m in ALWAYS.items() if f not in given]
        for limit in (*self.limits, *always):
            value = value_of(figures, limit.figure)
            if value is None:
                continue
            reason = f" ({limit.reason})" if limit.reason else ""
            place = f"{figures.kernel} {figures.target}: {limit.figure} = {value:.3g}"
            if limit.maximum is not None and value > limit.maximum:
                yield f"{place} > {limit.maximum}{reason}"
            if limit.minimum is not None and value < limit.minimum:
                yield f"{place} < {limit.minimum}{reason}"


def value_of(figures: Figures, name: str) -> float | None:
    if name in PLAIN:
        return float(getattr(figures, name))
    kind, _, rest = name.partition(".")
    if kind == "pipe":
        return figures.pipes.get(rest, 0.0)
    if kind in ("margin", "occupancy", "in_flight"):
        roofline = figures.rooflines.get(rest)
        if roofline is None:
            return None
        if kind == "in_flight":
            return roofline.bytes_in_flight / roofline.bytes_needed
        return float(getattr(roofline, kind))
    if not name[:1].isupper():
        raise ValueError(f"limits file: unknown figure {name!r}")
    return figures.opcodes.get(name, 0.0)


def read_limits(path: Path) -> list[KernelLimits]:
    with path.open("rb") as file:
        entries = tomllib.load(file)["kernel"]
    return [_kernel_limits(path, entry) for entry in entries]


def _kernel_limits(path: Path, entry: dict[str, Any]) -> KernelLimits:
    limits = []
    for figure, limit in entry.get("limits", {}).items():
        unknown = limit.keys() - {"min", "max", "reason"}
        if unknown or not limit.get("reason") or not limit.keys() & {"min", "max"}:
            raise ValueError(
                f"{path}, {entry['name']}, {figure}: expected min or max, and a reason; got {limit}"
            )
        limits.append(Limit(figure, limit.get("min"), limit.get("max"), limit["reason"]))
    return KernelLimits(
        entry["name"],
        entry["threads"],
        entry["pair_bytes"],
        entry.get("counted", "loads"),
        entry.get("dynamic_shared", 0),
        tuple(entry.get("targets", ())),
        tuple(limits),
    )
