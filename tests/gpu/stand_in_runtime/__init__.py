"""Runs the host code of an nvcc-built library: its launches go to the PTX executor."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ptx
from compiler import Compiler, run_tool
from ptx.memory import EXISTS, GLOBAL_BASE, WRITTEN

SOURCE = Path(__file__).parent / "runtime.cpp"
LAUNCH_FAILURE, ILLEGAL_ADDRESS, UNKNOWN = 719, 700, 999

# cudaDeviceAttr: what host code may ask; a question that is not here is answered with an error
H100 = {
    1: 1024,  # MaxThreadsPerBlock
    8: 48 * 1024,  # MaxSharedMemoryPerBlock
    10: 32,  # WarpSize
    12: 65536,  # MaxRegistersPerBlock
    13: 1_980_000,  # ClockRate, kHz
    16: 132,  # MultiProcessorCount
    36: 2_619_000,  # MemoryClockRate, kHz
    37: 5120,  # GlobalMemoryBusWidth, bits
    38: 50 * 2**20,  # L2CacheSize
    39: 2048,  # MaxThreadsPerMultiProcessor
    75: 9,  # ComputeCapabilityMajor
    76: 0,  # ComputeCapabilityMinor
    81: 228 * 1024,  # MaxSharedMemoryPerMultiprocessor
    97: 227 * 1024,  # MaxSharedMemoryPerBlockOptin
    106: 32,  # MaxBlocksPerMultiprocessor
    111: 1024,  # ReservedSharedMemoryPerBlock
    120: 1,  # ClusterLaunch
}

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p,
)  # fmt: skip
_COPY = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
)
_FILL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)


class _Callbacks(ctypes.Structure):
    _fields_ = (("launch", _LAUNCH), ("copy", _COPY), ("fill", _FILL), ("allocate", _ALLOCATE))


@dataclass(frozen=True)
class HostLaunch:
    """One launch by the host code, as it reached the runtime."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int] | None
    dynamic_shared: int
    stream: int
    report: ptx.LaunchReport


class StandInRuntime:
    """One for each process: its library has the name of the real one."""

    def __init__(self, compiler: Compiler, attributes: dict[int, int] = H100) -> None:
        host = shutil.which("g++")
        if host is None:
            raise FileNotFoundError("g++ builds the stand-in runtime")
        version = run_tool([str(compiler.nvcc), "--version"])
        found = re.search(r"release (\d+)\.", version)
        assert found is not None
        name = f"libcudart.so.{found[1]}"
        self.path = compiler.folder / name
        exports = compiler.folder / "stand_in.map"
        exports.write_text(f"{name} {{ global: *; }};\n")  # the version that programs ask for
        run_tool([
            host, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{compiler.include}",
            f"-Wl,-soname,{name}", f"-Wl,--version-script={exports}", str(SOURCE),
            "-o", str(self.path),
        ])  # fmt: skip
        self.library = ctypes.CDLL(str(self.path), mode=ctypes.RTLD_GLOBAL)
        self.attributes = attributes
        for which, value in attributes.items():
            self.library.stand_in_set_attribute(which, value)
        self._callbacks = _Callbacks(
            _LAUNCH(self._launch), _COPY(self._copy), _FILL(self._fill), _ALLOCATE(self._allocate)
        )
        self.library.stand_in_set_callbacks(ctypes.byref(self._callbacks))
        self.compiler = compiler
        self.launches: list[HostLaunch] = []
        self._kernels: dict[str, ptx.Module] = {}
        self._device: ptx.Device | None = None
        self._options: dict[str, Any] = {}
        self._error: BaseException | None = None

    def build(self, source: Path, arch: str = "sm_90a", flags: tuple[str, ...] = ()) -> ctypes.CDLL:
        """Compiles a .cu file twice, to a library and to PTX, and loads both."""
        # our library in the linker's place of the toolkit's, which may lack the shared one
        link = ("--cudart", "none", "-Xlinker", str(self.path))
        library = self.compiler.library(source, arch, (*flags, *link))
        return self.load(library, self.compiler.ptx(source, arch, flags))

    def load(self, library: Path, *modules: ptx.Module) -> ctypes.CDLL:
        """Loads a library whose kernels are in these modules."""
        for module in modules:
            for name in module.kernels:
                self._kernels[name] = module
        return ctypes.CDLL(str(library))

    @contextmanager
    def using(self, device: ptx.Device, **options: Any) -> Iterator[list[HostLaunch]]:
        """Launches go to this device, with these options of Device.launch. Yields their list."""
        self._device, self._options, self.launches, self._error = device, options, [], None
        self.library.cudaGetLastError()  # takes what earlier launches may have left
        try:
            yield self.launches
        finally:
            self._device = None
        if self._error is not None:
            raise self._error

    # ---- callbacks: an exception may not cross into C

    def _guarded(self, call: Any) -> int:
        try:
            return int(call())
        except BaseException as error:
            self._error = error
            return UNKNOWN

    def _launch(self, name: bytes, sizes: Any, shared: int, arguments: Any, stream: int) -> int:
        return self._guarded(lambda: self._run(name.decode(), sizes, shared, arguments, stream))

    def _run(self, name: str, sizes: Any, shared: int, arguments: Any, stream: int | None) -> int:
        device = self._current()
        module = self._kernels[name]
        values = [
            ctypes.string_at(arguments[k], parameter.size)
            for k, parameter in enumerate(module.kernels[name].parameters)
        ]
        grid, block, cluster = (tuple(sizes[k : k + 3]) for k in (0, 3, 6))
        report = device.launch(
            module, name, grid, block, values, cluster=cluster if cluster[0] else None,
            dynamic_shared=shared, **self._options,
        )  # fmt: skip
        self.launches.append(
            HostLaunch(
                name, grid, block, cluster if cluster[0] else None, shared, stream or 0, report
            )
        )
        return LAUNCH_FAILURE if report.findings else 0

    def _current(self) -> ptx.Device:
        if self._device is None:
            raise RuntimeError("host code ran outside of StandInRuntime.using(device)")
        return self._device

    def _allocate(self, count: int) -> int:
        try:
            return self._current().allocate(count, np.uint8, "cudaMalloc").address
        except BaseException as error:
            self._error = error
            return 0

    def _fill(self, to: int, value: int, count: int) -> int:
        return self._guarded(lambda: self._fill_now(to, np.full(count, value & 255, np.uint8)))

    def _fill_now(self, to: int, data: np.ndarray) -> int:
        memory, start = self._current().memory, to - GLOBAL_BASE
        if not self._has(start, data.size, EXISTS):
            return ILLEGAL_ADDRESS
        memory.fill(start, data)
        return 0

    def _copy(self, to: int, from_: int, count: int, kind: int) -> int:
        return self._guarded(lambda: self._copy_now(to, from_, count, kind))

    def _copy_now(self, to: int, from_: int, count: int, kind: int) -> int:
        """kind: 1 host to device, 2 device to host, 3 between places of the device."""
        memory = self._current().memory
        if kind == 1:
            return self._fill_now(to, np.frombuffer(ctypes.string_at(from_, count), np.uint8))
        start = from_ - GLOBAL_BASE
        if kind not in (2, 3) or not self._has(start, count, EXISTS | WRITTEN):
            return ILLEGAL_ADDRESS
        data = memory.bytes[start : start + count].copy()
        if kind == 3:
            return self._fill_now(to, data)
        ctypes.memmove(to, data.ctypes.data, count)
        return 0

    def _has(self, start: int, count: int, flags: int) -> bool:
        found = self._current().memory.flags[max(start, 0) : start + count]
        return start >= 0 and found.size == count and bool(((found & flags) == flags).all())
