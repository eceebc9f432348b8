"""Limits of kernels, from a TOML file in which each has its reason.

    [family.statistics]                  # optional: what several kernels have in common
    threads = 256                        # of a block
    pair_bytes = 4                       # that the main loop loads for each pair; 0: no loop counts
    [family.statistics.limits]
    registers = { max = 32, reason = "eight blocks of 256 for each SM" }

    [[kernel]]
    family = "statistics"                # optional
    name = "vocab_stats_kernelILi256E"   # a part of the mangled name; * stands for anything
    title = "statistics"                 # optional: in tables
    loop = [2, 4]                        # optional: the second cheapest of four for gradients
    both_loops = true                    # optional: the main loop, then that one
    dynamic_shared = 0                   # optional: bytes; counted = "stores" counts stored bytes
    targets = ["sm_90a"]                 # optional: only for these
    [kernel.limits]
    "MUFU.EX2" = { max = 2.25, reason = "one exponential for each logit, one for eight to rescale" }
    margin = { min = { H100 = 1.3, H200 = 1.1 }, reason = "memory must stay the bound" }

A limit is on a figure (figures.Figures), an opcode of the main loop for each pair, a pipe
("pipe.mufu"), or the GPUs' margin, occupancy or in_flight (a share of what Little's law asks for),
one by one or as "margin.H100". Whatever a file says: no spills, no stack, and no narrow access in
the main loop, unless it has a limit of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
    loop: tuple[int, int] | None
    both_loops: bool
    title: str
    targets: tuple[str, ...]
    limits: tuple[Limit, ...]

    def applies_to(self, kernel: SassKernel) -> bool:
        if self.targets and kernel.target not in self.targets:
            return False
        return self.matches(kernel.name)

    def matches(self, kernel: str) -> bool:
        return fnmatchcase(kernel, f"*{self.name}*")

    def figures(self, kernel: SassKernel) -> Figures:
        return measure(
            kernel, threads=self.threads, pair_bytes=self.pair_bytes, counted=self.counted,
            dynamic_shared=self.dynamic_shared, loop_place=self.loop,
            both_loops=self.both_loops, title=self.title,
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
            place = " ".join(filter(None, (figures.kernel, figures.title, figures.target)))
            place += f": {limit.figure} = {value:.3g}"
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
        read = tomllib.load(file)
    families = read.get("family", {})
    return [_kernel_limits(path, _with_family(entry, families)) for entry in read["kernel"]]


def _with_family(entry: dict[str, Any], families: dict[str, dict[str, Any]]) -> dict[str, Any]:
    family = families[entry["family"]] if "family" in entry else {}
    return {**family, **entry, "limits": {**family.get("limits", {}), **entry.get("limits", {})}}


def _kernel_limits(path: Path, entry: dict[str, Any]) -> KernelLimits:
    limits = []
    for figure, limit in entry["limits"].items():
        unknown = limit.keys() - {"min", "max", "reason"}
        if unknown or not limit.get("reason") or not limit.keys() & {"min", "max"}:
            raise ValueError(
                f"{path}, {entry['name']}, {figure}: expected min or max, and a reason; got {limit}"
            )
        limits += _limits(figure, limit)
    place, count = entry.get("loop", (0, 0))
    return KernelLimits(
        name=entry["name"],
        title=entry.get("title", ""),
        threads=entry["threads"],
        pair_bytes=entry["pair_bytes"],
        counted=entry.get("counted", "loads"),
        dynamic_shared=entry.get("dynamic_shared", 0),
        loop=(place, count) if count else None,
        both_loops=entry.get("both_loops", False),
        targets=tuple(entry.get("targets", ())),
        limits=tuple(limits),
    )


def _limits(figure: str, limit: dict[str, Any]) -> Iterator[Limit]:
    """One, or one for each GPU."""
    minimum, maximum = limit.get("min"), limit.get("max")
    if not isinstance(minimum, dict):
        yield Limit(figure, minimum, maximum, limit["reason"])
        return
    for gpu, value in minimum.items():
        yield Limit(f"{figure}.{gpu}", value, maximum, limit["reason"])
