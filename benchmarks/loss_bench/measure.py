"""Memory, bytes and machine facts, from the process that asks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bgkd_megatron import ops


def peak_extra_bytes(step: Callable[[], object]) -> int:
    """Growth of the resident set at its highest while `step` runs, in bytes.

    Linux: the kernel's high-water mark VmHWM, set back through /proc/self/clear_refs.  Memory that
    malloc kept of earlier steps is returned first, or its reuse would not be seen.
    Raises OSError where the mark cannot be set back.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class ByteCounter(TorchDispatchMode):
    """Sums the bytes of the tensors that each operation of PyTorch reads and writes.

    An operation counts as reading every input and writing every output once.  Views and
    allocations are free; broadcast elements count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith("aten::empty"):
            self.bytes += sum(map(_bytes, tree_leaves((args, kwargs, result))))
        return result


def _bytes(leaf: object) -> int:
    if not isinstance(leaf, Tensor):
        return 0
    sizes = (n for n, stride in zip(leaf.shape, leaf.stride(), strict=True) if stride != 0)
    return torch.Size(sizes).numel() * leaf.element_size()


def machine_facts() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("torch", "nvidia-modelopt", "liger-kernel", "megatron-core")
    build = ops.build_info()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "build": build,
    }


def _cpu_model() -> str:
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    model = facts.get("model name", platform.machine())
    numbers = (facts.get("cpu family"), facts.get("model"))
    return f"{model} (family {numbers[0]}, model {numbers[1]})" if all(numbers) else model


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
