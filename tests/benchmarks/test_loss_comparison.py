"""The comparison on a GPU, as far as it can be followed without one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from loss_bench import measure, worker
from loss_bench.comparison import measure as measure_all
from loss_bench.problem import Setting
from loss_bench.roofline import gpus
from loss_bench.traffic import moved_bytes
from loss_bench.variants import VARIANTS
from loss_bench.worker import WorkerError

from bgkd_megatron.conformance.counters import ByteCounter

SETTING = Setting(vocab_size=1000, num_tokens=7, dtype="bf16")


class OnGpu(Setting):
    """Its tensors are on the CPU, where torch makes them."""

    def __init__(self) -> None:
        super().__init__(1000, 7, "bf16", "cpu")
        object.__setattr__(self, "device", _Cuda("cpu"))


class _Cuda(str):
    """A device that torch takes for the CPU, and the comparison for a GPU."""

    def __eq__(self, other: object) -> bool:
        return other == "cuda"

    __hash__ = str.__hash__


class Spoken:
    """A worker that writes down what it is asked."""

    def __init__(self, name: str, log: list[tuple[str, str]], fails: bool = False) -> None:
        self.name, self.log, self.fails = name, log, fails

    def call(self, method: str, *arguments: object) -> Any:
        self.log.append((self.name, method))
        if method == "prepare" and self.fails:
            raise WorkerError("ImportError: it is not here")
        if method == "prepare":
            return {"loss": 1.0, "gradient_error": 0.0, "extra_bytes": 0, "counted_bytes": 14_000}
        return {"forward": 1e-6, "backward": 1e-6}


def test_on_a_gpu_one_variant_after_the_other_in_turns_with_the_copy() -> None:
    log: list[tuple[str, str]] = []
    names = {"lean_kl": False, "te_ce": True, "eager_kl": False}
    workers = {name: Spoken(name, log, fails) for name, fails in names.items()}
    result = measure_all(OnGpu(), workers, Spoken("copy", log), repetitions=2)
    turns = [("copy", "run"), ("{}", "run")] * 2
    expected = [("copy", "prepare")]
    for name, fails in names.items():
        own = [("{}", "prepare"), *([] if fails else turns), ("{}", "release")]
        expected += [(who.format(name), what) for who, what in own]
    assert log == expected
    missing = result.row("te_ce")
    assert (missing.status, missing.reason) == ("skipped", "ImportError: it is not here")
    assert result.copy_gb_per_s == pytest.approx(2 * 14_000 / 1e-6 / 1e9)
    assert result.row("lean_kl").gb_per_s == pytest.approx(14_000 / 2e-6 / 1e9)


def test_every_time_begins_with_a_flushed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy's and the variants'; after the inputs were restored, and not while warming up."""
    events: list[str] = []

    class Watch(measure.Stopwatch):
        def mark(self) -> None:
            events.append("mark")
            super().mark()

    monkeypatch.setattr(worker, "Stopwatch", Watch)
    monkeypatch.setattr(worker, "cache_flush", lambda device: lambda: events.append("flush"))
    variant, copy = worker.VariantRunner("lean_kl"), worker.CopyRunner()
    variant.prepare(SETTING)
    copy.prepare(SETTING)
    monkeypatch.setattr(variant._problem, "restore", lambda: events.append("restore"))
    events.clear()
    variant.run()
    copy.run()
    assert events == ["restore", "flush", "mark", "mark", "mark", "flush", "mark", "mark"]


def test_the_flush_reads_twice_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def zeros(size: int, device: str, **options: Any) -> torch.Tensor:
        made.append(torch.ones(size, **options))
        return made[-1]

    facts = SimpleNamespace(L2_cache_size=4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: facts)
    monkeypatch.setattr(torch, "zeros", zeros)
    with ByteCounter() as counter:
        measure.cache_flush("cuda")()
        measure.cache_flush("cpu")()
    assert made[0].nbytes == 2 * 4096
    assert counter.moved_bytes >= 2 * 4096


def test_bytes_of_the_gradient_in_forward_are_two_reads_and_one_write() -> None:
    logits, two_sweeps = SETTING.logits_bytes, moved_bytes(VARIANTS["ours_kl"], SETTING)
    once = moved_bytes(VARIANTS["ours_kl_once"], SETTING)
    assert 3 * logits < once.forward < 3 * logits + 4 * 32 * SETTING.num_tokens
    assert once.backward == 4 * SETTING.num_tokens
    assert 5 * logits < sum(two_sweeps) < sum(once) + 2 * logits + 4 * 64 * SETTING.num_tokens


def test_bandwidths_are_those_of_the_kernel_benchmark() -> None:
    assert {gpu.name: gpu.gb_per_s for gpu in gpus()} == {
        "A100": 2039, "H100": 3350, "H200": 4800, "B200": 8000,
    }  # fmt: skip
