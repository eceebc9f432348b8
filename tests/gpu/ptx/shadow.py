"""Data races: for every cell of memory, who touched it last and whether that happened before.

A cell is 16 bytes as long as only accesses of 16 bytes or more touch it; then it is split into
cells of the kernel's narrowest access. Two accesses of one cell by different threads race when at
least one is a plain write, or one writes and exactly one is atomic, and neither happened before the
other (clocks.py). As in FastTrack (Flanagan and Freund 2009) a cell keeps a summary, not a history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .clocks import Clocks
from .operation import Array

READ, WRITE, STRONG_READ, STRONG_WRITE = range(4)  # strong: atomic, volatile, relaxed, ...
NAMES = ("read", "write", "atomic read", "atomic")
CONFLICTS = {
    READ: (WRITE, STRONG_WRITE),
    WRITE: (WRITE, READ, STRONG_READ, STRONG_WRITE),
    STRONG_READ: (WRITE,),
    STRONG_WRITE: (WRITE, READ),
}
WIDE = 16
THREAD = (1 << 28) - 1  # the low bits of `who`: thread number + 1; above: which others (clocks.py)


@dataclass(frozen=True)
class Race:
    """An access (lane of the chunk) and an earlier one (thread of the grid) that it races with."""

    kind: str
    lane: int
    thread: int
    code: int  # index of the earlier instruction
    cells: int


class Summary:
    """One kind of access to the cells of one resolution."""

    def __init__(self, cells: int) -> None:
        self.who = np.zeros(cells, np.int32)
        self.stamp = np.zeros(cells, np.int64)
        self.code = np.zeros(cells, np.int32)

    def overwrite(self, cells: Array, who: Array, stamp: Array, code: int | Array) -> None:
        self.who[cells] = who
        self.stamp[cells] = stamp
        self.code[cells] = code

    def clear(self, cells: Array) -> None:
        self.who[cells] = 0

    def add(self, cells: Array, lanes: Array, code: int, clocks: Clocks) -> None:
        """Remember these accesses besides those that are there."""
        me, stamp = clocks.ids[lanes], clocks.stamp[lanes]
        who = self.who.take(cells)
        if who.any():
            owner = (who & THREAD) - 1
            same_block = owner // clocks.block_size == me // clocks.block_size
            # neither we ourselves nor what a barrier ordered before us needs a place beside us
            old = self.stamp[cells] < clocks.seen_block[lanes]
            replace = (who == 0) | (who == me + 1) | (same_block & (who >> 28 <= 2) & old)
        else:
            replace = np.ones(len(cells), bool)
        if replace.all():
            self.overwrite(cells, me + 1, stamp, code)
        else:
            self.overwrite(cells[replace], me[replace] + 1, stamp[replace], code)
        who = self.who.take(cells)
        beside = np.flatnonzero(who != me + 1)
        if len(beside):
            self._join(cells[beside], who[beside], me[beside], stamp[beside], clocks)

    def _join(self, cells: Array, who: Array, me: Array, stamp: Array, clocks: Clocks) -> None:
        owner = (who & THREAD) - 1
        others = np.full(len(cells), 4, np.int32)
        others[owner // clocks.cluster_lanes == me // clocks.cluster_lanes] = 3
        others[owner // clocks.block_size == me // clocks.block_size] = 2
        others[owner // 32 == me // 32] = 1
        others[owner == me] = 0
        # the owner of a cell is one, so the larger number is the wider circle
        np.maximum.at(self.who, cells, (others << 28) | (who & THREAD))
        np.maximum.at(self.stamp, cells, stamp)


class Cells:
    def __init__(self, count: int) -> None:
        self.count = count
        self.summaries: list[Summary | None] = [None] * 4

    def summary(self, kind: int) -> Summary:
        found = self.summaries[kind]
        if found is None:
            found = self.summaries[kind] = Summary(self.count)
        return found


class Shadow:
    """The cells of one memory during one launch."""

    def __init__(self, size: int, grain: int) -> None:
        self.grain = grain
        self.wide = Cells(size // WIDE)
        self.fine = Cells(size // grain)
        self.split = np.zeros(size // WIDE, bool)
        # In kernels with fences: cell -> thread -> stamp of its fence before its atomic, or 0.
        self.atomics: dict[int, dict[int, int]] = {}

    def access(
        self,
        offsets: Array,
        size: int,
        lanes: Array,
        kind: int,
        code: int,
        clocks: Clocks,
        report: Callable[[Race], None],
    ) -> None:
        cells, where, fold = self._locate(offsets, size)
        if fold > 1:
            lanes = np.repeat(lanes, fold)
        for earlier in CONFLICTS[kind]:
            summary = cells.summaries[earlier]
            if summary is not None:
                self._check(summary, earlier, where, lanes, kind, clocks, report)
        summary = cells.summary(kind)
        if kind != WRITE:
            summary.add(where, lanes, code, clocks)
            if kind == STRONG_WRITE and clocks.tracks_fences:
                self._note_fences(where, lanes, clocks)
            return
        who = clocks.ids[lanes] + 1
        summary.overwrite(where, who, clocks.stamp[lanes], code)
        lost = np.flatnonzero(summary.who.take(where) != who)
        if len(lost):
            winner = int(summary.who[where[lost[0]]]) - 1
            report(
                Race(
                    "write and write in one instruction",
                    int(lanes[lost[0]]),
                    winner,
                    code,
                    len(lost),
                )
            )
        for other in (READ, STRONG_READ, STRONG_WRITE):
            other_summary = cells.summaries[other]
            if other_summary is not None:
                other_summary.clear(where)

    def was_written(self, offsets: Array, size: int) -> Array:
        """For each access, whether this launch has written a part of it."""
        cells, where, fold = self._locate(offsets, size)
        written = np.zeros(len(where), bool)
        for kind in (WRITE, STRONG_WRITE):
            summary = cells.summaries[kind]
            if summary is not None:
                written |= summary.who.take(where) != 0
        return np.asarray(written.reshape(-1, fold).any(axis=1))

    def _locate(self, offsets: Array, size: int) -> tuple[Cells, Array, int]:
        """The cells of these accesses, and how many each has."""
        units = offsets >> 4
        if size % WIDE == 0:
            fold = size // WIDE
            if fold > 1:
                units = (units[:, None] + np.arange(fold)).ravel()
            if not self.split.take(units).any():
                return self.wide, units, fold
        whole = ~self.split.take(units)
        if whole.any():
            self._split(np.unique(units[whole]))
        fold = size // self.grain
        where = offsets // self.grain
        if fold > 1:
            where = (where[:, None] + np.arange(fold)).ravel()
        return self.fine, where, fold

    def _split(self, units: Array) -> None:
        self.split[units] = True
        per_unit = WIDE // self.grain
        cells = (units[:, None] * per_unit + np.arange(per_unit)).ravel()
        for kind, wide in enumerate(self.wide.summaries):
            if wide is not None:
                self.fine.summary(kind).overwrite(
                    cells,
                    np.repeat(wide.who[units], per_unit),
                    np.repeat(wide.stamp[units], per_unit),
                    np.repeat(wide.code[units], per_unit),
                )

    def _check(
        self,
        summary: Summary,
        earlier: int,
        where: Array,
        lanes: Array,
        kind: int,
        clocks: Clocks,
        report: Callable[[Race], None],
    ) -> None:
        who = summary.who.take(where)
        suspects = np.flatnonzero((who != 0) & (who != clocks.ids[lanes] + 1))
        if not len(suspects):
            return
        who, lanes, where = who[suspects], lanes[suspects], where[suspects]
        owner = (who & THREAD) - 1
        ordered = clocks.ordered(who >> 28, owner, summary.stamp[where], lanes)
        if earlier == STRONG_WRITE:
            for k in np.flatnonzero(~ordered):
                ordered[k] = self._atomics_known(int(where[k]), int(lanes[k]), clocks)
        racing = np.flatnonzero(~ordered)
        if len(racing):
            first = racing[0]
            report(
                Race(
                    f"{NAMES[kind]} after {NAMES[earlier]}",
                    int(lanes[first]),
                    int(owner[first]),
                    int(summary.code[where[first]]),
                    len(racing),
                )
            )

    def _note_fences(self, where: Array, lanes: Array, clocks: Clocks) -> None:
        for cell, lane in zip(where.tolist(), lanes.tolist(), strict=True):
            stamp = int(clocks.fence_stamp[lane])
            self.atomics.setdefault(cell, {})[int(clocks.ids[lane])] = stamp

    def _atomics_known(self, cell: int, lane: int, clocks: Clocks) -> bool:
        """An atomic after a fence happened before whoever knows of that fence: it was the atomic
        itself that published it."""
        me = int(clocks.ids[lane])
        threads = self.atomics.get(cell)
        return bool(threads) and all(
            stamp > 0 and (thread == me or clocks.knows_thread(lane, thread, stamp - 1))
            for thread, stamp in (threads or {}).items()
        )
