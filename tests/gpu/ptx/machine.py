"""The threads of a chunk of blocks, and the order in which they run.

Every thread has its own program counter. The runnable threads with the smallest one run together,
as one vector: that is how threads that took different branches meet again. With a seed, a random
half of the warps runs instead, and only up to its next access to memory.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from .barriers import Clusters, release_blocks
from .clocks import Clocks
from .copies import Copies
from .memory import EXISTS, POISON, Memory
from .operation import Array, Index, gather
from .program import Step
from .scalar_types import UNSIGNED, bits_of
from .shadow import Shadow
from .special import special_register
from .syntax import Instruction

if TYPE_CHECKING:
    from .launch import Launch


class Machine:
    RUNNING, AT_BARRIER, AT_WARP, AT_CLUSTER, GONE = range(5)

    def __init__(self, launch: Launch, blocks: Array) -> None:
        """blocks: their numbers in the launch's order; whole clusters."""
        self.launch = launch
        self.kernel, self.program = launch.kernel, launch.program
        self.blocks = blocks
        self.block_size, self.cluster_size = launch.block_size, launch.cluster_size
        self.num_blocks = len(blocks)
        self.num_clusters = self.num_blocks // self.cluster_size
        self.lanes = self.num_blocks * self.block_size
        self.all_lanes = np.arange(self.lanes)
        self.pc = np.zeros(self.lanes, np.int64)
        self.state = np.zeros(self.lanes, np.int8)
        self.registers = [_unset(type_) for type_ in self.kernel.register_types]
        thread = blocks[:, None] * self.block_size + np.arange(self.block_size)
        ids = thread.ravel().astype(np.int32)
        self.ordering = self.program.ordering
        self.clocks = Clocks(
            ids, self.block_size, self.cluster_size, launch.knowledge, self.ordering.active
        )
        self.clusters = Clusters(self.lanes, self.num_clusters, self.num_blocks)
        self.copies = Copies(self.lanes)
        self.shared_stride = launch.shared_stride
        self.shared = Memory(self.shared_stride * self.num_blocks)
        self.shared_shadow = Shadow(self.shared.size, launch.grain)
        self._lay_out_shared()
        self.findings, self.profile = launch.findings, launch.profile
        self.noise, self.rng, self.seed = launch.noise, launch.rng, launch.seed
        self._symbols: dict[str, Array] = {}

    def _lay_out_shared(self) -> None:
        flags = self.shared.flags.reshape(self.num_blocks, -1)
        content = self.shared.bytes.reshape(self.num_blocks, -1)
        for start, size in self.launch.shared_ranges:
            flags[:, start : start + size] = EXISTS
            content[:, start : start + size] = POISON

    # ---- who and where

    def block_of(self, lanes: Array) -> Array:
        return lanes // self.block_size

    def cluster_of(self, lanes: Array) -> Array:
        return lanes // (self.block_size * self.cluster_size)

    def warp_of(self, lanes: Array) -> Array:
        return lanes // 32

    def symbol(self, name: str) -> Array:
        """A special register, or the address of a variable."""
        if name not in self._symbols:
            if name[0] == "%" or name == "WARP_SZ":
                self._symbols[name] = special_register(self, name)
            else:
                self._symbols[name] = np.array([self.launch.address_of(name)], np.uint64)
        return self._symbols[name]

    def who(self, lane: int | np.integer) -> str:
        return self.who_in_grid(int(self.clocks.ids[lane]))

    def who_in_grid(self, thread: int) -> str:
        block, number = divmod(thread, self.block_size)
        return f"{self.launch.block_name(block)} thread {number}"

    def block_name(self, block: int | np.integer) -> str:
        return self.launch.block_name(int(self.blocks[block]))

    def place(self, instruction: Instruction) -> tuple[str, str]:
        return (self.kernel.name, instruction.text)

    def describe(self, instruction: Instruction) -> str:
        return self.launch.module.describe(instruction)

    def nearest(self, space: str, offset: int, lane: int) -> str:
        if space == "shared":
            here = offset - lane // self.block_size * self.shared_stride
            return self.launch.nearest_shared(here) if offset >= 0 else "no such address"
        return self.launch.nearest_global(offset)

    def lane_order(self, count: int) -> Array:
        """The order in which lanes perform atomics."""
        return self.rng.permutation(count) if self.seed else np.arange(count)

    # ---- running

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while True:
                runs = self.state == self.RUNNING
                running = np.flatnonzero(self._some_warps(runs) if self.seed else runs)
                if not len(running):
                    if (self.state == self.GONE).all():
                        break
                    self._deadlock()
                counters = self.pc[running]
                at = int(counters.min())
                group = running[counters == at]
                self._advance(at, None if len(group) == self.lanes else group)
        self.copies.check_none_left(self)

    def _some_warps(self, runs: Array) -> Array:
        """About half of the warps that can run, at least one."""
        able = np.asarray(runs.reshape(-1, 32).any(axis=1))
        picked = able & (self.rng.random(len(able)) < 0.5)
        if not picked.any():
            picked = able
        return runs & np.repeat(picked, 32)

    def _advance(self, at: int, group: Index) -> None:
        """Run this group from here until it splits, waits, ends, or may meet others."""
        steps, labels = self.program.steps, self.program.labels
        launch, profile = self.launch, self.profile
        start = at
        while True:
            if group is not None and labels[at] and at != start:
                break
            step = steps[at]
            launch.steps += 1
            if launch.steps > launch.max_steps:
                self._livelock(at)
            active = group
            if step.guard is not None:
                holds = gather(self.registers[step.guard], group)
                holds = ~holds if step.negated else holds
                if not holds.all():
                    lanes = self.all_lanes if group is None else group
                    active = lanes[holds] if holds.shape[0] > 1 else lanes[:0]
            empty = active is not None and len(active) == 0
            if not empty:
                launch.executed[at] = True
            if profile is not None and not empty:
                num = self.lanes if active is None else len(active)
                profile.count(step.name, None if active is None else active // 32, num)
            if step.target >= 0:
                if active is group:
                    at = step.target
                    if group is None:
                        continue
                    break
                if not empty:
                    self._set_counter(group, at + 1)
                    self._set_counter(active, step.target)
                    return
            elif empty:
                pass
            elif step.operation is not None:
                step.operation(self, active)
            else:
                if active is not group:
                    self._set_counter(group, at + 1)
                if self._control(step, at, active):
                    return
                if active is not group:
                    self._set_counter(active, at + 1)
                    return
            at += 1
            if self.seed and step.touches_memory:
                break
        self._set_counter(group, at)

    def _set_counter(self, group: Index, at: int) -> None:
        if group is None:
            self.pc[:] = at
        else:
            self.pc[group] = at

    def _control(self, step: Step, at: int, active: Index) -> bool:
        """True when the program counters of the active lanes are set."""
        if step.warp is not None:
            return step.warp.execute(self, at, active)
        if step.barrier is not None:
            return step.barrier.execute(self, at, active)
        instruction = step.instruction
        lanes = self.all_lanes if active is None else active
        if instruction.opcode == "barrier":
            if instruction.has("wait"):
                return self.clusters.wait(self, instruction, at, active)
            # arriving may let others go on, never these lanes themselves
            self.clusters.arrive(self, instruction, lanes)
            return False
        if instruction.opcode == "trap":
            self.findings.fatal(
                "trap", self.place(instruction),
                f"{self.who(lanes[0])} at {self.describe(instruction)}",
            )  # fmt: skip
        self.pc[lanes] = at
        self.state[lanes] = self.GONE
        release_blocks(self)
        for waits in self.program.warp_waits:
            waits.release(self)
        self.clusters.complete(self)
        self.clusters.check_exit(self, lanes)
        return True

    def _deadlock(self) -> None:
        names = {
            self.AT_BARRIER: "a barrier",
            self.AT_WARP: "a warp operation",
            self.AT_CLUSTER: "a cluster barrier",
        }
        waiting = Counter(
            (names[int(state)], self.describe(self.kernel.code[int(pc)]))
            for state, pc in zip(self.state, self.pc, strict=True)
            if state != self.GONE
        )
        text = "; ".join(f"{n} threads wait for {w} at {at}" for (w, at), n in waiting.items())
        gone = int((self.state == self.GONE).sum())
        self.findings.fatal("deadlock", self.kernel.name, f"{text}; {gone} threads have exited")

    def _livelock(self, at: int) -> None:
        self.findings.fatal(
            "livelock", self.kernel.name,
            f"{self.launch.max_steps} steps, now at {self.describe(self.kernel.code[at])}",
        )  # fmt: skip


def _unset(type_: str) -> Array:
    """The value of a register before the first write to it: a NaN in every format."""
    if type_ == "pred":
        return np.zeros(1, bool)
    bits = bits_of(type_)
    return np.array([0x7FC0DEAD_7FC0DEAD & (1 << bits) - 1], UNSIGNED[bits])
