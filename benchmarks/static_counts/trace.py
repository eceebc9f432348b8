"""What one forward and backward of a loss asks a GPU for: operations of PyTorch and of ours, and
Triton kernels. They run on the CPU, a Triton kernel not at all: it is compiled as its launch says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._pytree import tree_leaves

from bgkd_megatron.conformance.counters import ByteCounter


@dataclass(frozen=True)
class TorchOperation:
    name: str
    bytes: int
    """of the tensors that it reads and writes, each once"""
    largest_tensor: int
    """elements"""


@dataclass(frozen=True)
class OurOperation:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class TritonLaunch:
    name: str
    cubin: bytes
    block_size: int | None
    """columns of a row that one iteration of the kernel's loop takes, if it says so"""
    num_warps: int
    largest_tensor: int
    """elements"""


Step = TorchOperation | OurOperation | TritonLaunch


@dataclass
class Trace:
    steps: list[Step] = field(default_factory=list)


class _OperationRecorder(ByteCounter):
    """Every operation that PyTorch dispatches."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def count(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        before = self.moved_bytes
        super().count(func, args, kwargs, result)
        if func.namespace == "bgkd":
            names = [argument.name for argument in func._schema.arguments]
            bound = dict(zip(names, args, strict=False)) | kwargs
            self._trace.steps.append(OurOperation(func._opname, bound))
        elif self.moved_bytes > before:
            counted = self.moved_bytes - before
            largest = _largest_tensor((args, kwargs, result))
            self._trace.steps.append(TorchOperation(func.name(), counted, largest))


def _largest_tensor(tree: object) -> int:
    return max((x.numel() for x in tree_leaves(tree) if isinstance(x, Tensor)), default=0)


class _NoDevice:
    """What Triton asks its driver for before a launch."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        """Triton keeps the kernels of each device apart: so those of each architecture."""
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def recording(capability: int) -> Iterator[Trace]:
    """Fills the trace with what runs inside. capability: 90 of the GPU whose code Triton makes."""
    trace = Trace()
    with _OperationRecorder(trace), _triton_compiles_only(capability, trace):
        yield trace


@contextmanager
def _triton_compiles_only(capability: int, trace: Trace) -> Iterator[None]:
    try:
        from triton.backends.compiler import GPUTarget
        from triton.runtime.driver import driver
        from triton.runtime.jit import JITFunction
    except ImportError:  # then nothing launches a kernel, either
        yield
        return
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        # A warm-up is Triton's own way to compile for these arguments: types, alignments and
        # constants are inferred from them as in a launch.
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        trace.steps.append(
            TritonLaunch(
                kernel.metadata.name,
                kernel.asm["cubin"],
                kwargs.get("BLOCK_SIZE"),
                kernel.metadata.num_warps,
                _largest_tensor((args, kwargs)),
            )
        )
        return kernel

    before = driver._active
    driver.set_active(_NoDevice(GPUTarget("cuda", capability, 32)))
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            yield
    finally:
        driver._active = before
