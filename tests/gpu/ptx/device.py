"""The device as a test sees it: memory to fill and read, kernels to launch, findings to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import FatalFindingError, Finding, Findings
from .launch import Arena, Launch, Options, size3
from .memory import GLOBAL_BASE, WRITTEN, Memory
from .profile import Profile
from .syntax import Kernel, Module

RED_ZONE = 256  # bytes that do not exist, around every allocation


@dataclass(frozen=True)
class DeviceArray:
    """Rows of elements in device memory. What lies between the end of a row and the start of the
    next does not exist, except where `slack_exists` was asked for."""

    device: Device
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    row_stride: int  # elements
    name: str

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    def _row_offset(self, row: int) -> int:
        return self.address - GLOBAL_BASE + row * self.row_stride * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """A copy of what is there now."""
        memory, length = self.device.memory, self.shape[-1] * self.dtype.itemsize
        starts = [self._row_offset(row) for row in range(self.rows)]
        data = [memory.bytes[s : s + length] for s in starts]
        return np.concatenate(data or [np.empty(0, np.uint8)]).view(self.dtype).reshape(self.shape)

    def written(self) -> np.ndarray:
        """Which elements have a value: uploaded, or written by a kernel."""
        memory, length = self.device.memory, self.shape[-1] * self.dtype.itemsize
        starts = [self._row_offset(row) for row in range(self.rows)]
        flags = np.concatenate(
            [memory.flags[s : s + length] for s in starts] or [np.empty(0, np.uint8)]
        )
        each = (flags & WRITTEN).astype(bool).reshape(-1, self.dtype.itemsize).all(1)
        return each.reshape(self.shape)

    def write(self, values: np.ndarray) -> None:
        values = np.broadcast_to(values, self.shape).astype(self.dtype)
        values = values.reshape(self.rows, self.shape[-1])
        for row in range(self.rows):
            data = np.ascontiguousarray(values[row]).view(np.uint8)
            self.device.memory.fill(self._row_offset(row), data)


@dataclass(frozen=True)
class LaunchReport:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int
    findings: list[Finding]  # of this launch
    steps: int
    executed: np.ndarray  # which of the kernel's instructions some thread has executed
    profile: Profile | None


class Device:
    """capacity: bytes of device memory; they cost nothing before they are used."""

    def __init__(self, capacity: int = 1 << 28) -> None:
        self.memory = Memory(capacity)
        self._findings = Findings()
        self._top = 4096
        self._allocations: list[tuple[int, int, str]] = []
        self._modules: dict[int, tuple[Module, dict[str, int]]] = {}

    @property
    def findings(self) -> list[Finding]:
        return self._findings.list

    def allocate(
        self,
        shape: int | Sequence[int],
        dtype: np.typing.DTypeLike,
        name: str,
        *,
        row_stride: int | None = None,
        start: int = 0,
        slack_exists: bool = False,
    ) -> DeviceArray:
        """Unwritten memory.

        row_stride: elements from one row to the next, at least shape[-1]. start: bytes by which the
        array misses a 256-byte boundary, for kernels that must cope with it.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        stride = shape[-1] if row_stride is None else row_stride
        if stride < shape[-1]:
            raise ValueError(f"{name}: row stride {stride} is less than the row {shape[-1]}")
        rows = math.prod(shape[:-1])
        size = (max(rows - 1, 0) * stride + shape[-1]) * dtype.itemsize if rows else 0
        offset = self._top + start
        self._top = -(-(offset + size + RED_ZONE) // 256) * 256
        if self._top > self.memory.size:
            raise MemoryError(f"{name}: the device has {self.memory.size} bytes")
        if slack_exists or stride == shape[-1]:
            self.memory.create(offset, size)
        else:
            for row in range(rows):
                first = offset + row * stride * dtype.itemsize
                self.memory.create(first, shape[-1] * dtype.itemsize)
        self._allocations.append((offset, size, name))
        return DeviceArray(self, GLOBAL_BASE + offset, shape, dtype, stride, name)

    def upload(
        self,
        values: np.ndarray,
        name: str,
        *,
        row_stride: int | None = None,
        start: int = 0,
        slack_exists: bool = False,
    ) -> DeviceArray:
        """Memory that holds these values; see `allocate`."""
        values = np.atleast_1d(values)
        array = self.allocate(
            values.shape, values.dtype, name, row_stride=row_stride, start=start,
            slack_exists=slack_exists,
        )  # fmt: skip
        array.write(values)
        return array

    def launch(
        self,
        module: Module,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[object],
        *,
        cluster: int | Sequence[int] | None = None,
        dynamic_shared: int = 0,
        seed: int = 0,
        noise: float = 0.0,
        profile: bool = False,
        max_lanes: int = 1 << 15,
        max_steps: int = 500_000,
    ) -> LaunchReport:
        """Run a kernel to its end, or to the first finding that it cannot survive.

        kernel: its mangled name, or a part of it that no other kernel has. arguments: DeviceArrays,
        addresses, ints, floats (single precision where the parameter has 4 bytes), numpy scalars or
        bytes. seed: 0 runs threads in step, other values in random order. noise: how much of the
        documented error approximate instructions make, 0 to 1. max_lanes: threads at a time; whole
        blocks and clusters run one chunk after the other. max_steps: instructions of groups of
        threads, after which a launch counts as a livelock.
        """
        found = module.kernel(kernel)
        values = _as_bytes(found, arguments)
        before = len(self.findings)
        grid3, block3 = size3(grid), size3(block)
        cluster3 = None if cluster is None else size3(cluster)
        variables = self._place_variables(module, found)
        arena = Arena(self.memory, self._top, self._allocations, variables)
        options = Options(seed, noise, profile, max_lanes, max_steps)
        run: Launch | None = None
        try:
            run = Launch(
                module,
                found,
                arena,
                self._findings,
                grid3,
                block3,
                cluster3,
                dynamic_shared,
                options,
            )
            run.set_parameters(values)
            run.run()
        except FatalFindingError:
            pass
        return LaunchReport(
            found.name, grid3, block3, cluster3 or found.cluster or (1, 1, 1), dynamic_shared,
            self.findings[before:], run.steps if run else 0,
            run.executed if run else np.zeros(len(found.code), bool), run.profile if run else None,
        )  # fmt: skip

    def _place_variables(self, module: Module, kernel: Kernel) -> dict[str, int]:
        """Addresses of the .global and .const variables it uses; they keep their values."""
        # the module is kept, so that no other one gets its id
        _, addresses = self._modules.setdefault(id(module), (module, {}))
        for name in kernel.symbols() & module.variables.keys() - addresses.keys():
            variable = module.variables[name]
            if variable.space != "shared":
                data = np.zeros(variable.size, np.uint8)
                data[: len(variable.data)] = np.frombuffer(variable.data, np.uint8)
                addresses[name] = self.upload(data, name).address
        return addresses


def _as_bytes(kernel: Kernel, arguments: Sequence[object]) -> list[bytes]:
    if len(arguments) != len(kernel.parameters):
        raise TypeError(
            f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(arguments)} arguments"
        )
    return [
        _argument(value, parameter.size)
        for value, parameter in zip(arguments, kernel.parameters, strict=True)
    ]


def _argument(value: object, size: int) -> bytes:
    if isinstance(value, DeviceArray):
        value = value.address
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool | int | np.integer):
        return int(value).to_bytes(size, "little", signed=bool(value < 0))
    if isinstance(value, float):
        return np.array(value, np.float32 if size == 4 else np.float64).tobytes()
    return np.asarray(value).tobytes()
