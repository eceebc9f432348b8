"""All variants at one setting, in turns with a copy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any, Protocol

from loss_bench.problem import Setting, exact_loss
from loss_bench.results import SettingResult, compare_to_ours, measured_row, skipped_row
from loss_bench.variants import VARIANTS
from loss_bench.worker import CopyRunner, Facts, Seconds, VariantRunner, Worker, WorkerError

# OpenMP threads of the turn before go on spinning for some milliseconds.
_SPIN_SECONDS = 0.05


class Answers(Protocol):
    """A worker, as far as it is needed here."""

    def call(self, method: str, *args: object) -> Any: ...


def measure(
    setting: Setting, workers: Mapping[str, Answers], copy: Answers, repetitions: int
) -> SettingResult:
    """Rows for all workers, which are named as in VARIANTS."""
    copy.call("prepare", setting)
    facts: dict[str, Facts] = {}
    failed: dict[str, str] = {}
    copy_times: list[float] = []
    times: dict[str, list[Seconds]] = {}
    # The memory of a GPU does not hold all variants at once, and its times swing less.
    groups = [list(workers)] if setting.device == "cpu" else [[name] for name in workers]
    for group in groups:
        for name in group:
            try:
                facts[name] = workers[name].call("prepare", setting)
                times[name] = []
            except WorkerError as error:
                failed[name] = str(error)
        ready = [name for name in group if name in facts]
        for _ in range(repetitions if ready else 0):
            copy_times.append(_turn(copy)["forward"])
            for name in ready:
                times[name].append(_turn(workers[name]))
        for name in group:
            with suppress(WorkerError):  # of one that failed above
                workers[name].call("release")
    copy_rate = 2 * setting.logits_bytes / median(copy_times) if copy_times else 0.0
    exact = {task: exact_loss(setting, task) for task in {VARIANTS[name].task for name in facts}}
    rows = [
        measured_row(name, setting, facts[name], exact[VARIANTS[name].task], times[name], copy_rate)
        if name in facts
        else skipped_row(name, failed[name])
        for name in workers
    ]
    compare_to_ours(rows)
    return SettingResult(
        setting.vocab_size, setting.num_tokens, setting.dtype, setting.logits_bytes,
        copy_rate / 1e9, rows,
    )  # fmt: skip


def _turn(worker: Answers) -> Seconds:
    time.sleep(_SPIN_SECONDS)
    return worker.call("run")


@contextmanager
def started_workers(
    names: list[str], num_threads: int
) -> Iterator[tuple[dict[str, Worker], Worker]]:
    """A process for each variant, and one that copies."""
    copy = Worker(CopyRunner, num_threads=num_threads)
    workers = {name: Worker(VariantRunner, name, num_threads=num_threads) for name in names}
    try:
        yield workers, copy
    finally:
        for worker in (copy, *workers.values()):
            worker.stop()
