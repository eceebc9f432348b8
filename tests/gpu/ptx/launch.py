"""One kernel launch: its checks, its memory layout, and its chunks of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .clocks import Knowledge
from .findings import Findings
from .machine import Machine
from .memory import FIRST_SHARED, PARAMETER_WINDOW, WRITTEN, Memory
from .profile import Profile
from .program import Program
from .scalar_types import bits_of
from .shadow import Shadow
from .syntax import Kernel, Module, Variable

Size3 = tuple[int, int, int]
APART = 256  # bytes between shared variables, so that running past one is noticed

# Bytes of shared memory that a block may ask for, and blocks that a cluster may have.
SHARED_LIMITS = {"sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_120": 99}
DEFAULT_SHARED_LIMIT = 227  # sm_90, sm_100, sm_103
LARGEST_CLUSTER = 16


def size3(sizes: int | Sequence[int]) -> Size3:
    numbers = [int(sizes)] if isinstance(sizes, int | np.integer) else [int(n) for n in sizes]
    numbers += [1] * (3 - len(numbers))
    return (numbers[0], numbers[1], numbers[2])


def narrowest_access(kernel: Kernel) -> int:
    """Bytes; what races are tracked by. Parameters do not count."""
    sizes = [
        bits_of(i.type) // 8
        for i in kernel.code
        if i.opcode in ("ld", "ldu", "st", "atom", "red") and not i.has("param") and i.types
    ]
    return min([*sizes, 4])


@dataclass
class Arena:
    """Device memory as a launch finds it."""

    memory: Memory
    used: int  # bytes; nothing exists beyond
    allocations: list[tuple[int, int, str]]  # offset, size, name
    variables: dict[str, int]  # addresses of the module's variables


@dataclass(frozen=True)
class Options:
    """See Device.launch."""

    seed: int = 0
    noise: float = 0.0
    profile: bool = False
    max_lanes: int = 1 << 15
    max_steps: int = 500_000


class Launch:
    NUM_SMS = 132

    def __init__(
        self,
        module: Module,
        kernel: Kernel,
        arena: Arena,
        findings: Findings,
        grid: Size3,
        block: Size3,
        cluster: Size3 | None,
        dynamic_shared: int,
        options: Options,
    ) -> None:
        self.module, self.kernel, self.arena, self.findings = module, kernel, arena, findings
        self.memory = arena.memory
        self.grid, self.block = grid, block
        self.explicit_cluster = cluster is not None or kernel.cluster is not None
        self.cluster = cluster or kernel.cluster or (1, 1, 1)
        self.block_size, self.cluster_size = math.prod(block), math.prod(self.cluster)
        self.num_blocks = math.prod(grid)
        self.dynamic_shared = dynamic_shared
        self._check_sizes()
        self.seed, self.noise = options.seed, options.noise
        self.rng = np.random.default_rng(options.seed)
        self.profile = Profile() if options.profile else None
        self.max_steps, self.steps = options.max_steps, 0
        self.executed = np.zeros(len(kernel.code), bool)
        per_cluster = self.block_size * self.cluster_size
        self.blocks_at_once = max(1, options.max_lanes // per_cluster) * self.cluster_size
        self.program = Program(kernel)
        self.grain = narrowest_access(kernel)
        self.shadow = Shadow(arena.used, self.grain)
        self.knowledge = Knowledge(self.num_blocks)
        self.coordinates = self._block_coordinates()
        self.parameters = Memory(max(256, kernel.parameter_bytes))
        self.parameter_offsets = {p.name: p.offset for p in kernel.parameters}
        self.shared_addresses: dict[str, int] = {}
        self.shared_ranges: list[tuple[int, int]] = []
        self.shared_stride = self._lay_out_shared()
        self._check_shared()

    def _check_sizes(self) -> None:
        name, limit = self.kernel.name, self.kernel.max_threads
        if self.block_size % 32:
            raise NotImplementedError(f"{name}: blocks are whole warps here, not {self.block}")
        if min(*self.grid, *self.block) < 1 or self.block_size > 1024:
            self._refuse(f"grid {self.grid}, block {self.block}")
        if limit is not None and self.block_size > limit:
            self._refuse(f"block {self.block} is larger than __launch_bounds__ ({limit})")
        if self.kernel.cluster and self.cluster != self.kernel.cluster:
            self._refuse(f"cluster {self.cluster} is not __cluster_dims__ {self.kernel.cluster}")
        if any(g % c for g, c in zip(self.grid, self.cluster, strict=True)):
            self._refuse(f"grid {self.grid} is no multiple of the cluster {self.cluster}")
        if self.cluster_size > LARGEST_CLUSTER:
            self._refuse(f"cluster {self.cluster} has more than {LARGEST_CLUSTER} blocks")
        if self.kernel.local_bytes:
            self.findings.fatal(
                "local memory", name,
                f"{name} keeps {self.kernel.local_bytes} bytes of local memory for each thread;"
                " index arrays with compile-time constants",
            )  # fmt: skip

    def _check_shared(self) -> None:
        target = self.module.target.rstrip("af")
        limit = SHARED_LIMITS.get(target, DEFAULT_SHARED_LIMIT) * 1024
        total = sum(size for _, size in self.shared_ranges)
        if total > limit:
            self._refuse(f"{total} bytes of shared memory for a block, {target} has {limit}")

    def _refuse(self, why: str) -> None:
        self.findings.fatal("launch", (self.kernel.name, why), f"{self.kernel.name}: {why}")

    def _block_coordinates(self) -> np.ndarray:
        """(blocks, 3): blocks cluster by cluster, in a cluster by rank."""
        clusters = tuple(g // c for g, c in zip(self.grid, self.cluster, strict=True))

        def grid_of(sizes: Sequence[int]) -> np.ndarray:
            z, y, x = np.meshgrid(*(np.arange(n) for n in reversed(sizes)), indexing="ij")
            return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)

        outer = grid_of(clusters)[:, None, :] * np.array(self.cluster)
        return (outer + grid_of(self.cluster)[None, :, :]).reshape(-1, 3)

    def block_name(self, block: int) -> str:
        x, y, z = (int(n) for n in self.coordinates[block])
        return f"block {x}" if self.grid[1] == self.grid[2] == 1 else f"block ({x}, {y}, {z})"

    # ---- memory

    def _lay_out_shared(self) -> int:
        """Bytes between the shared memories of two blocks."""
        used = self.kernel.symbols()
        variables = {
            name: v
            for name, v in self.module.variables.items()
            if v.space == "shared" and name in used
        }
        variables.update(self.kernel.shared)
        offset = FIRST_SHARED
        dynamic: list[Variable] = [v for v in variables.values() if v.size == 0]
        for variable in variables.values():
            if variable.size == 0:
                continue
            offset = self._place_shared(offset, variable, variable.size)
        # all dynamic variables are one and the same memory; hardware aligns it to 16 at least
        if dynamic:
            alignment = max(16, *(v.alignment for v in dynamic))
            start = -(-offset // alignment) * alignment
            for variable in dynamic:
                self.shared_addresses[variable.name] = start
            self.shared_ranges.append((start, self.dynamic_shared))
            offset = start + self.dynamic_shared + APART
        return -(-offset // 256) * 256

    def _place_shared(self, offset: int, variable: Variable, size: int) -> int:
        alignment = max(16, variable.alignment)
        start = -(-offset // alignment) * alignment
        self.shared_addresses[variable.name] = start
        self.shared_ranges.append((start, size))
        return start + size + APART

    def set_parameters(self, arguments: Sequence[bytes]) -> None:
        self.parameters.create(0, self.kernel.parameter_bytes)
        for parameter, value in zip(self.kernel.parameters, arguments, strict=True):
            if len(value) != parameter.size:
                raise TypeError(
                    f"{self.kernel.name}: parameter {parameter.name} has {parameter.size} bytes,"
                    f" the argument {len(value)}"
                )
            self.parameters.fill(parameter.offset, np.frombuffer(value, np.uint8))
        self.parameters.flags[: self.kernel.parameter_bytes] |= WRITTEN  # padding too

    def address_of(self, name: str) -> int:
        for table in (self.shared_addresses, self.arena.variables):
            if name in table:
                return table[name]
        if name in self.parameter_offsets:
            return PARAMETER_WINDOW + self.parameter_offsets[name]
        raise KeyError(f"{self.kernel.name}: unknown symbol {name}")

    def nearest_shared(self, offset: int) -> str:
        near = {n: offset - start for n, start in self.shared_addresses.items() if offset >= start}
        if not near:
            return "no shared variable lies there"
        name = min(near, key=lambda n: near[n])
        return f"nearest is {_readable(name)} + {near[name]}"

    def nearest_global(self, offset: int) -> str:
        if offset < 0 or not self.arena.allocations:
            return "no such address"
        start, size, name = min(
            self.arena.allocations, key=lambda a: max(a[0] - offset, offset - a[0] - a[1], 0)
        )
        return f"nearest is {name} ({size} bytes), offset {offset - start}"

    # ---- running

    def run(self) -> None:
        clusters = np.arange(self.num_blocks // self.cluster_size)
        if self.seed:
            clusters = self.rng.permutation(clusters)
        blocks = (clusters[:, None] * self.cluster_size + np.arange(self.cluster_size)).ravel()
        for first in range(0, len(blocks), self.blocks_at_once):
            Machine(self, blocks[first : first + self.blocks_at_once]).run()


def _readable(mangled: str) -> str:
    """The last name in a mangled one."""
    names = re.findall(r"\d+([A-Za-z_]\w*?)(?=E|$|\d)", mangled)
    return names[-1] if names else mangled
