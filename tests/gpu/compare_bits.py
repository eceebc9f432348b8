"""The bits of a GPU beside those of the PTX executor.

    python tests/gpu/compare_bits.py [--device cuda]

Every shipped kernel runs on the same inputs twice: by the operators of the package on the device
(cpu stands in for a GPU), and by the executor, with the plan of that device and the PTX of its
architecture. Maxima, token ids, logits that are only passed on, scaled rows and the zeros of
ignored rows must agree bit for bit; the rest may be off by twice what a kernel may lose against
float64. Exit status: 0 if so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compiler import Compiler, find_tool
from stand_in_runtime import H100, StandInRuntime
from vocab_kernels.bounded import Bounded
from vocab_kernels.build import build, host_library
from vocab_kernels.launch_set import Arrays, Launch, Part, launch_set
from vocab_kernels.launchers import Launchers


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: str
    num_sms: int
    shared_per_block: int
    shared_per_sm: int
    max_cluster: int


STAND_IN = Gpu("the CPU operators, not a GPU", "sm_90a", H100[16], H100[97], H100[81], 8)


@dataclass(frozen=True)
class Agreement:
    """Of one launch: how many numbers, how many of them bit for bit."""

    launch: str
    exact: int = 0  # numbers that must be the same
    exact_equal: int = 0
    others: int = 0
    others_equal: int = 0
    largest: float = 0.0  # difference of the others, as a share of what is allowed
    problem: str = ""

    @property
    def agrees(self) -> bool:
        return not self.problem and self.exact == self.exact_equal and self.largest <= 1


def compare(launch: Launch, executor: Arrays, device: Arrays) -> Agreement:
    exact = exact_equal = others = others_equal = 0
    largest = 0.0
    for (name, ours), (_, theirs) in zip(launch.parts(executor), launch.parts(device), strict=True):
        if ours.values.shape != theirs.values.shape:
            shapes = f"{ours.values.shape} and {theirs.values.shape}"
            return Agreement(launch.name, problem=f"{name} have shapes {shapes}")
        equal = int((_bits(ours.values) == _bits(theirs.values)).sum())
        if ours.allowed is None:
            exact, exact_equal = exact + ours.values.size, exact_equal + equal
        else:
            others, others_equal = others + ours.values.size, others_equal + equal
            largest = max(largest, _excess(launch, ours, theirs))
    return Agreement(launch.name, exact, exact_equal, others, others_equal, largest)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32 if values.itemsize == 4 else np.uint16)


def _excess(launch: Launch, ours: Part, theirs: Part) -> float:
    assert ours.allowed is not None
    decode = launch.problem.dtype.decode if ours.values.ndim == 2 else np.float64
    bound = Bounded(decode(ours.values), 2 * np.asarray(ours.allowed.error))
    return float(bound.excess(decode(theirs.values)).max(initial=0.0))


def gpu_facts(device: str) -> Gpu:
    """In a process of its own: torch brings the real CUDA runtime, the executor a stand-in."""
    if device == "cpu":
        return STAND_IN
    import torch

    p = torch.cuda.get_device_properties()
    arch = {8: "sm_80", 9: "sm_90a"}.get(p.major, "sm_100a")
    return Gpu(
        f"{p.name} (sm_{p.major}{p.minor})", arch, p.multi_processor_count,
        p.shared_memory_per_block_optin, p.shared_memory_per_multiprocessor,
        8 if p.major >= 9 else 1,
    )  # fmt: skip


def on_device(device: str) -> list[Arrays]:
    """In a process of its own."""
    import torch

    from bgkd_megatron import ops

    if device not in ops.DEVICES:
        raise SystemExit(f"compare_bits: this build has kernels for {', '.join(ops.DEVICES)} only")
    return [launch.on_operators(torch, ops, device) for launch in launch_set()]


def compare_all(launchers: Launchers, gpu: Gpu, results: Iterable[Arrays]) -> Iterator[Agreement]:
    for launch, result in zip(launch_set(), results, strict=True):
        try:
            yield compare(launch, launch.on_executor(launchers, gpu), result)
        except AssertionError as finding:
            yield Agreement(launch.name, problem=str(finding))


def line(a: Agreement) -> str:
    if a.problem:
        return f"{a.launch:<58}  WRONG: {a.problem}"
    verdict = "" if a.agrees else "  DIFFERS"
    return (
        f"{a.launch:<58} {a.exact_equal:>8} of {a.exact:<8} {a.others_equal:>8} of {a.others:<8}"
        f" {a.largest:>6.2f}{verdict}"
    )


def summary(agreements: list[Agreement]) -> str:
    exact, exact_equal = sum(a.exact for a in agreements), sum(a.exact_equal for a in agreements)
    others, equal = sum(a.others for a in agreements), sum(a.others_equal for a in agreements)
    wrong = [a.launch for a in agreements if not a.agrees]
    verdict = "all launches agree" if not wrong else f"{len(wrong)} DIFFER: {', '.join(wrong)}"
    return (
        f"bits: {exact_equal + equal} of {exact + others} numbers agree; of those that must, "
        f"{exact_equal} of {exact}; of those that pass through approximations, {equal} of {others}."
        f" {verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--compile-only", action="store_true", help="kernels for the executor")
    options = parser.parse_args()
    device = options.device
    nvcc = find_tool("nvcc")
    if nvcc is None:
        parser.error("no nvcc on PATH, in CUDA_HOME or in site-packages: the executor needs PTX")
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn) as elsewhere,
    ):
        gpu = elsewhere.submit(gpu_facts, device).result()
        compiler = Compiler(nvcc, Path(folder))
        kernels = build(compiler, (gpu.arch,))
        if options.compile_only:
            return 0
        results = elsewhere.submit(on_device, device)
        runtime = StandInRuntime(compiler)
        launchers = Launchers(runtime, host_library(runtime, kernels), kernels, gpu.arch)
        print(f"{gpu.name} and the executor with the PTX of {gpu.arch}")
        print(f"{'launch':<58} {'must agree':^20} {'approximations':^20} {'largest':>7}")
        agreements = []
        for agreement in compare_all(launchers, gpu, results.result()):
            print(line(agreement), flush=True)
            agreements.append(agreement)
    print("largest: difference of approximations, as a share of what is allowed")
    print(summary(agreements))
    return 0 if all(a.agrees for a in agreements) else 1


if __name__ == "__main__":
    sys.exit(main())
