"""The race detector against complete vector clocks, on random programs.

All threads run the same straight line: accesses by a few of them, and barriers. Each access is of
one of three words: one in device memory, one in the shared memory of each block of a cluster. What
happens before what follows from the program alone, so an oracle can say whether it has a race, and
every schedule must agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ptx
import pytest
from handwritten import kernel

BLOCKS, BLOCK_SIZE, CLUSTER = 4, 64, 2
THREADS = BLOCKS * BLOCK_SIZE
PROGRAMS = 250


@dataclass(frozen=True)
class Access:
    threads: tuple[int, ...]
    write: bool
    owner: int | None  # rank of the block whose shared memory has the cell; None: device memory


@dataclass(frozen=True)
class Barrier:
    kind: str  # block, warp, half (of a warp), arrive, wait


Step = Access | Barrier


def random_program(rng: np.random.Generator) -> list[Step]:
    # the blocks must have started before another one may touch their shared memory
    program: list[Step] = [Barrier("arrive"), Barrier("wait")]
    arrived = False
    # few threads, so that they meet: of all blocks, of one cluster, or of one block
    within = int(rng.choice([THREADS, CLUSTER * BLOCK_SIZE, BLOCK_SIZE]))
    few = rng.choice(within, int(rng.integers(3, 9)), replace=False)
    access_share, write_share = rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.4)
    for _ in range(int(rng.integers(4, 20))):
        choice = rng.random()
        if choice < access_share:
            threads = tuple(int(t) for t in rng.choice(few, int(rng.integers(1, 4)), replace=False))
            owner = None if rng.random() < 0.3 else int(rng.integers(CLUSTER))
            write = bool(rng.random() < write_share)
            program.append(Access(threads[:1] if write else threads, write, owner))
        elif choice < access_share + 0.2:
            program.append(Barrier(str(rng.choice(["block", "warp", "half"]))))
        else:
            program.append(Barrier("wait" if arrived else "arrive"))
            arrived = not arrived
    if arrived:
        program.append(Barrier("wait"))
    return [*program, Barrier("arrive"), Barrier("wait")]  # nobody exits before the last access


def participants(kind: str) -> np.ndarray:
    """For each thread the number of the group that it meets."""
    thread = np.arange(THREADS)
    sizes = {"block": BLOCK_SIZE, "warp": 32, "half": 16, "cluster": CLUSTER * BLOCK_SIZE}
    return thread // sizes[kind]


def has_race(program: list[Step]) -> bool:
    """clock[t, u]: how many steps of thread u thread t knows to have happened."""
    clock = np.zeros((THREADS, THREADS), np.int64)
    at_arrival = clock.copy()
    accesses: dict[object, list[tuple[int, int, bool]]] = {}
    for number, step in enumerate(program, 1):
        np.fill_diagonal(clock, number)
        if isinstance(step, Access):
            for thread in step.threads:
                cluster = thread // (CLUSTER * BLOCK_SIZE)
                place = None if step.owner is None else (cluster, step.owner)
                earlier = accesses.setdefault(place, [])
                for other, when, wrote in earlier:
                    if (wrote or step.write) and clock[thread, other] < when:
                        return True
                earlier.append((thread, number, step.write))
        elif step.kind == "arrive":
            at_arrival = clock.copy()
        else:
            source = at_arrival if step.kind == "wait" else clock
            groups = participants("cluster" if step.kind == "wait" else step.kind)
            for group in range(groups.max() + 1):
                members = groups == group
                merged = source[members].max(0)
                clock[members] = np.maximum(clock[members], merged)
    return False


def to_ptx(program: list[Step]) -> ptx.Module:
    """%d8: a word of device memory. %r14: the shared word of a thread's block; %r13: of another."""
    lines = [".shared .align 4 .b8 cell[4]; mov.u32 %r14, cell;", "mov.u32 %r12, %laneid;",
             "shr.u32 %r12, %r12, 4; mov.u32 %r11, 65535; setp.eq.u32 %p2, %r12, 1;",
             "selp.b32 %r11, -65536, %r11, %p2;"]  # fmt: skip
    for step in program:
        if isinstance(step, Barrier):
            lines.append({
                "block": "bar.sync 0;",
                "warp": "bar.warp.sync -1;",
                "half": "bar.warp.sync %r11;",
                "arrive": "barrier.cluster.arrive.release;",
                "wait": "barrier.cluster.wait.acquire;",
            }[step.kind])  # fmt: skip
            continue
        lines.append("mov.pred %p0, 0;")
        for thread in step.threads:
            lines.append(f"setp.eq.u32 %p1, %r0, {thread}; or.pred %p0, %p0, %p1;")
        if step.owner is None:
            place, space = "[%d8]", "global"
        else:
            lines.append(f"mapa.shared::cluster.u32 %r13, %r14, {step.owner};")
            place, space = "[%r13]", "shared::cluster"
        operation = (
            f"st.{space}.u32 {place}, %r0;" if step.write else f"ld.{space}.u32 %r3, {place};"
        )
        lines.append(f"@%p0 {operation}")
    return kernel("\n".join(lines), 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_programs(seed: int) -> None:
    rng = np.random.default_rng(11 + seed)
    racing = 0
    for _ in range(PROGRAMS):
        program = random_program(rng)
        expected = has_race(program)
        racing += expected
        device = ptx.Device(1 << 16)
        word = device.upload(np.zeros(1, np.uint32), "word")
        device.launch(to_ptx(program), "k", BLOCKS, BLOCK_SIZE, [word], cluster=CLUSTER, seed=seed)
        kinds = {finding.kind for finding in device.findings} - {"uninitialised"}
        assert kinds == ({"race"} if expected else set()), (program, device.findings)
    assert PROGRAMS // 4 < racing < PROGRAMS * 3 // 4
