"""Counts of one launch: instructions, active lanes, and what was asked of memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .operation import Array

SECTOR = 32  # bytes, the unit in which global memory is fetched
BANKS = 32


@dataclass
class Traffic:
    requests: int = 0  # one for each warp that executes the instruction
    bytes: int = 0
    sectors: int = 0  # global: 32-byte sectors touched, counted for each request
    wavefronts: int = 0  # shared: passes; bytes / 128 when nothing conflicts and no lane is idle


@dataclass
class Profile:
    instructions: Counter[str] = field(default_factory=Counter)  # by warp
    lanes: Counter[str] = field(default_factory=Counter)  # by thread
    traffic: dict[str, Traffic] = field(default_factory=dict)  # "load global", "store shared", ...

    @property
    def active_lanes(self) -> float:
        """Mean share of a warp's lanes that execute."""
        return sum(self.lanes.values()) / 32 / max(1, sum(self.instructions.values()))

    def count(self, name: str, warps: Array | None, num_lanes: int) -> None:
        self.instructions[name] += num_lanes // 32 if warps is None else len(np.unique(warps))
        self.lanes[name] += num_lanes

    def access(self, what: str, space: str, offsets: Array, size: int, warps: Array) -> None:
        traffic = self.traffic.setdefault(f"{what} {space}", Traffic())
        traffic.requests += len(np.unique(warps))
        traffic.bytes += len(offsets) * size
        if space == "global":
            # an access is aligned to its size: it touches one sector, or whole ones
            first = warps * (1 << 40) + offsets // SECTOR
            spans = np.arange(max(1, size // SECTOR))
            traffic.sectors += len(np.unique(first[:, None] + spans))
        else:
            traffic.wavefronts += _wavefronts(offsets, size, warps)


def _wavefronts(offsets: Array, size: int, warps: Array) -> int:
    """Different words in one bank are served one after the other. A warp's 8- and 16-byte accesses
    are served half a warp and a quarter of a warp at a time."""
    words_each = max(1, size // 4)
    part = np.arange(len(offsets)) % 32 * words_each // 32
    key = (warps * 32 + part)[:, None] * (1 << 40) + offsets[:, None] // 4 + np.arange(words_each)
    words = np.unique(key)
    bank = (words >> 40) * BANKS + (words & ((1 << 40) - 1)) % BANKS
    banks, counts = np.unique(bank, return_counts=True)  # sorted, so that groups are together
    starts = np.flatnonzero(np.diff(banks // BANKS, prepend=-1))
    return int(np.maximum.reduceat(counts, starts).sum())
