"""Time, memory and machine facts, from the process that asks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bgkd_megatron import ops


class Stopwatch:
    """Seconds between marks: wall time, or on a GPU the time of its own clock, by events."""

    def __init__(self, device: str) -> None:
        self._is_cuda = device == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Waits for the last mark."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._is_cuda:
            return [end - start for start, end in pairs]
        self._marks[-1].synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def cache_flush(device: str) -> Callable[[], None]:
    """Leaves nothing in a GPU's L2 cache that the next step may need; on a CPU does nothing.

    Twice as much as the cache holds is read: what a write leaves there would have to go to memory
    while the next step runs.  The device is busy meanwhile, so that the host's time to launch the
    step is not seen.
    """
    if device != "cuda":
        return lambda: None
    size = 2 * torch.cuda.get_device_properties().L2_cache_size
    other = torch.zeros(size // 4, dtype=torch.int32, device=device)

    def read() -> None:
        other.amax()

    return read


def peak_extra_bytes(step: Callable[[], object], device: str) -> int:
    """Growth of the memory in use at its highest while `step` runs, in bytes.

    GPU: of the tensors in PyTorch's caching allocator.  CPU: of the resident set, by Linux's
    high-water mark VmHWM, set back through /proc/self/clear_refs.  Memory that malloc kept of
    earlier steps is returned first, or its reuse would not be seen.
    Raises OSError where the mark cannot be set back.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - allocated
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


def machine_facts(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("torch", "nvidia-modelopt", "liger-kernel", "transformer-engine", "megatron-core")
    build = ops.build_info()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "gpu": _gpu() if device == "cuda" else None,
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


def _gpu() -> str:
    properties = torch.cuda.get_device_properties()
    return (
        f"{properties.name} (sm_{properties.major}{properties.minor}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory / 1e9:.0f} GB), "
        f"CUDA {torch.version.cuda}"
    )


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
