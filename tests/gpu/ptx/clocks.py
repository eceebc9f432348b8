"""What happened before what: logical time of every thread, and what each thread knows of others.

A stamp counts, from the top bits down, cluster barriers, block barriers, and smaller steps (warp
barriers, fences). All threads of a cluster (block) have the same stamp after its barrier, so one
number per thread says what it knows: `seen_block` orders every event of its own block with a
smaller stamp before its next one, `seen_cluster` every such event of its cluster. Within a warp,
`seen_warp` is a vector clock. Across clusters, order comes only from a release and an acquire on
the same atomic variable, as the PTX memory model defines them; each lane then points to a row of
the launch's Knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .operation import Array

STEP_BITS, BARRIER_BITS = 20, 22
BARRIER = 1 << STEP_BITS
PHASE = 1 << (STEP_BITS + BARRIER_BITS)


@dataclass
class Row:
    """Known: events of block b before blocks[b], events of thread t before threads[t]."""

    blocks: Array
    threads: dict[int, int] = field(default_factory=dict)


class Knowledge:
    """Of one launch: what was published through atomic variables."""

    def __init__(self, num_blocks: int) -> None:
        self.rows = [Row(np.zeros(num_blocks, np.int64))]
        self.published: dict[object, int] = {}  # variable -> row
        self._merged: dict[tuple[int, int], int] = {}

    def add(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def merge(self, a: int, b: int) -> int:
        if a == b or b == 0:
            return a
        if a == 0:
            return b
        key = (min(a, b), max(a, b))
        if key not in self._merged:
            x, y = self.rows[a], self.rows[b]
            threads = dict(x.threads)
            for thread, stamp in y.threads.items():
                threads[thread] = max(stamp, threads.get(thread, 0))
            self._merged[key] = self.add(Row(np.maximum(x.blocks, y.blocks), threads))
        return self._merged[key]


class Clocks:
    """Of the threads of one chunk. Lanes are numbered within the chunk; `ids` within the grid."""

    def __init__(
        self,
        ids: Array,
        block_size: int,
        cluster_size: int,
        knowledge: Knowledge,
        tracks_fences: bool,
    ) -> None:
        lanes = len(ids)
        self.ids = ids
        self.block_size = block_size
        self.cluster_lanes = block_size * cluster_size
        self.knowledge = knowledge
        self.tracks_fences = tracks_fences  # the kernel has some
        self.stamp = np.zeros(lanes, np.int64)
        self.seen_block = np.zeros(lanes, np.int64)
        self.seen_cluster = np.zeros(lanes, np.int64)
        self.seen_warp: Array | None = None  # (lanes, 32), made at the first warp barrier
        self.row = np.zeros(lanes, np.int64)
        self.fence_stamp = np.zeros(lanes, np.int64)  # 0: no fence yet
        self.fence_row = np.zeros(lanes, np.int64)
        self.observed: dict[int, int] = {}  # lane -> row it may acquire at its next fence

    # ---- barriers

    def block_barrier(self, blocks: Array) -> None:
        """blocks: numbers within the chunk, whose threads have all met."""
        stamps = self.stamp.reshape(-1, self.block_size)
        new = (stamps[blocks].max(1) // BARRIER + 1) * BARRIER
        stamps[blocks] = new[:, None]
        self.seen_block.reshape(-1, self.block_size)[blocks] = new[:, None]
        seen = self.seen_cluster.reshape(-1, self.block_size)
        seen[blocks] = seen[blocks].max(1)[:, None]
        if len(self.knowledge.rows) > 1:
            for block in blocks:
                self._share_rows(slice(block * self.block_size, (block + 1) * self.block_size))

    def cluster_arrive(self, lanes: Array) -> None:
        self.stamp[lanes] = (self.stamp[lanes] // PHASE + 1) * PHASE

    def cluster_complete(self, cluster: int) -> None:
        """All threads arrived: what they published by arriving is there for those who wait."""
        if len(self.knowledge.rows) > 1:
            self._share_rows(
                slice(cluster * self.cluster_lanes, (cluster + 1) * self.cluster_lanes)
            )

    def cluster_wait(self, lanes: Array, released: Array) -> None:
        """released: False where some thread of the cluster arrived without releasing."""
        seen = self.stamp[lanes] // PHASE * PHASE
        seen = np.where(released, seen, self.seen_cluster[lanes])
        self.seen_cluster[lanes] = seen
        self.seen_block[lanes] = np.maximum(self.seen_block[lanes], seen)

    def warp_barrier(self, lanes: Array) -> None:
        """Of one set of threads of one warp, or of whole warps (each synchronised with itself)."""
        if self.seen_warp is None:
            self.seen_warp = np.zeros((len(self.ids), 32), np.int64)
        whole = len(lanes) % 32 == 0
        groups = lanes.reshape(-1, 32) if whole else lanes[None, :]
        new = self.stamp[groups].max(1) + 1
        self.stamp[groups] = new[:, None]
        clock = self.seen_warp[groups].max(1)
        position = groups[0] % 32
        clock[:, position] = new[:, None]
        self.seen_warp[groups] = clock[:, None, :]
        for seen in (self.seen_block, self.seen_cluster):
            seen[groups] = seen[groups].max(1)[:, None]
        if len(self.knowledge.rows) > 1:
            for group in groups:
                self._share_rows(group)

    def _share_rows(self, lanes: slice | Array) -> None:
        rows = np.unique(self.row[lanes])
        if len(rows) > 1:
            merged = 0
            for row in rows:
                merged = self.knowledge.merge(merged, int(row))
            self.row[lanes] = merged

    # ---- release and acquire

    def fence(self, lanes: Array) -> None:
        """fence.acq_rel or .sc, at device scope or wider: what the lanes observed in atomic
        variables they now know; what they did before, their next atomic publishes."""
        for lane in self.observed.keys() & set(lanes.tolist()):
            self.row[lane] = self.knowledge.merge(int(self.row[lane]), self.observed.pop(lane))
        self.stamp[lanes] += 1
        self.fence_stamp[lanes] = self.stamp[lanes]
        self.fence_row[lanes] = self.row[lanes]

    def publish(self, lane: int, variable: object, *, modify: bool) -> None:
        """An atomic write by a lane. A read-modify-write passes on what was published before."""
        previous = self.knowledge.published.get(variable, 0) if modify else 0
        if self.fence_stamp[lane]:
            source = self.knowledge.rows[int(self.fence_row[lane])]
            blocks = source.blocks.copy()
            block = int(self.ids[lane]) // self.block_size
            per_cluster = self.cluster_lanes // self.block_size
            first = block // per_cluster * per_cluster
            cluster = slice(first, first + per_cluster)
            blocks[cluster] = np.maximum(blocks[cluster], self.seen_cluster[lane])
            blocks[block] = max(blocks[block], self.seen_block[lane])
            threads = {**source.threads, int(self.ids[lane]): int(self.fence_stamp[lane])}
            own = self.knowledge.add(Row(blocks, threads))
            self.knowledge.published[variable] = self.knowledge.merge(previous, own)
        else:
            self.knowledge.published[variable] = previous

    def observe(self, lane: int, variable: object) -> None:
        """An atomic read by a lane."""
        row = self.knowledge.published.get(variable, 0)
        if row:
            self.observed[lane] = self.knowledge.merge(self.observed.get(lane, 0), row)

    # ---- the question

    def ordered(self, others: Array, owner: Array, stamp: Array, lanes: Array) -> Array:
        """Whether earlier accesses happened before what `lanes` do now.

        owner: a thread that accessed (its number in the grid); others: which threads did besides
        it, 0 none, 1 of its warp, 2 of its block, 3 of its cluster, 4 anywhere; stamp: the latest.
        """
        me = self.ids[lanes]
        same_block = owner // self.block_size == me // self.block_size
        same_cluster = owner // self.cluster_lanes == me // self.cluster_lanes
        result = (others <= 2) & same_block & (stamp < self.seen_block[lanes])
        result |= (others <= 3) & same_cluster & (stamp < self.seen_cluster[lanes])
        result |= (others == 0) & (owner == me)
        if self.seen_warp is not None:
            clock = self.seen_warp[lanes]
            alone = clock[np.arange(len(lanes)), owner % 32]
            known = np.where(others == 0, alone, clock.min(1))
            result |= (others <= 1) & (owner // 32 == me // 32) & (stamp < known)
        rows = self.row[lanes]
        for k in np.flatnonzero(~result & (others <= 2) & (rows > 0)):
            row = self.knowledge.rows[int(rows[k])]
            known_thread = row.threads.get(int(owner[k]), 0) if others[k] == 0 else 0
            result[k] = stamp[k] < max(row.blocks[int(owner[k]) // self.block_size], known_thread)
        return result

    def knows_thread(self, lane: int, thread: int, stamp: int) -> bool:
        row = self.knowledge.rows[int(self.row[lane])]
        return stamp < max(row.threads.get(thread, 0), row.blocks[thread // self.block_size])
