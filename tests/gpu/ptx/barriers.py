"""Barriers of a block and of a cluster, and what a cluster's blocks may do to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .addressing import Place
from .operation import Array, Index, per_lane, reader, writer
from .syntax import Immediate, Instruction, UnsupportedPtxError

if TYPE_CHECKING:
    from .machine import Machine


class BlockBarrier:
    """bar.sync and bar.red, for all threads of a block."""

    def __init__(self, instruction: Instruction) -> None:
        instruction.only("cta", "sync", "red", "aligned", "popc", "and", "or")
        self.instruction = instruction
        operands = list(instruction.operands)
        self.reduces = instruction.has("red")
        if self.reduces:
            self.write = writer(operands.pop(0))
            self.read = reader(operands.pop(), "pred")
        if not operands or not all(isinstance(operand, Immediate) for operand in operands):
            raise UnsupportedPtxError(instruction.text)
        self.threads = operands[1].bits if len(operands) > 1 else None  # type: ignore[union-attr]

    def execute(self, m: Machine, at: int, index: Index) -> bool:
        if self.threads is not None and self.threads != m.block_size:
            raise UnsupportedPtxError(f"barrier of a part of the block: {self.instruction.text!r}")
        if index is None:
            self.complete(m, np.arange(m.num_blocks), m.all_lanes)
            return False
        m.pc[index] = at
        m.state[index] = m.AT_BARRIER
        release_blocks(m)
        return True

    def complete(self, m: Machine, blocks: Array, lanes: Array) -> None:
        m.clocks.block_barrier(blocks)
        if not self.reduces:
            return
        index = None if len(lanes) == m.lanes else lanes
        votes = per_lane(self.read(m, index), len(lanes))
        block = m.block_of(lanes)
        yes = np.bincount(block, votes, m.num_blocks).astype(np.int64)
        present = np.bincount(block, minlength=m.num_blocks)
        if self.instruction.has("popc"):
            self.write(m, index, yes[block].astype(np.uint32))
        else:
            result = yes == present if self.instruction.has("and") else yes > 0
            self.write(m, index, result[block])


def release_blocks(m: Machine) -> None:
    """Let those blocks go on whose threads have all met (or exited, which is reported)."""
    waiting = (m.state == m.AT_BARRIER).reshape(m.num_blocks, m.block_size)
    gone: Array = (m.state == m.GONE).reshape(m.num_blocks, m.block_size)
    ready = np.flatnonzero(waiting.any(1) & (waiting | gone).all(1))
    if not len(ready):
        return
    blocks = np.zeros(m.num_blocks, bool)
    blocks[ready] = True
    lanes = np.flatnonzero((m.state == m.AT_BARRIER) & np.repeat(blocks, m.block_size))
    _report_divergence(m, ready, waiting, gone)
    for at in np.unique(m.pc[lanes]):
        here = lanes[m.pc[lanes] == at]
        barrier = m.program.block_barriers[int(at)]
        barrier.complete(m, np.unique(m.block_of(here)), here)
    m.state[lanes] = m.RUNNING
    m.pc[lanes] += 1


def _report_divergence(m: Machine, ready: Array, waiting: Array, gone: Array) -> None:
    pc = m.pc.reshape(m.num_blocks, m.block_size)
    lowest = np.where(waiting, pc, np.iinfo(pc.dtype).max).min(1)
    highest = np.where(waiting, pc, -1).max(1)
    apart = np.asarray(lowest < highest)
    for block in ready[apart[ready]][:1]:
        low, high = m.kernel.code[lowest[block]], m.kernel.code[highest[block]]
        m.findings.add(
            "divergent barrier", m.place(high),
            f"threads of {m.block_name(block)} meet at different barriers:"
            f" {m.describe(low)} and {m.describe(high)}",
        )  # fmt: skip
    some_gone = np.asarray(gone.any(axis=1))
    for block in ready[some_gone[ready]][:1]:
        at = m.kernel.code[lowest[block]]
        m.findings.add(
            "divergent barrier", m.place(at),
            f"{int(gone[block].sum())} threads of {m.block_name(block)} had exited when the"
            f" others met at {m.describe(at)}",
        )  # fmt: skip


class Clusters:
    """barrier.cluster, and the life of a block's shared memory as seen by its cluster."""

    def __init__(self, lanes: int, num_clusters: int, num_blocks: int) -> None:
        self.arrivals = np.zeros(lanes, np.int64)
        self.waits = np.zeros(lanes, np.int64)
        self.relaxed = np.zeros(lanes, bool)  # the latest arrival did not release
        self.completed = np.zeros(num_clusters, np.int64)
        self.released = np.ones(num_clusters, bool)
        # latest stamp at which another block touched the block's shared memory
        self.touched = np.full(num_blocks, -1, np.int64)

    def arrive(self, m: Machine, instruction: Instruction, lanes: Array) -> None:
        again = self.arrivals[lanes] > self.waits[lanes]
        if again.any():
            m.findings.fatal(
                "cluster barrier", m.place(instruction),
                f"{m.who(lanes[np.flatnonzero(again)[0]])} arrives at {m.describe(instruction)}"
                " again without having waited",
            )  # fmt: skip
        self.arrivals[lanes] += 1
        self.relaxed[lanes] = instruction.has("relaxed")
        m.clocks.cluster_arrive(lanes)
        self.complete(m)

    def complete(self, m: Machine) -> None:
        """Complete the barrier of those clusters whose threads have all arrived or exited."""
        shape = (m.num_clusters, m.block_size * m.cluster_size)
        gone = (m.state == m.GONE).reshape(shape)
        arrived = self.arrivals.reshape(shape) == (self.completed + 1)[:, None]
        for cluster in np.flatnonzero((arrived | gone).all(1) & arrived.any(1)):
            self.completed[cluster] += 1
            self.released[cluster] = not self.relaxed.reshape(shape)[cluster].any()
            m.clocks.cluster_complete(int(cluster))
            first = cluster * shape[1]
            lanes = first + np.flatnonzero(m.state[first : first + shape[1]] == m.AT_CLUSTER)
            if len(lanes):
                self._pass(m, lanes)
                m.state[lanes] = m.RUNNING
                m.pc[lanes] += 1

    def wait(self, m: Machine, instruction: Instruction, at: int, index: Index) -> bool:
        lanes = m.all_lanes if index is None else index
        idle = self.waits[lanes] == self.arrivals[lanes]
        if idle.any():
            m.findings.fatal(
                "cluster barrier", m.place(instruction),
                f"{m.who(lanes[np.flatnonzero(idle)[0]])} waits at {m.describe(instruction)}"
                " without having arrived",
            )  # fmt: skip
        passes = self.completed[m.cluster_of(lanes)] >= self.arrivals[lanes]
        if passes.any():
            self._pass(m, lanes[passes])
        if passes.all():
            return False
        m.pc[lanes[passes]] = at + 1
        m.pc[lanes[~passes]] = at
        m.state[lanes[~passes]] = m.AT_CLUSTER
        return True

    def _pass(self, m: Machine, lanes: Array) -> None:
        self.waits[lanes] += 1
        m.clocks.cluster_wait(lanes, self.released[m.cluster_of(lanes)])

    def check_remote(self, m: Machine, instruction: Instruction, place: Place) -> None:
        """Another block's shared memory exists from a cluster barrier on until that block exits."""
        block = place.offsets // m.shared_stride
        remote = np.flatnonzero(block != m.block_of(place.lanes))
        if not len(remote):
            return
        lanes, block = place.lanes[remote], block[remote]
        early = m.clocks.seen_cluster[lanes] == 0
        if early.any():
            k = int(np.flatnonzero(early)[0])
            m.findings.add(
                "cluster lifetime", m.place(instruction),
                f"{m.who(lanes[k])} touches shared memory of {m.block_name(block[k])} at"
                f" {m.describe(instruction)} before a cluster barrier: that block may not run yet",
            )  # fmt: skip
        gone = (m.state == m.GONE).reshape(m.num_blocks, m.block_size).all(1)
        if gone[block].any():
            k = int(np.flatnonzero(gone[block])[0])
            m.findings.add(
                "cluster lifetime", m.place(instruction),
                f"{m.who(lanes[k])} touches shared memory of {m.block_name(block[k])} at"
                f" {m.describe(instruction)}: that block may have exited",
            )  # fmt: skip
        np.maximum.at(self.touched, block, m.clocks.stamp[lanes])

    def check_exit(self, m: Machine, lanes: Array) -> None:
        """A block may only exit after a cluster barrier that follows all accesses from outside."""
        if (self.touched < 0).all():
            return
        gone = (m.state == m.GONE).reshape(m.num_blocks, m.block_size).all(1)
        for block in np.unique(m.block_of(lanes)):
            known = m.clocks.seen_cluster.reshape(m.num_blocks, -1)[block].max()
            if gone[block] and known <= self.touched[block]:
                m.findings.add(
                    "cluster lifetime", "exit",
                    f"{m.block_name(block)} exits while other blocks may still touch its shared"
                    " memory: a cluster barrier must come between",
                )  # fmt: skip
